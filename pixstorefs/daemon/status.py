"""What can be told of a mount from outside: the kernel's list of mounts, the owner's note, the log.

Nothing is asked of the daemon itself: a status that hangs with the daemon would be of no use.
"""

import datetime
import os
from dataclasses import dataclass

from pixstorefs.daemon import logs, mounts, owner

_RECOVERY = "recovery: "
_MOUNTED = "mounted "


@dataclass(frozen=True, slots=True)
class MountStatus:
    """One mount. `recovery`: what its start decided after an unclean stop; None where no log tells.

    `since` is the moment it took the store, as ISO 8601 in local time. It, `pid` and `free_bytes` are None
    where nobody tells: another user's mount, a dead one whose store was moved.
    """

    store_path: str
    mountpoint: str
    alive: bool
    read_only: bool
    pid: int | None
    since: str | None
    free_bytes: int | None
    recovery: list[str] | None


def statuses(path: str | None = None) -> list[MountStatus]:
    """All mounts of ours, or the one that has `path` as its store or its mountpoint."""
    real = os.path.realpath(path) if path is not None else None
    absolute = os.path.abspath(path) if path is not None else None
    return [
        _status(entry)
        for entry in mounts.mounted()
        if entry.is_ours and (path is None or entry.source == real or entry.mountpoint in (real, absolute))
    ]


def _status(entry: mounts.MountEntry) -> MountStatus:
    holder = owner.read(entry.source)
    if holder is not None and holder.mountpoint != entry.mountpoint:
        holder = None  # of another mount: this one is a leftover, or read-only and without a lock
    alive = not mounts.is_dead(entry.mountpoint)
    return MountStatus(
        store_path=entry.source,
        mountpoint=entry.mountpoint,
        alive=alive,
        read_only=entry.read_only,
        pid=holder.pid if holder else None,
        since=_local_time(holder.since_s) if holder else None,
        free_bytes=_free_bytes(entry.mountpoint if alive else entry.source),
        recovery=_last_recovery(logs.path_for(entry.mountpoint)),
    )


def _local_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _free_bytes(path: str) -> int | None:
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def _last_recovery(log_path: str) -> list[str] | None:
    """The recovery lines of the newest start in a log, which stand right before its "mounted"."""
    try:
        with open(log_path, encoding="utf-8", errors="replace") as file:
            messages = [line.rstrip("\n").split(" ", 3)[-1] for line in file]
    except OSError:
        return None
    starts = [number for number, message in enumerate(messages) if message.startswith(_MOUNTED)]
    if not starts:
        return None  # the log was rotated since
    found: list[str] = []
    for message in reversed(messages[: starts[-1]]):
        if not message.startswith(_RECOVERY):
            break
        found.insert(0, message.removeprefix(_RECOVERY))
    return found
