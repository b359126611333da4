"""The database under the index: errors of the disk are told as what they are, and nothing reaches a disk."""

import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest

from pixstorefs.errors import CorruptStore
from pixstorefs.index.database import Database, connect, log_size_bytes

_KEY = bytes(32)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with one table, and a log that is not empty."""
    path = str(tmp_path / "index.db")
    Path(path).touch(0o600)
    with closing(connect(path, _KEY, new=True)) as new:
        new.execute("CREATE TABLE first (content)")  # until there is something, there is no page
        new.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    with closing(Database(path, _KEY)) as database:
        with database.transaction():
            database.execute("CREATE TABLE value (content)")
        yield database


@contextmanager
def _no_file_above(size_bytes: int) -> Iterator[None]:
    """Writing behind that size fails with EFBIG; Python ignores the signal that comes with it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _insert(database: Database, content: bytes) -> None:
    with database.transaction():
        database.execute("INSERT INTO value VALUES (?)", (content,))


def test_the_first_error_of_a_transaction_is_told(database: Database) -> None:
    """Not that it could not be rolled back; and the next one works when the disk does again."""
    _insert(database, b"before")
    with _no_file_above(log_size_bytes(database.path)):
        for content in (b"small", bytes(10_000_000)):
            with pytest.raises(CorruptStore, match=r"the disk failed under .*disk I/O error"):
                _insert(database, content)
    _insert(database, b"after")
    assert database.execute("SELECT content FROM value ORDER BY rowid") == [(b"before",), (b"after",)]


def test_nothing_is_sorted_on_a_disk(database: Database) -> None:
    """Temporary tables and sorting stay in memory, whatever SQLite was compiled with; nothing is mapped."""
    assert database.pragma("temp_store") == 2
    assert database.pragma("mmap_size") == 0
    assert not Path(database.path + "-shm").exists()
