"""The hold: while a snapshot is taken, the objects of the moment it shows are not unlinked.

A snapshot holds a shared flock(2) on the file `hold` of the store from before it reads the index until it has
every object; whoever is about to unlink retired objects wants it for itself, and does not wait: what is held
stays for a later barrier. The kernel ends the hold of a process that died. Rejected: asking the daemon over a
socket, which needs a protocol, and somebody who notices that the other end is gone.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pixstorefs.disk.folder import Folder, OddFile

HOLD_FILE = "hold"

# There is none, and we cannot make one: whoever owns the store has never unlinked anything.
_NOT_WRITABLE = (errno.EROFS, errno.EACCES)


@contextmanager
def held(store: Folder) -> Iterator[None]:
    """Nothing is unlinked meanwhile, except on a full disk. Waits for who unlinks now.

    Raises OSError, OddFile.
    """
    try:
        fd = _opened(store, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


@contextmanager
def unless_held(store: Folder) -> Iterator[bool]:
    """Whether nobody holds the objects; nobody begins to until the block ends."""
    fd = -1
    try:
        # A full disk, on which no snapshot can have made it either; or what none can hold.
        with contextlib.suppress(OSError, OddFile):
            fd = _opened(store, os.O_RDWR)
        yield fd < 0 or _locked(fd)
    finally:
        if fd >= 0:
            os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(store: Folder, access: int) -> int:
    try:
        return store.open_own(HOLD_FILE, access)
    except FileNotFoundError:
        return store.open_own(HOLD_FILE, access | os.O_CREAT)
