"""The process that has a store mounted: who it is, and waiting for its end."""

import os
import select
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from pixstorefs.daemon import asking, mounts
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.lock_file import LOCK_FILE, owner_of, read_note


@dataclass(frozen=True, slots=True)
class Owner:
    """What the lock file of a store tells. It is only true while somebody holds the lock.

    `pid` is None where no such process here holds it: it may live in another pid namespace, have ended and
    left its number to a stranger, or have been written there by whoever can write to the store.
    """

    pid: int | None
    mountpoint: str | None
    since_s: float  # seconds of the clock (time(2)) at which it took the store


def read(store_path: str) -> Owner | None:
    """Who last took the store, or None if the lock file tells nothing.

    Whether the lock is still held cannot be asked without taking it for a moment, and that moment
    could refuse somebody else's mount. Callers know from the mount itself that its owner lives.
    """
    try:
        with closing(Folder.at(store_path)) as store:
            note, since_s = read_note(store)
    except (OSError, OddFile):
        return None
    owner = owner_of(note)
    if owner is None:
        return None
    pid, mountpoint = owner
    return Owner(pid if _has_lock(pid, store_path) else None, mountpoint, since_s)


def facts(store_path: str) -> tuple[int | None, str | None, float] | None:
    """`read`, as a question for `asking`: the store may lie on a file system that does not answer."""
    owner = read(store_path)
    return (owner.pid, owner.mountpoint, owner.since_s) if owner else None


def why_silent(entry: mounts.MountEntry) -> str:
    """Why a mount of ours does not answer, and what helps: the end of a sentence."""
    answer = asking.ask({entry.source: partial(facts, entry.source)}).get(entry.source)
    owner = Owner(*answer) if answer else None
    if owner is None or owner.pid is None or owner.mountpoint != entry.mountpoint:
        return "it does not answer"
    if is_stopped(owner.pid):
        return f"process {owner.pid}, which serves it, is stopped: kill -CONT {owner.pid} lets it go on"
    return f"process {owner.pid}, which serves it, does not answer"


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal or a debugger, proc_pid_stat(5). False if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # Its name, in parentheses, may hold any character.
            return file.read().rpartition(") ")[2][:1] in ("T", "t")
    except OSError:
        return False


class Watch:
    """A process, held by descriptor: its pid may be given to another process without confusing us.

    Open it before asking the process to end. Raises ProcessLookupError.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def wait(self, timeout_s: float) -> bool:
        """Whether the process ended within the time."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def close(self) -> None:
        os.close(self._descriptor)


def watch(store_path: str) -> Watch | None:
    """Watch the process that has this store mounted; None where it cannot be found out.

    None, too, for a read-only mount of a store that cannot be written (it takes no lock), for a store
    that was moved while mounted, and from within a container the process does not live in.
    """
    owner = read(store_path)
    try:
        return Watch(owner.pid) if owner and owner.pid is not None else None
    except OSError:
        return None


def _has_lock(pid: int, store_path: str) -> bool:
    """Whether a process holds the lock of a store, by /proc/locks (proc_locks(5)). False if nobody can tell.

    By inode number and without the device: btrfs and overlayfs tell another one there than stat(2) does.
    On NFS a flock is a POSIX lock.
    """
    try:
        inode = os.stat(os.path.join(store_path, LOCK_FILE)).st_ino
        with open("/proc/locks", encoding="ascii") as lines:
            held = [line.split() for line in lines]
    except OSError:
        return False
    return any(
        fields[1] in ("FLOCK", "POSIX") and fields[4] == str(pid) and fields[5].endswith(f":{inode}")
        for fields in held
        if len(fields) > 5  # who waits for a lock has one field more, in front
    )
