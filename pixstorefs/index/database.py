"""The database under the index: one encrypted SQLite file, and when what it holds is durable.

One connection does all the work, with synchronous=NORMAL: a commit does not wait for the disk. Durability is
the barrier's job: it syncs the write-ahead log (`sync_log`) and moves it into the database (`checkpoint`)
from its own thread. A torn log ends, by its checksums, at an older consistent state.

When all of the log is in the database, the next transaction writes it anew from its beginning: overwriting
costs 5.5 us a page, a log that grows 9 (measured). SQLite syncs the log's new header before anything behind
it, the one time in a thousand pages that a transaction waits for the disk. With synchronous=OFF it would not,
and a power loss could leave the old header with old pages behind it, which then took the place of newer ones.

No file of a store is mapped to be read or written: where a disk is full, a quota used up or a file cut, a
mapped page ends the process by SIGBUS, at any access. So the index of the log, which SQLite otherwise has in
a mapped `index.db-shm`, is on the heap (its VFS unix-excl). The connections of this process share it. Another
process has no part in it, and reads a copy of both files: see `capture`. Rejected: locking_mode=EXCLUSIVE,
which allows one connection alone.
"""

import contextlib
import logging
import os
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apsw

from pixstorefs.disk.files import FULL_ERRNOS, affordable_size, fill_with_zeros, sync_directory
from pixstorefs.disk.hold import unless_held
from pixstorefs.disk.page_lock import PageLock
from pixstorefs.errors import CorruptStore, NoSpace, PixstoreError, ReadOnlyStore

log = logging.getLogger(__name__)

# Above this size the log is emptied even if that makes one writer wait for the disk.
LOG_LIMIT_BYTES = 256 << 20
_CHECKPOINT_FROM_BYTES = 4 << 20
# So long the log has its blocks before they are written to, and what a burst made longer is given back.
# Anybody may lock as much (systemd's DefaultLimitMEMLOCK).
_LOG_KEPT_BYTES = 8 << 20
_PART_OF_DISK = 32
_PAGE_SIZE_BYTES = 4096
LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_BUSY_TIMEOUT_MS = 10_000
_STEPS_BETWEEN_SIGNALS = 100_000
_VFS = "multipleciphers-unix-excl"
_LOG_HOLD_FILE = "hold-log"


