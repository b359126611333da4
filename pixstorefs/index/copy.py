"""Copies of the index: how one is taken from an index in use, and how one is looked at.

A copy is a database like the index itself: the same key, every page encrypted and authenticated.
"""

import os
from collections.abc import Callable
from contextlib import closing

import apsw

from pixstorefs.disk.files import removed_on_error
from pixstorefs.errors import CorruptStore
from pixstorefs.index.database import connect, translated
from pixstorefs.index.rows import Index, State

# Between two steps the copying thread looks whether it should stop; 256 KiB take about a millisecond.
_STEP_PAGES = 64


def take_copy(index_path: str, key: bytes, target: str, go_on: Callable[[], None]) -> None:
    """Write a consistent copy of an index that this process has open to the new file `target`, synced.

    All of it comes from one read transaction on a connection of its own: nobody's writes make it start anew,
    and nobody waits for it, but the log cannot be emptied meanwhile (see Database.log_at_rest). `go_on` is
    called between steps and raises to give up. Raises CorruptStore, NoSpace, OSError; no file stays then.
    """
    with removed_on_error(target):
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with (
            translated(index_path),
            closing(connect(index_path, key)) as source,
        ):
            source.execute("BEGIN")
            source.execute("SELECT one FROM state").fetchall()
            _back_up(source, target, key, go_on)
        sync_file(target)


def copy_open(index: Index, key: bytes, target: str) -> None:
    """Write what an open index sees to the new file `target`, synced.

    For one that lost its place: by path another one would be copied. The store's lock is held meanwhile.
    Raises CorruptStore, NoSpace, OSError.
    """
    with removed_on_error(target):
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        _back_up(index.connection, target, key, lambda: None)
        sync_file(target)


def _back_up(source: apsw.Connection, target: str, key: bytes, go_on: Callable[[], None]) -> None:
    # The file is nobody's index yet: no journal beside it, and synced once when it is complete.
    with (
        closing(connect(target, key, journal=False, new=True)) as copy,
        translated(target, copy),
        copy.backup("main", source, "main") as backup,
    ):
        while not backup.step(_STEP_PAGES):
            go_on()


def state_of(path: str, key: bytes, store_id: bytes) -> State:
    """The state row of a copy: which moment it holds. Raises CorruptStore, NewerFormat, OSError."""
    with closing(Index(path, key, store_id, read_only=True)) as index:
        return index.state()


def verify(path: str, key: bytes, store_id: bytes) -> None:
    """Read every page of a copy, from the disk. Raises CorruptStore, NewerFormat, OSError."""
    # What the page cache holds is no proof of what the disk does.
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with closing(Index(path, key, store_id, read_only=True)) as index:
        found = [row[0] for row in index.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise CorruptStore(f"{path} is damaged: {'; '.join(map(str, found))}")


def sync_file(path: str) -> None:
    """Make the content of a file durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
