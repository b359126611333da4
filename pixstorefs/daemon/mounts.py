"""What is mounted where, who uses it, and how to unmount it."""

import enum
import errno
import glob
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from pixstorefs.daemon import asking, linux
from pixstorefs.errors import MountpointUnusable

SUBTYPE = "pixstorefs"
FILESYSTEM_TYPE = f"fuse.{SUBTYPE}"

# A desktop session has a few hundred processes; a message needs only the first few that are in the way.
_MAX_USERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo. `source` of our mounts is the path of the store."""

    mountpoint: str
    filesystem: str
    source: str
    device: str  # "major:minor"
    options: frozenset[str]
    user_id: int | None = None  # who mounted it, where the file system tells

    @property
    def read_only(self) -> bool:
        return "ro" in self.options

    @property
    def is_ours(self) -> bool:
        return self.filesystem == FILESYSTEM_TYPE

    @property
    def is_automount(self) -> bool:
        """Whether a touch of this directory waits for somebody to mount on it: us, while we do that."""
        return self.filesystem == "autofs"


def mounted() -> list[MountEntry]:
    """All mounts this process sees; of several on one directory the topmost comes last."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parse(line) for line in lines]


def _topmost() -> dict[str, MountEntry]:
    """What is mounted, by mountpoint: a later entry lies on an earlier one."""
    return {entry.mountpoint: entry for entry in mounted()}


def on(mountpoint: str) -> MountEntry | None:
    """The topmost mount on a real path. Touches no file system."""
    return _topmost().get(mountpoint)


def find(path: str) -> MountEntry | None:
    """The topmost mount on `path`, without touching what is mounted there if that can be avoided.

    A dead mount answers every access with an error and a hung one does not answer at all, so links
    are resolved in the parent first and the last component only if nothing was found.
    Raises MountpointUnusable if links cannot be resolved because a file system does not answer.
    """
    absolute = os.path.abspath(path)
    parent, name = os.path.split(absolute)
    entries = _topmost()
    if absolute in entries:
        return entries[absolute]
    beside = os.path.join(real_path(parent), name)
    return entries.get(beside) or entries.get(real_path(absolute))


def of_store(path: str) -> list[MountEntry]:
    """Our mounts of the store at a path. Raises MountpointUnusable if that does not answer."""
    entries = [entry for entry in mounted() if entry.is_ours]
    absolute = os.path.abspath(path)
    on_it = [entry for entry in entries if entry.source == absolute]
    # Resolved only if it must be: to touch a mount that does not answer takes the whole deadline.
    real = None if on_it or not entries else real_path(absolute)
    return on_it or [entry for entry in entries if entry.source == real]


def around(real: str) -> MountEntry | None:
    """Our mount in which a real path lies; None where another file system is between."""
    inside = [entry for entry in _topmost().values() if is_inside(real, entry.mountpoint)]
    nearest = max(inside, key=lambda entry: len(entry.mountpoint), default=None)
    return nearest if nearest is not None and nearest.is_ours else None


def store_at(path: str) -> str:
    """The real path of the store that a person means by a path: itself, or what is mounted there.

    Raises MountpointUnusable if the path does not answer.
    """
    entry = find(path)
    return entry.source if entry is not None and entry.is_ours else real_path(os.path.abspath(path))


def real_path(absolute: str) -> str:
    """realpath(3) with a deadline. Raises MountpointUnusable if a file system on the way does not answer."""
    answers = asking.ask({absolute: partial(os.path.realpath, absolute)})
    if absolute not in answers:
        raise MountpointUnusable(f"{absolute} lies on a file system that does not answer.")
    path = answers[absolute]
    assert isinstance(path, str)
    return path


class State(enum.Enum):
    """How a mount is."""

    ANSWERS = enum.auto()
    DEAD = enum.auto()  # the process behind it is gone: "Transport endpoint is not connected"
    SILENT = enum.auto()  # the process behind it is stopped or hangs


def state(mountpoint: str) -> State:
    """How the mount on an absolute path is. Waits for `asking.ANSWER_DEADLINE_S` and no longer."""
    return state_of(asking.ask({mountpoint: partial(room, mountpoint)}).get(mountpoint))


def room(path: str) -> tuple[int, int | None]:
    """(errno, free bytes) of a file system, as statvfs(3) has them: a question for `asking`.

    statvfs, because the kernel never answers that from its caches, as it does stat even for the dead.
    To whom a FUSE mount is closed the kernel says that it has no blocks at all: then nobody knows.
    """
    try:
        disk = os.statvfs(path)
    except OSError as error:
        return error.errno or errno.EIO, None
    return 0, disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def state_of(answer: tuple[int, int | None] | None) -> State:
    """What an answer to `room` says of a mount; None is no answer."""
    if answer is None:
        return State.SILENT
    return State.DEAD if answer[0] in (errno.ENOTCONN, errno.ECONNABORTED) else State.ANSWERS