class Database:
    """An open database. Not thread-safe: the store's lock is held around every call but where it says so."""

    def __init__(self, path: str, key: bytes, *, read_only: bool = False, copy_of: str | None = None) -> None:
        """Open an existing database, as `connect` does. Raises CorruptStore, ReadOnlyStore, OSError."""
        self.path = copy_of or path
        self._key = key
        if not os.path.exists(path):
            raise index_is_missing(path)
        self._db = connect(path, key, read_only=read_only, copy_of=copy_of)
        # One cursor for everything: each statement is run to its end before the next one begins.
        self._cursor = self._db.cursor()
        self._checkpointer: apsw.Connection | None = None
        self._log_fd = -1
        self._log_at_rest = threading.Lock()
        # Of the log as it is now, not of the file: behind them lies what was there before it began anew.
        self._log_pages = 0
        self._log_lock = PageLock()
        self._db.set_wal_hook(self._note_log)

    def _note_log(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def close(self) -> None:
        """Close without syncing anything."""
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        self._log_lock.release()
        if self._checkpointer:
            self._checkpointer.close()
            self._checkpointer = None
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside become one: all of them or, on any exception, none."""
        with translated(self.path, self._db):
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    # What failed may be ending it already: SQLite then refuses, and the first error counts.
                    with contextlib.suppress(PixstoreError):
                        self.execute("ROLLBACK")
                raise

    def execute(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement to its end: a damaged page may show at any row."""
        try:
            rows: list[tuple[Any, ...]] = self._cursor.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise _translation(self.path, error, self._db) from error
        return rows

    def one(self, sql: str, *bindings: Any) -> tuple[Any, ...] | None:
        rows = self.execute(sql, bindings)
        return rows[0] if rows else None

    def each(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement one by one: more of them than should be in memory."""
        with translated(self.path, self._db):
            yield from self._db.execute(sql)

    def pragma(self, name: str) -> object:
        """The value of a setting."""
        return self._db.pragma(name)

    # Durability

    def sync_log(self) -> None:
        """Make every committed transaction durable. Called without the store's lock, from any thread.

        Raises CorruptStore where somebody deleted the log: no sync of what has no name would be of use.
        """
        if self._log_fd < 0:
            try:
                self._log_fd = os.open(self.path + "-wal", os.O_RDONLY)
            except FileNotFoundError:
                return
            sync_directory(os.path.dirname(self.path))
        os.fdatasync(self._log_fd)
        if os.fstat(self._log_fd).st_nlink == 0:
            raise _log_is_lost(self.path)

    @contextlib.contextmanager
    def log_at_rest(self, *, wait: bool) -> Iterator[bool]:
        """For whoever reads the index for long in this process, or empties its log: not both at a time.

        Emptying waits for readers, and the store's lock would be held while it did. Without `wait` yields
        False where somebody else is at it.
        """
        held = self._log_at_rest.acquire(blocking=wait)
        try:
            yield held
        finally:
            if held:
                self._log_at_rest.release()

    @contextlib.contextmanager
    def log_unread(self, *, wait_s: float = 0.0) -> Iterator[bool]:
        """For whoever empties the log: whether nobody copies or reads it, here or in another process.

        `wait_s`: how long to wait for other processes, which see `index.db` unchanged meanwhile.
        """
        with (
            self.log_at_rest(wait=False) as at_rest,
            unless_held(log_hold_path(self.path), wait_s=wait_s) as unheld,
        ):
            yield at_rest and unheld

    def checkpoint_is_due(self) -> bool:
        """Whether the log is large enough to be moved into the database."""
        return self._log_pages * _PAGE_SIZE_BYTES >= _CHECKPOINT_FROM_BYTES

    def require_whole_log(self) -> None:
        """Raises CorruptStore where somebody cut the log (with the lock held, inside `log_unread`).

        SQLite takes a hole in it for an empty page, and would write that into the database. So the log is
        moved there only if no page that counts is in the hole, as far as SQLite can tell.
        """
        if self.log_seems_whole():
            return
        with contextlib.suppress(PixstoreError), closing(Database(self.path, self._key)) as anew:
            if anew.execute("PRAGMA quick_check(1)") == [("ok",)]:
                self.empty_log(checkpointed=self.checkpoint())
        raise _log_is_lost(self.path)

    def log_seems_whole(self) -> bool:
        """Whether every committed frame is in the log. Called without the lock: then False may be wrong."""
        pages = self._log_pages
        if self._log_fd < 0 or not pages:
            return True
        frames_bytes = written_log_bytes(self._log_fd) - LOG_HEADER_BYTES
        return frames_bytes >= pages * (_FRAME_HEADER_BYTES + _PAGE_SIZE_BYTES)

    def checkpoint(self) -> bool:
        """Copy the log into the database, synced, without blocking the writer. Called without the lock.

        Inside `log_unread`, unless nobody else knows the file. Returns whether all of it is copied: then it
        begins anew, and `empty_log` costs no disk wait.
        """
        if self._checkpointer is None:
            self._checkpointer = connect(self.path, self._key)
        with translated(self.path, self._checkpointer):
            self._checkpointer.execute("PRAGMA synchronous=FULL").fetchall()
            self._checkpointer.set_busy_timeout(0)
            frames, copied = self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return frames == copied

    def prepare_log(self) -> None:
        """Give the log its blocks, zeros behind what is in it (with the lock held). Never fails.

        SQLite takes them for the end of the log. A sync of it is then one write and one flush of the disk.
        Not where they may not be locked in memory: see `page_lock`.
        """
        try:
            size_bytes = affordable_size(os.path.dirname(self.path), _LOG_KEPT_BYTES, _PART_OF_DISK)
            fd = os.open(self.path + "-wal", os.O_RDWR | os.O_NOFOLLOW)
            try:
                length_bytes = os.fstat(fd).st_size
                fill_with_zeros(fd, size_bytes)
                if not self._log_lock.hold(fd, size_bytes):
                    os.ftruncate(fd, length_bytes)
            finally:
                os.close(fd)
        except OSError as error:
            log.info("the log of the index grows as it is written: %s", error)

    def keep_log(self) -> bool:
        """All of the log was copied: have it stay in memory, to be overwritten. Called without the lock.

        False where it is too long for that: then `empty_log` has to follow.
        """
        size_bytes = log_size_bytes(self.path)
        return size_bytes <= _LOG_KEPT_BYTES and self._log_lock.hold(self._log_fd, size_bytes)

    def empty_log(self, *, checkpointed: bool) -> None:
        """Truncate the log after a complete checkpoint (with the lock held, and inside `log_unread` as that).

        A log that new frames reached meanwhile stays, unless it is above LOG_LIMIT_BYTES.
        """
        if self._checkpointer is None:
            return
        if not checkpointed and log_size_bytes(self.path) < LOG_LIMIT_BYTES:
            return
        with translated(self.path, self._checkpointer):
            self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._log_pages = 0


def connect(
    path: str, key: bytes, *, read_only: bool = False, copy_of: str | None = None, journal: bool = True
) -> apsw.Connection:
    """A connection with the index's settings. Raises CorruptStore, ReadOnlyStore, OSError.

    `read_only` is for a store that nobody changes meanwhile. `copy_of` is for a copy, database and log, that
    nobody else knows and that is only looked at; messages name what it is a copy of. Without `journal`
    nothing protects what is written: for a file that is thrown away if it fails.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    name = uri(path)
    if read_only:
        flags = apsw.SQLITE_OPEN_READONLY
        # immutable: no log, no locks: works on read-only media.
        name += "&immutable=1"
    with translated(copy_of or path):
        db = apsw.Connection(name, flags=flags | apsw.SQLITE_OPEN_URI, statementcachesize=128)
        try:
            if not read_only and db.readonly("main"):
                # SQLite opens such a file for reading, and then maps the index of its log all the same.
                raise ReadOnlyStore(f"{path} cannot be written: make it and its folder writable for you")
            _set_up(db, key)
            if copy_of:
                db.execute("PRAGMA query_only=ON").fetchall()
                # A check's long statements come by here, so that Python can take a signal: Ctrl-C ends them.
                db.set_progress_handler(lambda: False, _STEPS_BETWEEN_SIGNALS)
            elif not read_only:
                # One at a time, each to its end: APSW stops a list of statements at the first row.
                for setting in (
                    "journal_mode=WAL" if journal else "journal_mode=OFF",
                    "synchronous=NORMAL" if journal else "synchronous=OFF",
                    "wal_autocheckpoint=0",
                ):
                    db.execute(f"PRAGMA {setting}").fetchall()
        except BaseException:
            db.close()
            raise
    return db


def _set_up(db: apsw.Connection, key: bytes) -> None:
    """What every connection needs, and a first look at the file."""
    db.pragma("cipher", "aegis")
    db.pragma("key", "raw:" + key.hex())
    db.set_busy_timeout(_BUSY_TIMEOUT_MS)
    db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    # Closing the last connection would copy the log into the database unsynced, and delete it.
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    # Plans do not depend on values: SQLite would parse again for each of them (lookup 42 -> 8 us).
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    # What a statement sorts must not reach a disk in the clear, whatever SQLite was compiled with.
    for setting in ("trusted_schema=OFF", "secure_delete=ON", "cell_size_check=ON", "temp_store=MEMORY"):
        db.execute(f"PRAGMA {setting}").fetchall()


def uri(path: str) -> str:
    """The name of a database for SQLite: APSW takes text only, and a path may hold bytes that are none.

    A parameter may follow, behind "&".
    """
    return "file://" + urllib.parse.quote(os.path.abspath(os.fsencode(path))) + f"?vfs={_VFS}"


def index_is_missing(path: str) -> CorruptStore:
    """The error to raise where there is no file at `path`."""
    return CorruptStore(
        f"{path} is missing: the store has lost its index. pixstorefs check --repair restores it"
    )


def _log_is_lost(path: str) -> CorruptStore:
    return CorruptStore(
        f"another program cut or deleted {path}-wal, the log of the index: what was saved since the store "
        "was mounted may be lost. Copy what you added out of the mount while it shows it; then unmount, "
        "mount, and look what is missing"
    )


def log_hold_path(path: str) -> str:
    """The file that holds the log of the index at `path`: while it is locked, only appending is allowed."""
    return os.path.join(os.path.dirname(path), _LOG_HOLD_FILE)


@contextlib.contextmanager
def translated(path: str, db: apsw.Connection | None = None) -> Iterator[None]:
    """Turn SQLite's errors into ours: one class per reaction. `db` knows the system's error behind them."""
    try:
        yield
    except apsw.Error as error:
        raise _translation(path, error, db) from error


def _translation(path: str, error: apsw.Error, db: apsw.Connection | None) -> PixstoreError:
    match error:
        case apsw.FullError():
            return NoSpace(f"the disk under {path} is full: {error}")
        case apsw.ReadOnlyError():
            return ReadOnlyStore(f"{path} cannot be written: {error}")
        case apsw.NotADBError() | apsw.CorruptError():
            return CorruptStore(
                f"{path} is damaged, or was encrypted under another key ({error}). The images' objects are "
                "untouched; do not write to the store: pixstorefs check --repair restores the index"
            )
        case apsw.IOError() if db is not None and db.system_errno in FULL_ERRNOS:
            # SQLite calls a full disk so, but not a quota.
            return NoSpace(f"the quota of the disk under {path} is used up: {error}")
        case apsw.IOError():
            return CorruptStore(f"the disk failed under {path}: {error}")
        case _:
            return CorruptStore(f"{path}: {type(error).__name__}: {error}")


def log_size_bytes(path: str) -> int:
    """Length of the write-ahead log of the index at `path`, 0 where there is none."""
    try:
        return os.stat(path + "-wal").st_size
    except FileNotFoundError:
        return 0


def written_log_bytes(log: int) -> int:
    """How much of a log counts: behind it are zeros, or frames from before it began anew.

    Layout: https://sqlite.org/fileformat2.html#walformat
    """
    header = os.pread(log, LOG_HEADER_BYTES, 0)
    if len(header) < LOG_HEADER_BYTES:
        return 0
    frame_bytes = _FRAME_HEADER_BYTES + int.from_bytes(header[8:12])
    end = LOG_HEADER_BYTES
    while os.pread(log, _FRAME_HEADER_BYTES, end)[8:16] == header[16:24]:
        end += frame_bytes
    return end
