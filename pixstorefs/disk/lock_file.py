"""Who owns a store: one process at a time, told by a locked file with its pid and mountpoint."""

import contextlib
import fcntl
import json
import os

from pixstorefs.errors import StoreInUse

LOCK_FILE = "lock"


class Ownership:
    """The lock of a store, held from construction to `release`; the kernel releases it when we die."""

    def __init__(self, store_path: str, mountpoint: str | None) -> None:
        """Take the lock. Raises StoreInUse, naming the owner."""
        path = os.path.join(store_path, LOCK_FILE)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 65536, 0)
            os.close(self._fd)
            raise StoreInUse(_who(store_path, owner)) from None
        self._tell(json.dumps({"pid": os.getpid(), "mountpoint": mountpoint}))

    def release(self) -> None:
        """Give the store free. The file stays: removing a lock file would race with the next owner."""
        self._tell("")
        os.close(self._fd)

    def _tell(self, owner: str) -> None:
        """Say who owns the store. A disk that refuses it is no reason to refuse the store: the lock is."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, owner.encode(), 0)


def own(store_path: str, mountpoint: str | None, *, read_only: bool) -> Ownership | None:
    """Take the lock of a store; None where it is only read and lies on media that cannot be written.

    Raises StoreInUse, naming the owner.
    """
    if read_only and not os.access(store_path, os.W_OK):
        return None
    return Ownership(store_path, mountpoint)


def _who(store_path: str, owner: bytes) -> str:
    try:
        fields = json.loads(owner)
        pid, mountpoint = int(fields["pid"]), fields["mountpoint"]
    except (ValueError, KeyError, TypeError):
        return f"the store {store_path} is in use by another process"
    if mountpoint:
        return (
            f"the store {store_path} is already mounted at {mountpoint} by process {pid}. "
            f"Use it there, or unmount it first: pixstorefs umount {mountpoint}"
        )
    return f"the store {store_path} is in use by process {pid}, which works on it without a mount"