def detach_silent(mountpoint: str) -> None:
    """Unmount lazily what does not answer. Raises OSError if it is still mounted after `ANSWER_DEADLINE_S`.

    From a child process, because the kernel may want to hand over what it caches, and wait for that.
    """
    asking.ask({mountpoint: partial(unmount, mountpoint, lazy=True)})
    if on(mountpoint) is not None:
        raise OSError(errno.EBUSY, "the kernel does not detach it", mountpoint)


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount; raises OSError, with EBUSY while programs use the mount.

    root asks the kernel; everyone else needs the setuid helper. In a user namespace root may be
    refused (EPERM) and the helper still work.
    """
    if os.geteuid() == 0:
        try:
            linux.umount(mountpoint, lazy=lazy)
        except PermissionError:
            pass
        else:
            return
    arguments = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    # The helper's words are the only way to tell "busy" from the rest.
    environment = os.environ | {"LC_ALL": "C"}
    try:
        result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "fusermount3 is not installed", mountpoint) from None
    if result.returncode != 0:
        reason = result.stderr.strip() or f"fusermount3 ended with {result.returncode}"
        number = errno.EBUSY if "busy" in reason.lower() else errno.EPERM
        raise OSError(number, reason, mountpoint)


def lives_on(device: str) -> bool:
    """Whether a mount, by its "major:minor", lives on in another place after it was unmounted here.

    Each FUSE mount has a backing device of its own, which sysfs shows to everybody until the last copy has
    gone. The list of FUSE connections would tell the same, but is itself not mounted everywhere.
    """
    return os.path.exists(f"/sys/class/bdi/{device}")


def copies(device: str) -> list[str]:
    """Where a mount is mounted, too: bind mounts, and "name (pid)" of one program in each mount namespace."""
    found = [f"the bind mount {entry.mountpoint}" for entry in mounted() if entry.device == device]
    seen = {os.readlink("/proc/self/ns/mnt")}
    for process in glob.glob("/proc/[0-9]*"):
        try:
            namespace = os.readlink(f"{process}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            with open(f"{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
                inside = any(line.split(" ", 3)[2] == device for line in lines)
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if inside:
            found.append(f"{_program(process)} ({os.path.basename(process)})")
    return found[:_MAX_USERS_NAMED]


def users(mountpoint: str) -> list[str]:
    """What keeps the mount busy, as far as this user may see it: mounts, loop devices, "name (pid)"."""
    found = [
        f"the mount {entry.mountpoint}"
        for entry in mounted()
        if entry.mountpoint != mountpoint and is_inside(entry.mountpoint, mountpoint)
    ]
    found += [device for device, backing in _loop_devices() if is_inside(backing, mountpoint)]
    for process in glob.glob("/proc/[0-9]*"):
        if len(found) >= _MAX_USERS_NAMED:
            break
        if any(is_inside(path, mountpoint) for path in (*_links(process), *_mapped(process))):
            found.append(f"{_program(process)} ({os.path.basename(process)})")
    return found[:_MAX_USERS_NAMED]


def _loop_devices() -> Iterator[tuple[str, str]]:
    """Loop devices and the files behind them, loop(4)."""
    for place in glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(place, "rb") as file:
                yield f"/dev/{place.split('/')[3]}", os.fsdecode(file.read().rstrip(b"\n"))
        except OSError:
            continue


def _links(process: str) -> list[str]:
    """Where a process stands and what it has open. readlink never enters the file system itself."""
    targets = []
    for link in (f"{process}/cwd", f"{process}/root", f"{process}/exe", *glob.glob(f"{process}/fd/*")):
        try:
            targets.append(os.readlink(link))
        except OSError:
            continue
    return targets


def _mapped(process: str) -> list[str]:
    """Files that a process has mapped, which may be closed by now: proc_pid_maps(5)."""
    try:
        with open(f"{process}/maps", "rb") as lines:
            fields = [line.rstrip(b"\n").split(None, 5) for line in lines]
    except OSError:
        return []
    return [os.fsdecode(field[5]) for field in fields if len(field) > 5]


def _program(process: str) -> str:
    try:
        with open(f"{process}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def is_inside(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies in it. Both are real paths."""
    return path == directory or path.startswith(directory + "/")


def _parse(line: bytes) -> MountEntry:
    # 36 35 98:0 /root /mountpoint options [optional fields] - type source superoptions; proc(5)
    before, _, after = line.partition(b" - ")
    fields, tail = before.split(b" "), after.split(b" ")
    user_id = re.search(rb"\buser_id=([0-9]+)", tail[-1])
    return MountEntry(
        mountpoint=_path(fields[4]),
        filesystem=os.fsdecode(tail[0]),
        source=_path(tail[1]),
        device=os.fsdecode(fields[2]),
        options=frozenset(os.fsdecode(fields[5]).split(",")),
        user_id=int(user_id[1]) if user_id else None,
    )


def _path(escaped: bytes) -> str:
    """A path of mountinfo, decoded as Python decodes our arguments: in some locales that is not UTF-8.

    The kernel writes space, tab, newline, '#' and backslash as three octal digits.
    """
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), escaped))
