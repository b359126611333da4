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
import ctypes
import logging
import os
import stat
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import apsw

from pixstorefs.disk.files import FULL_ERRNOS, affordable_size, fill_with_zeros, sync_directory
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.hold import unless_held
from pixstorefs.disk.page_lock import PageLock
from pixstorefs.errors import (
    CorruptStore,
    NoSpace,
    PixstoreError,
    ReadOnlyStore,
    StoreClosed,
    StoreInUse,
    WrongInstallation,
)
from pixstorefs.index.log import (
    FRAME_HEADER_SIZE_BYTES,
    LOG_HEADER_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    Position,
    salts_in,
)

log = logging.getLogger(__name__)

# Above this size the log is emptied even if that makes one writer wait for the disk.
LOG_LIMIT_BYTES = 256 << 20
_CHECKPOINT_FROM_BYTES = 4 << 20
# So long the log has its blocks before they are written to, and what a burst made longer is given back.
# Anybody may lock as much (systemd's DefaultLimitMEMLOCK).
_LOG_KEPT_BYTES = 8 << 20
_PART_OF_DISK = 32
_BUSY_TIMEOUT_MS = 10_000
_STEPS_BETWEEN_SIGNALS = 100_000
_VFS = "multipleciphers-unix-excl"
_CIPHER = "aegis"
LOG_HOLD_FILE = "hold-log"
# What may not be touched in this process, which was forked while a thread was inside SQLite.
_left_by_fork: list["Database"] = []
_ADVICE = (
    "The images' objects are untouched; do not write to the store: "
    "pixstorefs check --repair restores the index"
)


class Database:
    """An open database. Not thread-safe: the store's lock is held around every call but where it says so."""

    def __init__(self, path: str, key: bytes, *, read_only: bool = False, copy_of: str | None = None) -> None:
        """Open an existing database, as `connect` does. Raises CorruptStore, ReadOnlyStore, OSError."""
        self.path = copy_of or path
        self._key = key
        self._db = connect(path, key, read_only=read_only, copy_of=copy_of)
        # Which file that is. SQLite goes on with it when another one gets its name.
        self._file = os.stat(path)
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

    @property
    def connection(self) -> apsw.Connection:
        """The connection, to copy what it sees: the files that are open, whatever has their names by now."""
        return self._db

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

    def is_at_rest(self) -> bool:
        """In a forked child: whether no thread was reading the index for long, or emptying its log."""
        return self._log_at_rest.acquire(blocking=False)

    def let_go(self, *, at_rest: bool) -> None:
        """In a forked child: give the connections up without changing a file.

        SQLite shares what it knows of a file among all connections of a process, and here that is what the
        parent knew at the fork. So they are closed, for this process may own the store one day.
        `at_rest`: no thread was inside SQLite. Otherwise its locks, the one of its allocator among them, may
        be held for ever: nothing of it is called in this process any more, not even at its end, where APSW
        would close what is open.
        """
        if at_rest:
            self.close()  # which leaves the log as it is: see `_set_up`
            return
        _left_by_fork.append(self)
        for kept in (self, apsw):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))

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

    def size_bytes(self) -> int:
        """How long a copy of it is."""
        [(pages,)] = self.execute("PRAGMA page_count")
        return int(pages) * PAGE_SIZE_BYTES

    # Durability

    def log_position(self) -> Position:
        """How far the log reaches: behind the last commit (with the lock held).

        Raises CorruptStore where somebody cut the log, OSError.
        """
        if not self._log_pages:
            return Position()
        if self._log_fd < 0:
            self._open_log()
        salts = salts_in(self._log_fd)
        if not salts:
            raise _log_is_lost(self.path)
        return Position(salts, self._log_pages)

    def readable_frames(self) -> int:
        """How many frames of the log SQLite reads, up to the last commit that is whole. Changes nothing."""
        with translated(self.path):
            frames, _ = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        return max(frames, 0)

    def sync_log(self) -> None:
        """Make every committed transaction durable. Called without the store's lock, from any thread.

        Raises CorruptStore where the index or its log was removed or replaced, OSError.
        """
        if self._log_fd < 0:
            try:
                self._open_log()
            except FileNotFoundError:
                return
            sync_directory(os.path.dirname(self.path))
        self._require_names()
        os.fdatasync(self._log_fd)

    def _require_names(self) -> None:
        """Refuse to call durable what lies in a file that the next opening will not find."""
        if not _is_file(self.path + "-wal", os.fstat(self._log_fd)):
            raise _log_is_lost(self.path)
        if not _is_file(self.path, self._file):
            raise CorruptStore(
                f"{self.path} was removed or replaced while the store is in use: what is saved now reaches a "
                "file that nobody finds again. Copy what you added out of the mount while it shows it, then "
                "unmount; pixstorefs check --repair restores the rest"
            )

    def _open_log(self) -> None:
        self._log_fd = os.open(self.path + "-wal", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

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
            contextlib.closing(Folder.at(os.path.dirname(self.path))) as folder,
            unless_held(folder, LOG_HOLD_FILE, wait_s=wait_s) as unheld,
        ):
            yield at_rest and unheld

    def checkpoint_is_due(self) -> bool:
        """Whether the log is large enough to be moved into the database."""
        return self._log_pages * PAGE_SIZE_BYTES >= _CHECKPOINT_FROM_BYTES

    def require_whole_log(self, withdraw: Callable[[], bool]) -> None:
        """Raises CorruptStore where somebody cut the log (with the lock held, inside `log_unread`).

        SQLite takes a hole in it for an empty page, and would write that into the database. So the log is
        moved there only if no page that counts is in the hole, as far as SQLite can tell. `withdraw` as
        `empty_log` takes it.
        """
        if self.log_seems_whole():
            return
        with contextlib.suppress(PixstoreError), closing(Database(self.path, self._key)) as anew:
            if anew.execute("PRAGMA quick_check(1)") == [("ok",)]:
                self.empty_log(checkpointed=self.checkpoint(), withdraw=withdraw)
        raise _log_is_lost(self.path)

    def log_seems_whole(self) -> bool:
        """Whether every committed frame is in the log. Called without the lock: then False may be wrong."""
        pages = self._log_pages
        if self._log_fd < 0 or not pages:
            return True
        frames_bytes = written_log_bytes(self._log_fd) - LOG_HEADER_SIZE_BYTES
        return frames_bytes >= pages * (FRAME_HEADER_SIZE_BYTES + PAGE_SIZE_BYTES)

    def checkpoint(self) -> bool:
        """Copy the log into the database, synced, without blocking the writer. Called without the lock.

        Inside `log_unread`, unless nobody else knows the file. Returns whether all of it is copied: then it
        begins anew, and `empty_log` costs no disk wait.
        """
        self.open_checkpointer()
        assert self._checkpointer is not None
        with translated(self.path, self._checkpointer):
            frames, copied = self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return frames == copied

    def open_checkpointer(self) -> None:
        """Open the connection that `checkpoint` uses: it opens the file by its name a second time."""
        if self._checkpointer is None:
            if self._log_fd >= 0:
                self._require_names()
            self._checkpointer = connect(self.path, self._key)
            with translated(self.path, self._checkpointer):
                self._checkpointer.execute("PRAGMA synchronous=FULL").fetchall()
                self._checkpointer.set_busy_timeout(0)

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

    def empty_log(self, *, checkpointed: bool, withdraw: Callable[[], bool] | None = None) -> None:
        """Truncate the log after a complete checkpoint (with the lock held, and inside `log_unread` as that).

        `withdraw` is called before: whoever wrote down how far the log has to reach takes that back, and
        says whether that is done. If it is not, the log stays. A log that new frames reached meanwhile
        stays, unless it is above LOG_LIMIT_BYTES.
        """
        if self._checkpointer is None:
            return
        if not checkpointed and log_size_bytes(self.path) < LOG_LIMIT_BYTES:
            return
        if withdraw is not None and not withdraw():
            return
        with translated(self.path, self._checkpointer):
            self._checkpointer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._log_pages = 0


