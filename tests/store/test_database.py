"""The database under the index: errors of the disk are told as what they are, and nothing reaches a disk."""

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest
from support import cannot_run

from pixstorefs.errors import CorruptStore, ReadOnlyStore, WrongInstallation
from pixstorefs.index import database as index_database
from pixstorefs.index.database import Database, connect, log_size_bytes

_KEY = bytes(32)


def _made(folder: str) -> str:
    """A database with one table; returns its path."""
    path = os.path.join(folder, "index.db")
    Path(path).touch(0o600)
    with closing(connect(path, _KEY, new=True)) as new:
        new.execute("CREATE TABLE first (content)")  # until there is something, there is no page
        new.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    return path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with one table, and a log that is not empty."""
    path = _made(str(tmp_path))
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


def test_sqlite_is_built_as_the_index_needs_it() -> None:
    """Connections work from several threads, nothing temporary need be a file, nothing is mapped unasked."""
    options = dict(option.partition("=")[::2] for option in apsw.compile_options)
    assert options["THREADSAFE"] == "1"
    # With 0 the setting that keeps temporary tables in memory is ignored.
    assert options.get("TEMP_STORE", "1") != "0"
    assert options["DEFAULT_MMAP_SIZE"] == "0"
    assert "OMIT_WAL" not in options
    assert "unix-excl" in apsw.vfs_names()


@pytest.mark.parametrize("missing", ["module", "cipher"])
def test_sqlite_without_the_cipher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """What cannot encrypt is never written to; nor is the index it cannot open taken for a damaged one."""
    if missing == "module":
        monkeypatch.delattr(apsw, "mc_version")
    else:
        monkeypatch.setattr(index_database, "_CIPHER", "none-such")
    new = tmp_path / "new.db"
    new.touch()
    with pytest.raises(WrongInstallation, match="apsw-sqlite3mc"):
        connect(str(new), _KEY, new=True)
    assert not new.read_bytes()


def test_database_that_may_only_be_read() -> None:
    """It is refused where it would be written to: SQLite would map the index of its log to read it."""
    if os.geteuid() != 0:
        cannot_run("becoming somebody else needs root")
    with tempfile.TemporaryDirectory() as folder:
        path = _made(folder)
        os.chmod(path, 0o444)
        os.chmod(folder, 0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(ReadOnlyStore, match="make it and its folder writable"):
                Database(path, _KEY)
        finally:
            os.seteuid(0)
        assert not os.path.exists(path + "-shm")
