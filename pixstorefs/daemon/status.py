"""What can be told of a mount from outside: the kernel's list of mounts, the owner's note, the log.

Whatever might not answer is asked with one deadline for all: a status that hangs with one mount would be of
no use for the others.
"""

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pixstorefs.daemon import asking, logs, mounts, owner

_RECOVERY = "recovery: "
_MOUNTED = "mounted "


@dataclass(frozen=True, slots=True)
class MountStatus:
    """One mount. `recovery`: what its start decided after an unclean stop; None where no log tells.

    `alive`: whether it has a process. `answers`: whether that process serves it, or is stopped or hangs.

    `since` is the moment it took the store, as ISO 8601 in local time. It, `pid` and `free_bytes` are None
    where nobody tells: another user's mount, a dead one, a process in another pid namespace.
    """

    store_path: str
    mountpoint: str
    alive: bool
    answers: bool
    stopped: bool
    read_only: bool
    pid: int | None
    since: str | None
    free_bytes: int | None
    recovery: list[str] | None


def statuses(path: str | None = None) -> list[MountStatus]:
    """All mounts of ours, or the one that has `path` as its store or its mountpoint, or around it.

    Raises MountpointUnusable if `path` lies on a file system that does not answer.
    """
    entries = [entry for entry in mounts.mounted() if entry.is_ours]
    if path is not None:
        absolute = os.path.abspath(path)
        on_it = [entry for entry in entries if absolute in (entry.source, entry.mountpoint)]
        # Resolved only if it must be: to touch a mount that does not answer takes the whole deadline.
        real = None if on_it else mounts.real_path(absolute)
        entries = on_it or [entry for entry in entries if real in (entry.source, entry.mountpoint)]
        if real is not None and not entries and (around := mounts.around(real)):
            entries = [around]
    answers = asking.ask({question: ask for entry in entries for question, ask in _questions(entry).items()})
    return [_status(entry, answers) for entry in entries]


def holder_of(path: str) -> int | None:
    """The process that has the store at a path, mounted or not; None where nobody can tell."""
    facts = asking.ask({path: partial(owner.facts, os.path.realpath(path))}).get(path)
    return facts[0] if facts else None


def _questions(entry: mounts.MountEntry) -> dict[tuple[str, str], partial[Any]]:
    return {
        ("mount", entry.mountpoint): partial(mounts.room, entry.mountpoint),
        ("disk", entry.source): partial(mounts.room, entry.source),
        ("owner", entry.source): partial(owner.facts, entry.source),
    }


def _status(entry: mounts.MountEntry, answers: Mapping[tuple[str, str], Any]) -> MountStatus:
    of_mount, of_disk = answers.get(("mount", entry.mountpoint)), answers.get(("disk", entry.source))
    facts = answers.get(("owner", entry.source))
    holder = owner.Owner(*facts) if facts else None
    if holder is not None and holder.mountpoint != entry.mountpoint:
        holder = None  # of another mount: this one is a leftover, or read-only and without a lock
    pid = holder.pid if holder else None
    state = mounts.state_of(of_mount)
    room = of_mount if state is mounts.State.ANSWERS else of_disk
    return MountStatus(
        store_path=entry.source,
        mountpoint=entry.mountpoint,
        alive=state is not mounts.State.DEAD,
        answers=state is mounts.State.ANSWERS,
        stopped=pid is not None and state is mounts.State.SILENT and owner.is_stopped(pid),
        read_only=entry.read_only,
        pid=pid,
        since=_local_time(holder.since_s) if holder else None,
        free_bytes=room[1] if room else None,
        recovery=_last_recovery(logs.path_for(entry.mountpoint)),
    )


def _local_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


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