def connect(
    path: str,
    key: bytes,
    *,
    read_only: bool = False,
    copy_of: str | None = None,
    journal: bool = True,
    new: bool = False,
) -> apsw.Connection:
    """A connection with the index's settings. Raises CorruptStore, ReadOnlyStore, OSError.

    `read_only` is for a store that nobody changes meanwhile. `copy_of` is for a copy, database and log, that
    nobody else knows and that is only looked at; messages name what it is a copy of. Without `journal`
    nothing protects what is written: for a file that is thrown away if it fails. `new`: the caller has just
    made the file, and it is empty. Every other file is never created, nor taken for a database without rows.
    """
    if _left_by_fork:
        raise StoreInUse(
            f"this process was forked while a thread was using {_left_by_fork[0].path}, and SQLite can open "
            "nothing here any more: open the store in a process that is started anew (multiprocessing: spawn)"
        )
    if not new:
        _require_pages(path, copy_of or path)
    flags = apsw.SQLITE_OPEN_READWRITE
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
    encrypt(db, key)
    db.set_busy_timeout(_BUSY_TIMEOUT_MS)
    db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    # Closing the last connection would copy the log into the database unsynced, and delete it.
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    # Plans do not depend on values: SQLite would parse again for each of them (lookup 42 -> 8 us).
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    # What a statement sorts must not reach a disk in the clear, whatever SQLite was compiled with.
    for setting in ("trusted_schema=OFF", "secure_delete=ON", "cell_size_check=ON", "temp_store=MEMORY"):
        db.execute(f"PRAGMA {setting}").fetchall()


