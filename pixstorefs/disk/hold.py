"""A hold: a file of the store that readers lock, so that its owner leaves for later what would disturb them.

A reader has a shared flock(2) on it for as long as it needs; the owner wants an exclusive one, and does not
wait for long. The kernel ends the hold of a process that died. Rejected: asking the daemon over a socket,
which needs a protocol, and somebody who notices that the other end is gone.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pixstorefs.disk.file_lock import FileLock
from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.disk.folder import Folder, OddFile

# There is none, and we cannot make one: whoever owns the store has never asked for it, or cannot either.
_NOT_WRITABLE = FULL_ERRNOS | {errno.EROFS, errno.EACCES}
# Of us, not of the file: somebody may well hold it.
_CANNOT_ASK_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
_LOOK_AGAIN_S = 0.02


@contextmanager
def held(store: Folder, name: str) -> Iterator[None]:
    """Hold it meanwhile, where it is or can be made. Waits for an owner at work. Raises OSError, OddFile."""
    try:
        lock = _opened(store, name, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        yield
        return
    try:
        lock.share(wait=True)
        yield
    finally:
        lock.close()


@contextmanager
def unless_held(store: Folder, name: str, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Whether nobody holds it, after a wait of at most that long; nobody begins to until the block ends.

    Where the file can be neither opened nor made (a full disk, or no file), no reader can hold it either.
    """
    lock: FileLock | None = None
    try:
        try:
            lock = _opened(store, name, os.O_RDWR)
        except OddFile:
            free = True
        except OSError as error:
            free = error.errno not in _CANNOT_ASK_NOW
        else:
            free = _locked(lock, time.monotonic() + wait_s)
        yield free
    finally:
        if lock is not None:
            lock.close()


def _locked(lock: FileLock, deadline_s: float) -> bool:
    while not lock.take():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_LOOK_AGAIN_S)
    return True


def _opened(store: Folder, name: str, access: int) -> FileLock:
    try:
        return FileLock(store.open_own(name, access))
    except FileNotFoundError:
        return FileLock(store.open_own(name, access | os.O_CREAT))
