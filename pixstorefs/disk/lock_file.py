"""Who owns a store: one process at a time, told by a locked file with its pid and mountpoint."""

import contextlib
import errno
import fcntl
import json
import os

from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.errors import StoreInUse, StoreNotWritable

LOCK_FILE = "lock"
# What we write there is shorter than a path can be.
_LIMIT_BYTES = 64 << 10
# PID_MAX_LIMIT of Linux, proc_sys_kernel(5).
_PID_LIMIT = 1 << 22
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Ownership:
    """The lock of a store, held from construction to `release`; the kernel releases it when we die."""

    def __init__(self, store: Folder | str, mountpoint: str | None) -> None:
        """Take the lock of a store, of which `folder` is the folder; a path is opened, and closed at the end.

        Raises StoreInUse, naming the owner; StoreNotWritable, OddFile, OSError.
        """
        self.folder = Folder.at(store) if isinstance(store, str) else store
        self._opened_folder = isinstance(store, str)
        try:
            self._fd = self._open()
            try:
                self._lock()
            except BaseException:
                os.close(self._fd)
                raise
        except BaseException:
            self._close_folder()
            raise
        self._tell(json.dumps({"pid": os.getpid(), "mountpoint": mountpoint}))

    def release(self) -> None:
        """Give the store free. The file stays: removing a lock file would race with the next owner."""
        self._tell("")
        os.close(self._fd)
        self._close_folder()

    def _open(self) -> int:
        try:
            return self.folder.open_own(LOCK_FILE, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            path = self.folder.path
            raise StoreNotWritable(
                f"the store {path} cannot be written ({error.strerror}). Nothing was changed. Its images can "
                f"still be read: pixstorefs mount --read-only {path} MOUNTPOINT"
            ) from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUse(_who(self.folder.path, os.pread(self._fd, _LIMIT_BYTES, 0))) from None

    def _tell(self, owner: str) -> None:
        """Say who owns the store. A disk that refuses it is no reason to refuse the store: the lock is."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, owner.encode(), 0)

    def _close_folder(self) -> None:
        if self._opened_folder:
            self.folder.close()


def own(store: Folder | str, mountpoint: str | None, *, read_only: bool) -> Ownership | None:
    """Take the lock of a store; None where it is only read, and cannot be written or has no lock file.

    Tried, not asked of access(2): a disk that its file system made read-only after an error may still say
    that it can be written. Raises as `Ownership` does.
    """
    try:
        return Ownership(store, mountpoint)
    except (StoreNotWritable, OddFile):
        if not read_only:
            raise
        return None


def read_note(store: Folder) -> tuple[bytes, float]:
    """What the lock file says, and since when, in seconds of time(2). Raises OSError, OddFile."""
    fd, status = store.open_file(LOCK_FILE)
    try:
        return os.read(fd, _LIMIT_BYTES), status.st_mtime
    finally:
        os.close(fd)


def owner_of(note: bytes) -> tuple[int, str | None] | None:
    """The pid and the mountpoint that a lock file tells, None if it tells neither, or something else."""
    try:
        fields = json.loads(note)
        pid, mountpoint = fields["pid"], fields["mountpoint"]
    # The file may hold anything: RecursionError is for deep nesting.
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid <= _PID_LIMIT or not isinstance(mountpoint, str | None):
        return None
    return pid, mountpoint


def _who(store_path: str, note: bytes) -> str:
    owner = owner_of(note)
    if owner is None:
        return f"the store {store_path} is in use by another process"
    pid, mountpoint = owner
    if mountpoint:
        return (
            f"the store {store_path} is already mounted at {mountpoint} by process {pid}. "
            f"Use it there, or unmount it first: pixstorefs umount {mountpoint}"
        )
    return f"the store {store_path} is in use by process {pid}, which works on it without a mount"
