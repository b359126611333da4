"""Capture: how another process reads an index in use, which is by a copy of its files at one moment.

The owner keeps the index of its log to itself (see `database`), so SQLite's locks tell others nothing.
Instead the reader holds the log (the file `hold-log`): then the owner appends to it and does no more. There
are two things left that a copy could meet. A log that was in the database completely begins anew, header
first, and old frames in front of new ones would put old pages over newer ones; and a restored index takes the
place of the damaged one. Both show in what the files look like from outside, and the copy begins again.

The copy is what the store has, encrypted pages. It loses its name as soon as SQLite has it open, so that a
process that is killed leaves nothing.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from pixstorefs.disk.files import FULL_ERRNOS, copy_content
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.hold import held
from pixstorefs.disk.temporary import no_room, private_folder
from pixstorefs.errors import StoreInUse
from pixstorefs.index.database import LOG_HOLD_FILE, index_is_missing, written_log_bytes
from pixstorefs.index.log import LOG_HEADER_SIZE_BYTES
from pixstorefs.index.rows import Index

_LOG_SUFFIX = "-wal"
# An owner that does not know the hold (an older version) may meet it every time.
_ROUNDS = 10
# File systems stamp times that coarsely, at worst (ext4 4 ms, FAT 2 s): a file as young may change unnoticed.
_TIMESTAMP_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _FileState:
    device: int
    ino: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What the files of an index looked like when they were copied."""

    database: _FileState
    log: _FileState | None
    log_header: bytes
    looked_at_ns: int

    @property
    def size_bytes(self) -> int:
        """What both files take together."""
        return self.database.size_bytes + (self.log.size_bytes if self.log else 0)

    def has_same_base(self, other: "Moment") -> bool:
        """Whether nothing happened between two moments but that the log grew."""
        return (self.database, self.log_header, _identity(self.log)) == (
            other.database,
            other.log_header,
            _identity(other.log),
        )

    def has_passed(self, index_path: str) -> bool:
        """Whether the index may be another by now."""
        now = _moment_of(index_path)
        young = self.log is not None and self.looked_at_ns - self.log.mtime_ns < _TIMESTAMP_NS
        return young or not self.has_same_base(now) or self.log != now.log


def capture(index_path: str, target: str) -> Moment:
    """Copy database and log of an index that others may be using to the new files `target` and `target`-wal.

    Not synced. Raises CorruptStore (there is no index, or something that is no file), StoreInUse, OSError; no
    file stays then.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, target)
        name = os.path.basename(index_path)
        with (
            contextlib.closing(Folder.at(os.path.dirname(index_path))) as folder,
            held(folder, LOG_HOLD_FILE),
        ):
            for _ in range(_ROUNDS):
                before = _moment(folder, name)
                _copy_both(folder, name, target)
                after = _moment(folder, name)
                if before.has_same_base(after):
                    undo.pop_all()
                    return before
                _remove(target)
        raise StoreInUse(
            f"the index {index_path} changes faster than it can be read: try again, or unmount the store"
        )


def open_captured(index_path: str, key: bytes, store_id: bytes) -> tuple[Index, Moment]:
    """Open a copy of an index in use, for looking at it; it is gone when the index is closed.

    Raises CorruptStore, NewerFormat, NoSpace, StoreInUse, OSError.
    """
    what = f"a copy of the index {index_path}"
    size_bytes = _size_bytes(index_path)
    try:
        with private_folder(size_bytes, what) as folder:
            path = os.path.join(folder, os.path.basename(index_path))
            moment = capture(index_path, path)
            # SQLite has both files open from now on, and needs no names.
            return Index(path, key, store_id, copy_of=index_path), moment
    except OSError as error:
        if error.errno in FULL_ERRNOS:
            raise no_room(size_bytes, what) from error
        raise


def _size_bytes(index_path: str) -> int:
    return _moment_of(index_path).size_bytes


def _copy_both(folder: Folder, name: str, target: str) -> None:
    _copy(folder, name, target, lambda fd: os.fstat(fd).st_size)
    with contextlib.suppress(FileNotFoundError):
        _copy(folder, name + _LOG_SUFFIX, target + _LOG_SUFFIX, written_log_bytes)


def _copy(folder: Folder, name: str, target: str, length_bytes: Callable[[int], int]) -> None:
    source, _ = folder.open_file(name)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            copy_content(source, copy, length_bytes(source))
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _remove(target: str) -> None:
    for suffix in ("", _LOG_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target + suffix)


def _moment_of(index_path: str) -> Moment:
    with contextlib.closing(Folder.at(os.path.dirname(index_path))) as folder:
        return _moment(folder, os.path.basename(index_path))


def _moment(folder: Folder, name: str) -> Moment:
    database = _file_state(folder, name)
    if database is None:
        raise index_is_missing(os.path.join(folder.path, name))
    header = b""
    with contextlib.suppress(FileNotFoundError):
        header = folder.read(name + _LOG_SUFFIX, LOG_HEADER_SIZE_BYTES)
    return Moment(database, _file_state(folder, name + _LOG_SUFFIX), header, time.time_ns())


def _file_state(folder: Folder, name: str) -> _FileState | None:
    status = folder.file_status(name)
    if status is None:
        return None
    return _FileState(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _identity(state: _FileState | None) -> tuple[int, int] | None:
    return (state.device, state.ino) if state else None
