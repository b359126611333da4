"""`pixstorefs umount`: unmount, and return when everything is saved and the process has ended."""

import errno
import os
import shlex
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import console
from pixstorefs.cli.paths import Mountpoint
from pixstorefs.errors import MountpointUnusable, StoreInUse

if TYPE_CHECKING:
    from pixstorefs.daemon.mounts import MountEntry
    from pixstorefs.daemon.owner import Watch

# A last save is bounded by the drafts that are open; minutes are for slow disks and network folders.
_END_TIMEOUT_S = 300.0
# A process that has ended by then was not needed in another mount namespace.
_COPY_TIMEOUT_S = 3.0
# After --lazy: time for a mount nobody uses to end. One that is used ends with its last user.
_LAZY_END_TIMEOUT_S = 3.0


@click.command("umount", short_help="Unmount, and wait until everything is saved.")
@click.argument("mountpoint", type=Mountpoint())
@click.option(
    "-l", "--lazy", is_flag=True, help="Detach at once; the mount ends when nobody uses it any more."
)
@click.pass_context
def umount_command(context: click.Context, mountpoint: str, lazy: bool) -> None:
    """Unmount MOUNTPOINT, or the store at that path, and return when everything is saved.

    A mount whose process was killed is cleaned away.
    """
    from pixstorefs.daemon import logs, mounts, owner

    entry = _mount_meant(mountpoint)
    state = mounts.state(entry.mountpoint)
    if state is mounts.State.DEAD:
        _unmount(entry, lazy=True)
        return
    if state is mounts.State.SILENT:
        _detach_silent(entry, lazy=lazy)
        return
    watch = owner.watch(entry.source)
    log = logs.path_for(entry.mountpoint)
    already_logged_bytes = os.path.getsize(log) if os.path.exists(log) else 0
    _unmount(entry, lazy=lazy)
    if watch is None:
        console.note(f"unmounted; whether the process that served {entry.source} has ended is not known.")
    elif _ends(watch, entry, lazy=lazy):
        context.exit(_failures(log, already_logged_bytes))
    elif lazy:
        console.note(f"detached; {entry.source} stays open until no program uses it any more.")
    else:
        raise StoreInUse(
            f"unmounted, but process {watch.pid} is still saving into {entry.source}. "
            "Do not copy or move the store before that process has ended."
        )


def _mount_meant(path: str) -> "MountEntry":
    """The mount on a path, or of the store there. Raises MountpointUnusable, with what to give instead."""
    from pixstorefs.daemon import mounts

    entry = mounts.find(path)
    if entry is not None and entry.is_ours:
        return entry
    found = mounts.of_store(path)
    if len(found) == 1:
        return found[0]
    if found:
        places = " or ".join(f"pixstorefs umount {shlex.quote(entry.mountpoint)}" for entry in found)
        raise MountpointUnusable(f"the store {path} is mounted in several places: {places}")
    around = mounts.around(mounts.real_path(os.path.abspath(path)))
    if around is not None:
        raise MountpointUnusable(
            f"{path} lies in a mount and is none. To end that: "
            f"pixstorefs umount {shlex.quote(around.mountpoint)}"
        )
    raise MountpointUnusable(f"no pixstorefs is mounted on {os.path.abspath(path)}.")


def _ends(watch: "Watch", entry: "MountEntry", *, lazy: bool) -> bool:
    """Whether the process of a mount ends in time. Raises StoreInUse if it serves a copy of the mount."""
    from pixstorefs.daemon import mounts

    if lazy:
        return watch.wait(_LAZY_END_TIMEOUT_S)
    if watch.wait(_COPY_TIMEOUT_S):
        return True
    if not mounts.lives_on(entry.device):
        return watch.wait(_END_TIMEOUT_S)
    where = ", ".join(mounts.copies(entry.device)) or "a container or another program of somebody else"
    raise StoreInUse(
        f"{entry.mountpoint} is unmounted, but the mount lives on: {where}. Process {watch.pid} serves it "
        f"and saves into {entry.source}. End it there, or end it for all: kill {watch.pid}"
    )


def _detach_silent(entry: "MountEntry", *, lazy: bool) -> None:
    """Detach a mount that does not answer, if that was asked for. Only its process can save what it holds."""
    from pixstorefs.daemon import mounts, owner

    reason = owner.why_silent(entry)
    if not lazy:
        raise StoreInUse(
            f"{entry.mountpoint} stays mounted: {reason}. What it has not saved yet is lost if it is killed. "
            f"To take the mount away all the same: pixstorefs umount --lazy {shlex.quote(entry.mountpoint)}"
        )
    try:
        mounts.detach_silent(entry.mountpoint)
    except OSError as error:
        raise MountpointUnusable(f"{entry.mountpoint} cannot be detached: {error.strerror}.") from error
    console.note(f"detached; {entry.source} stays open: {reason}.")


def _failures(log: str, already_logged_bytes: int) -> int:
    """Repeat what the ending process complained of; returns the exit status.

    Only a parent learns the exit status of a process, and ours went away after mounting. Its log is
    what it leaves; a foreground mount has none here, and says the same on its own stderr.
    """
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            if os.fstat(file.fileno()).st_size >= already_logged_bytes:
                file.seek(already_logged_bytes)
            lines = [line.rstrip("\n").split(" ", 3) for line in file]
    except OSError:
        return 0
    failures = [fields[3] for fields in lines if len(fields) == 4 and fields[2] in ("ERROR", "CRITICAL")]
    for failure in failures:
        console.error(failure)
    return 1 if failures else 0


def _unmount(entry: "MountEntry", *, lazy: bool) -> None:
    from pixstorefs.daemon import mounts

    mountpoint = entry.mountpoint
    try:
        mounts.unmount(mountpoint, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            reason = _whose(entry) or error.strerror
            raise MountpointUnusable(f"{mountpoint} cannot be unmounted: {reason}.") from error
        users = ", ".join(mounts.users(mountpoint)) or "another program"
        raise StoreInUse(
            f"{mountpoint} is in use by {users}. Close what is open there, or detach it with --lazy."
        ) from error


def _whose(entry: "MountEntry") -> str | None:
    """That a mount is somebody else's, where it is. The helper says then that it knows of no such mount."""
    import pwd

    if entry.user_id is None or entry.user_id == os.geteuid():
        return None
    try:
        name = pwd.getpwuid(entry.user_id).pw_name
    except KeyError:
        name = f"user {entry.user_id}"
    others = "only root" if entry.user_id == 0 else f"only {name} or root"
    return f"it was mounted by {name}, and {others} can unmount it"