def encrypt(db: apsw.Connection, key: bytes) -> None:
    """Have a connection open and seal every page with the index key. Raises WrongInstallation."""
    # SQLite ignores a pragma that it does not know, and would write an index in the clear. One with other
    # ciphers raises.
    try:
        encrypts = db.pragma("cipher", _CIPHER) == _CIPHER
    except apsw.SQLError:
        encrypts = False
    if not encrypts:
        raise _cannot_encrypt()
    db.pragma("key", "raw:" + key.hex())


def _cannot_encrypt() -> WrongInstallation:
    # The package apsw has the same module as apsw-sqlite3mc, without a cipher.
    return WrongInstallation(
        f"the SQLite that Python finds ({apsw.__file__}) cannot encrypt an index. Nothing was opened or "
        "changed. Install apsw-sqlite3mc, and not apsw beside it: "
        "pip uninstall -y apsw apsw-sqlite3mc && pip install apsw-sqlite3mc"
    )


def uri(path: str) -> str:
    """The name of a database for SQLite: APSW takes text only, and a path may hold bytes that are none.

    A parameter may follow, behind "&". Raises WrongInstallation.
    """
    if not hasattr(apsw, "mc_version"):
        raise _cannot_encrypt()
    return "file://" + urllib.parse.quote(os.path.abspath(os.fsencode(path))) + f"?vfs={_VFS}"


def _require_pages(path: str, name: str) -> None:
    """Refuse what cannot hold a database before SQLite sees it; messages call it `name`.

    SQLite makes an empty file an empty database, authentic under our key, and deletes its log: every row of
    the store would be gone, and nothing would tell. Raises CorruptStore, OSError.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise index_is_missing(name) from None
    if not stat.S_ISREG(status.st_mode):
        raise CorruptStore(f"{name} is no file: the store has lost its index. {_ADVICE}")
    if status.st_size < PAGE_SIZE_BYTES:
        raise CorruptStore(f"{name} is damaged: it has {status.st_size} bytes. {_ADVICE}")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path + "-wal").st_mode):
            raise CorruptStore(f"{name}-wal is no file: the index has lost its log. {_ADVICE}")


def index_is_missing(path: str) -> CorruptStore:
    """The error to raise where there is no file at `path`."""
    return CorruptStore(f"{path} is missing: the store has lost its index. {_ADVICE}")


def _is_file(path: str, status: os.stat_result) -> bool:
    """Whether a name still is that of a file that was opened by it."""
    try:
        return os.path.samestat(os.stat(path), status)
    except FileNotFoundError:
        return False


def _log_is_lost(path: str) -> CorruptStore:
    return CorruptStore(
        f"another program cut or deleted {path}-wal, the log of the index: what was saved since the store "
        "was mounted may be lost. Copy what you added out of the mount while it shows it, and unmount. If "
        "the next mount is refused, pixstorefs check --repair brings back what is left"
    )


class DiskRefuses(CorruptStore):
    """SQLite cannot read or write a file, whatever is in it. Who writes to another disk tells it apart."""


@contextlib.contextmanager
def translated(path: str, db: apsw.Connection | None = None) -> Iterator[None]:
    """Turn SQLite's errors into ours: one class per reaction. `db` knows the system's error behind them."""
    try:
        yield
    except apsw.Error as error:
        raise _translation(path, error, db) from error


def _translation(path: str, error: apsw.Error, db: apsw.Connection | None) -> PixstoreError:
    match error:
        case apsw.ConnectionClosedError() | apsw.CursorClosedError():
            return StoreClosed(f"the store of {path} is closed: open it again. Nothing was changed")
        case apsw.FullError():
            return NoSpace(f"the disk under {path} is full: {error}")
        case apsw.ReadOnlyError():
            return ReadOnlyStore(f"{path} cannot be written: {error}")
        case apsw.NotADBError() | apsw.CorruptError():
            return CorruptStore(f"{path} is damaged, or was encrypted under another key ({error}). {_ADVICE}")
        case apsw.IOError() if db is not None and db.system_errno in FULL_ERRNOS:
            # SQLite calls a full disk so, but not a quota.
            return NoSpace(f"the quota of the disk under {path} is used up: {error}")
        case apsw.IOError():
            return DiskRefuses(f"the disk failed under {path}: {error}")
        case _:
            return CorruptStore(f"{path}: {type(error).__name__}: {error}")


def log_size_bytes(path: str) -> int:
    """Length of the write-ahead log of the index at `path`, 0 where there is none."""
    try:
        status = os.lstat(path + "-wal")
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def written_log_bytes(log: int) -> int:
    """How much of a log counts: behind it are zeros, or frames from before it began anew.

    Layout: https://sqlite.org/fileformat2.html#walformat
    """
    header = os.pread(log, LOG_HEADER_SIZE_BYTES, 0)
    if len(header) < LOG_HEADER_SIZE_BYTES:
        return 0
    frame_bytes = FRAME_HEADER_SIZE_BYTES + int.from_bytes(header[8:12])
    end = LOG_HEADER_SIZE_BYTES
    while os.pread(log, FRAME_HEADER_SIZE_BYTES, end)[8:16] == header[16:24]:
        end += frame_bytes
    return end
