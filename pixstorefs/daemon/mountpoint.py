"""May this directory be mounted on? Every check before anything is created, changed or asked.

The order is chosen for the message: overlapping comes before "not empty" because a store inside
its mountpoint always makes that mountpoint not empty.
"""

import errno
import os
import shutil

from pixstorefs.daemon import mounts, owner
from pixstorefs.errors import FuseUnavailable, MountpointUnusable, PixstoreError, StoreInUse

_DEVICE = "/dev/fuse"
_HELPER = "fusermount3"
# libfuse runs the helper from where it was built to be, and only then looks at PATH.
_HELPER_PLACES = ("/usr/bin", "/bin", "/usr/local/bin")


def require_fuse() -> None:
    """Refuse early, and say what to install, where the system cannot mount at all."""
    if not os.path.exists(_DEVICE):
        raise FuseUnavailable(
            f"{_DEVICE} is missing, so nothing can be mounted here. Load the kernel module (modprobe fuse); "
            "in a container pass --device /dev/fuse --cap-add SYS_ADMIN."
        )
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        raise FuseUnavailable(
            f"{_DEVICE} cannot be opened by this user. It should have mode 0666, or you need its group."
        )
    # root mounts and unmounts through the kernel directly.
    if os.geteuid() != 0 and not _helper_installed():
        raise FuseUnavailable(
            f"{_HELPER} is missing, and only root can mount without it. "
            "Install the package fuse3 (apt install fuse3, dnf install fuse3, apk add fuse3)."
        )


def check(mountpoint: str, store_path: str) -> str:
    """Check the mountpoint for this store, cleaning away a dead mount; returns its real path.

    Raises MountpointUnusable, or StoreInUse when this very store is mounted there already.
    """
    entry = clean_dead_mount(mountpoint)
    real, real_store = os.path.realpath(mountpoint), os.path.realpath(store_path)
    _refuse_live_mount(mountpoint, entry, real_store)
    _refuse_overlap(real, real_store)
    if os.path.lexists(real):
        _check_directory(mountpoint, real)
    else:
        _check_creatable(mountpoint, real)
    return real


def create(real: str) -> bool:
    """Create a missing mountpoint, private to the user; returns whether there was anything to create."""
    if os.path.isdir(real):
        return False
    try:
        os.makedirs(real, mode=0o700)
    except OSError as error:
        raise MountpointUnusable(f"{real} cannot be created: {error.strerror}.") from error
    return True


def remove_created(real: str) -> None:
    """Undo `create` after a mount that did not happen. Anything that appeared in it stays."""
    try:
        os.rmdir(real)
    except OSError:
        pass


def clean_dead_mount(mountpoint: str) -> mounts.MountEntry | None:
    """Take away what a killed pixstorefs left on the mountpoint; returns the mount there that lives.

    Raises MountpointUnusable for dead mounts of others, and StoreInUse for one of ours that does not answer.
    """
    entry = mounts.find(mountpoint)
    if entry is not None and entry.is_automount:
        return entry
    state = mounts.state(entry.mountpoint if entry else os.path.abspath(mountpoint))
    if state is mounts.State.SILENT:
        raise _silence(mountpoint, entry)
    if state is mounts.State.ANSWERS:
        return entry
    if entry is None or not entry.is_ours:
        kind = entry.filesystem if entry else "unknown"
        raise MountpointUnusable(
            f"{mountpoint} holds a dead mount of another program (type {kind}). "
            f"Unmount it first: {_HELPER} -u {mountpoint}"
        )
    try:
        mounts.unmount(entry.mountpoint, lazy=True)
    except OSError as error:
        raise MountpointUnusable(
            f"{mountpoint} holds a dead mount that cannot be cleaned away: {error.strerror}."
        ) from error
    return None


def _silence(mountpoint: str, entry: mounts.MountEntry | None) -> PixstoreError:
    if entry is None:
        return MountpointUnusable(f"{mountpoint} lies on a file system that does not answer.")
    if not entry.is_ours:
        return MountpointUnusable(
            f"{mountpoint} holds a mount of another program (type {entry.filesystem}) that does not answer."
        )
    return StoreInUse(
        f"{mountpoint} already has the store {entry.source} mounted on it, and {owner.why_silent(entry)}."
    )


def _helper_installed() -> bool:
    places = os.pathsep.join((os.environ.get("PATH", ""), *_HELPER_PLACES))
    return shutil.which(_HELPER, path=places) is not None


def _refuse_live_mount(mountpoint: str, entry: mounts.MountEntry | None, real_store: str) -> None:
    if entry is None or not entry.is_ours:
        return  # an empty directory of some other file system is as good as any
    if entry.source != real_store:
        raise MountpointUnusable(f"{mountpoint} already has the store {entry.source} mounted on it.")
    holder = owner.read(real_store)
    process = f"process {holder.pid}" if holder and holder.pid else "another process"
    raise StoreInUse(f"{real_store} is already mounted on {entry.mountpoint} by {process}.")


def _refuse_overlap(real: str, real_store: str) -> None:
    if real == real_store:
        raise MountpointUnusable(f"{real} cannot be the store and its own mountpoint; give two directories.")
    common = os.path.commonpath((real, real_store))
    if common == real:
        raise MountpointUnusable(
            f"The store {real_store} lies inside the mountpoint {real}: the mount would hide it. "
            "Mount on a directory beside it."
        )
    if common == real_store:
        raise MountpointUnusable(
            f"The mountpoint {real} lies inside the store {real_store}, which is for sealed images only. "
            "Mount on a directory beside it."
        )


def _check_directory(mountpoint: str, real: str) -> None:
    if not os.path.isdir(real):
        raise MountpointUnusable(f"{mountpoint} is not a directory. Mount on an empty or a new directory.")
    entry = mounts.on(real)
    if entry is not None and entry.is_automount:
        _check_automount(mountpoint)
    elif not _is_empty(mountpoint, real):
        raise MountpointUnusable(
            f"{mountpoint} is not empty: mounting would hide what is in it. Mount on an empty directory."
        )
    # fusermount3 asks the same and says less.
    elif not os.access(real, os.W_OK):
        raise MountpointUnusable(f"{mountpoint} is not writable for this user, so it cannot be mounted on.")


def _check_automount(mountpoint: str) -> None:
    """It is empty, and to ask it anything would be to wait for ourselves: fusermount3 does."""
    if os.geteuid() != 0:
        raise MountpointUnusable(
            f"{mountpoint} is mounted on demand (x-systemd.automount), which works for mounts of root only: "
            "leave out setuid=, or x-systemd.automount."
        )


def _is_empty(mountpoint: str, real: str) -> bool:
    try:
        with os.scandir(real) as entries:
            return next(entries, None) is None
    except OSError as error:
        raise MountpointUnusable(f"{mountpoint} cannot be read: {error.strerror}.") from error


def _check_creatable(mountpoint: str, real: str) -> None:
    """Creating comes later, when nothing else can be refused; here only whether it can succeed."""
    parent = os.path.dirname(real)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise MountpointUnusable(f"{mountpoint} cannot be created: {parent} is not a directory.")
    if not os.access(parent, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
        raise MountpointUnusable(f"{mountpoint} is missing and cannot be created in {parent}: {reason}.")
