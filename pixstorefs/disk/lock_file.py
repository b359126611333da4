"""Who owns a store: one process at a time, told by a locked file with its pid and mountpoint.

The lock reaches whoever has the same kernel. The owner note (`owner_note`) reaches everybody else.
"""

import contextlib
import errno
import json
import logging
import os
import shlex
import threading
import time

from pixstorefs.disk import owner_note
from pixstorefs.disk.file_lock import FileLock
from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.owner_note import DamagedNote, OwnerNote
from pixstorefs.errors import NoSpace, ReadOnlyStore, StoreInUse, StoreNotWritable

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
# What we write there is shorter than a path can be.
_LIMIT_BYTES = 64 << 10
# PID_MAX_LIMIT of Linux, proc_sys_kernel(5).
_PID_LIMIT = 1 << 22
# A file system that does not answer should not keep an unmount from ending.
_HEART_END_S = 5.0
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Ownership:
    """The lock of a store, held from construction to `release`; the kernel releases it when we die."""

    def __init__(self, store: Folder | str, mountpoint: str | None, *, break_lock: bool = False) -> None:
        """Take the lock of a store, of which `folder` is the folder; a path is opened, and closed at the end.

        `break_lock`: a person says that the owner on another machine is gone.
        Raises StoreInUse, naming the owner; StoreNotWritable, NoSpace, OddFile, OSError.
        """
        self.folder = Folder.at(store) if isinstance(store, str) else store
        self._opened_folder = isinstance(store, str)
        try:
            self._lock = FileLock(self._open())
            try:
                self._take()
                self._note = self._take_note(break_lock)
            except BaseException:
                self._lock.close()
                raise
        except BaseException:
            self._close_folder()
            raise
        self._lost: str | None = None
        self._looked_s = _now_s()
        self._tell(json.dumps({"pid": os.getpid(), "mountpoint": mountpoint}))
        self._heart = self._note and not owner_note.flock_is_true(self.folder) and _Heart(self)

    def require(self, *, now: bool = False) -> None:
        """Look whether the store is still ours: if `now` or if the last look was too long ago to write.

        Raises ReadOnlyStore if another owner took it, OSError if nobody can tell.
        """
        looked_s = _now_s()
        if (
            self._lost is None
            and self._note is not None
            and (now or looked_s - self._looked_s >= owner_note.LOOK_AGAIN_S)
        ):
            self._look(self._note)
            self._looked_s = looked_s
        if self._lost is not None:
            raise ReadOnlyStore(self._lost)

    def tell_alive(self) -> None:
        """Give a sign of life to other machines. Raises OSError, OddFile."""
        if self._note is not None and self._lost is None:
            with contextlib.suppress(DamagedNote, FileNotFoundError):
                owner_note.tell_alive(self.folder, self._note)

    def release(self) -> None:
        """Give the store free. The file stays: removing a lock file would race with the next owner."""
        if self._heart:
            self._heart.stop()
        if self._lost is None:
            self._tell("")
            if self._note is not None:
                with contextlib.suppress(OSError, OddFile):
                    owner_note.give_up(self.folder, self._note)
        self._lock.close()
        self._close_folder()

    def _take_note(self, break_lock: bool) -> OwnerNote | None:
        """Become the owner by a note, too; None where there can be none, and the lock is enough."""
        try:
            return owner_note.take(self.folder, break_lock=break_lock)
        except (OSError, OddFile) as error:
            full = isinstance(error, OSError) and error.errno in FULL_ERRNOS
            if owner_note.flock_is_true(self.folder):
                level = logging.INFO if full else logging.WARNING
                log.log(level, "other machines are not told that the store is in use: %s", error)
                return None
            if full:
                raise NoSpace(
                    f"the disk under {self.folder.path} is full, so that other machines cannot be told that "
                    "the store is in use. Nothing was changed. Make a little room there first"
                ) from None
            raise

    def _look(self, note: OwnerNote) -> None:
        try:
            found = self._found_note(note)
        except (DamagedNote, OddFile, OSError):
            if not self._lock_is_enough():
                raise OSError(
                    errno.EIO, "nobody can tell who owns the store", owner_note.OWNER_FILE
                ) from None
        else:
            if found.token != note.token:
                self._lost = (
                    f"the store {self.folder.path} is not ours any more: it was taken over {found.who()}. "
                    "Nothing more is written. What was saved before is there; what is still open here can be "
                    "copied elsewhere. Then unmount"
                )
                log.critical("%s", self._lost)

    def _found_note(self, ours: OwnerNote) -> OwnerNote:
        """The note that is there; ours, made anew, if somebody removed it. Raises as `owner_note.read`."""
        try:
            return owner_note.read(self.folder)
        except FileNotFoundError:
            # Not if it was who takes the store over this moment: his note is there by now, or will be.
            if owner_note.create(self.folder, ours):
                return ours
            raise

    def _lock_is_enough(self) -> bool:
        """Whether flock(2) keeps out everybody, and nobody can have locked another file in place of ours."""
        status = self.folder.status(LOCK_FILE)
        same = status is not None and os.path.samestat(status, os.fstat(self._lock.fd))
        return same and owner_note.flock_is_true(self.folder)

    def _open(self) -> int:
        try:
            return self.folder.open_own(LOCK_FILE, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            path = self.folder.path
            raise StoreNotWritable(
                f"the store {path} cannot be written ({error.strerror}). Nothing was changed. Its images can "
                f"still be read: pixstorefs mount --read-only {shlex.quote(path)} MOUNTPOINT"
            ) from None

    def _take(self) -> None:
        if not self._lock.take():
            raise StoreInUse(_who(self.folder.path, os.pread(self._lock.fd, _LIMIT_BYTES, 0)))

    def _tell(self, owner: str) -> None:
        """Say who owns the store. A disk that refuses it is no reason to refuse the store: the lock is."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock.fd, 0)
            os.pwrite(self._lock.fd, owner.encode(), 0)

    def _close_folder(self) -> None:
        if self._opened_folder:
            self.folder.close()


class _Heart:
    """A thread that gives signs of life until it is stopped."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="owner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it. It may hang with the file system for longer: then it has nothing to tell any more."""
        self._stopped.set()
        self._thread.join(_HEART_END_S)

    def _run(self) -> None:
        while not self._stopped.wait(owner_note.HEARTBEAT_S):
            try:
                self._ownership.require(now=True)
                self._ownership.tell_alive()
            except ReadOnlyStore:
                return
            except (OSError, OddFile) as error:
                log.warning("other machines cannot be told that the store is in use: %s", error)


def _now_s() -> float:
    # Goes on while the machine sleeps, unlike time.monotonic: meanwhile another one may take the store.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def own(
    store: Folder | str, mountpoint: str | None, *, read_only: bool, break_lock: bool = False
) -> Ownership | None:
    """Take the lock of a store; None where it is only read, and cannot be written or has no lock file.

    Tried, not asked of access(2): a disk that its file system made read-only after an error may still say
    that it can be written. Raises as `Ownership` does.
    """
    try:
        return Ownership(store, mountpoint, break_lock=break_lock)
    except (StoreNotWritable, OddFile):
        if not read_only:
            raise
        return None


def is_owned(store: Folder) -> bool:
    """Whether a process has the lock of a store, or takes it this moment."""
    try:
        lock = FileLock(store.open_file(LOCK_FILE)[0])
    except (OSError, OddFile):
        return False
    try:
        # Asking takes a lock for some microseconds; a mount that meets it tries again.
        return not lock.share(wait=False)
    finally:
        lock.close()


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
            f"Use it there, or unmount it first: pixstorefs umount {shlex.quote(mountpoint)}"
        )
    return f"the store {store_path} is in use by process {pid}, which works on it without a mount"
