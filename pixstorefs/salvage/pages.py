"""What can still be read of a damaged index: its pages.

SQLite walks from a table's root down, so one lost page takes everything below it along, and after the first
page that does not open it reads no further. Here every page is looked at on its own instead: a page that
opens is authentic, whatever happened to its neighbours, and freed pages hold zeros (secure_delete), so what
the leaves hold is what the index held. Layout: https://sqlite.org/fileformat2.html
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import IO

import apsw

from pixstorefs.disk.folder import Folder
from pixstorefs.errors import CorruptStore
from pixstorefs.index.database import connect, encrypt, uri
from pixstorefs.index.log import PAGE_SIZE_BYTES, Run, newest_run

USABLE_BYTES = PAGE_SIZE_BYTES - 64
"""What of a page is content; the rest is the cipher's tag and nonce."""

_LOG_SUFFIX = "-wal"
_SUFFIXES = ("", _LOG_SUFFIX, "-shm")
# Damage that is more than single pages is skipped in steps that double: a page costs a pass over the file.
_SINGLE_PAGES = 200


@dataclass(frozen=True, slots=True)
class Pages:
    """Decrypted pages of an index, one after the other, and the numbers of those that are lost.

    `only`: the pages whose rows count, where those of the others are known already.
    """

    data: bytes
    lost: frozenset[int]
    only: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Salvage:
    """What can be read of an index. `newest`: each page as it was written last.

    `older`: of the pages that are lost there, what stood on them before. `lost`: pages whose last content is
    lost. `number`: how many pages there were, as far as can be told. `agrees`: none is lost, and none is
    older than what others tell of it.
    """

    newest: Pages
    older: Pages | None
    lost: frozenset[int]
    number: int
    agrees: bool


def salvage(path: str, key: bytes, scratch: str, *, use_log: bool = True) -> Salvage | None:
    """Read every page that opens, the log's included; None where nothing is there to read.

    Frames of the log count as far as its newest run goes, also behind one that is damaged, where SQLite reads
    no further. Works on copies in the directory `scratch` (the index itself is not touched, and nothing is
    decrypted onto the disk). Raises OSError where there is no room for them.
    """
    run = newest_run(path + _LOG_SUFFIX) if use_log else Run(b"", ())
    if not _size_bytes(path) and not run.frames:
        return None
    work = _Work(path, key, scratch, run)
    try:
        newest = work.read(skip=frozenset())
        if newest is None:
            return None
        agrees = not newest.lost and work.agrees()
        older = work.read(skip=newest.lost) if newest.lost & work.pages_in_log else None
    finally:
        work.remove()
    lost = newest.lost
    if 1 not in lost:
        # Cut off: SQLite says in the first page how many there were.
        said = int.from_bytes(newest.data[28:32], "big")
        lost |= set(range(len(newest.data) // PAGE_SIZE_BYTES + 1, said + 1))
    if older is not None:
        only = newest.lost - older.lost
        older = replace(older, only=only) if only else None
    number = max(len(newest.data) // PAGE_SIZE_BYTES, *lost, 0)
    return Salvage(newest, older, frozenset(lost), number, agrees and not lost)


class _Work:
    """A copy of the index in which the frames of the log have taken their places, to be read."""

    def __init__(self, path: str, key: bytes, scratch: str, run: Run) -> None:
        self._path = path
        self._key = key
        self._work = os.path.join(scratch, "salvage.db")
        self._carrier = _Carrier(os.path.join(scratch, "carrier.db"), key)
        # Of each page the places of its frames. A page number that cannot be is a damaged one.
        most = _size_bytes(path) // PAGE_SIZE_BYTES + len(run.frames) + 1
        self._frames: dict[int, list[int]] = {}
        for frame in run.frames:
            if 0 < frame.page <= most:
                self._frames.setdefault(frame.page, []).append(frame.offset)

    @property
    def pages_in_log(self) -> set[int]:
        """Numbers of the pages that the log has."""
        return set(self._frames)

    def read(self, *, skip: frozenset[int]) -> Pages | None:
        """Read all pages, each as it was written last, and those in `skip` as they were before that.

        None where none opens.
        """
        _copy(self._path, self._work)
        self._place_frames(skip)
        replaced: set[int] = set()
        if not _size_bytes(self._work):
            return None
        data = _serialized(self._work, self._key)
        while (bad := _first_unread(data)) is not None:
            # The first time also what is known to be lost without trying.
            pages = (
                {bad} | _blank_pages(self._work) if not replaced else set(range(bad, bad + _step(replaced)))
            )
            if pages <= replaced:
                return None
            self._carrier.replace(self._work, pages - replaced)
            replaced |= pages
            data = _serialized(self._work, self._key)
        lost = self._carrier.standing_in(data, replaced)
        return Pages(data, frozenset(lost)) if len(lost) * PAGE_SIZE_BYTES < len(data) else None

    def agrees(self) -> bool:
        """Whether the pages that were just read belong together: every one of them may open all the same."""
        try:
            with closing(connect(self._work, self._key, read_only=True)) as db:
                return db.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
        except (CorruptStore, apsw.Error):
            return False

    def _place_frames(self, skip: frozenset[int]) -> None:
        if not self._frames:
            return
        with open(self._path + _LOG_SUFFIX, "rb", buffering=0) as log, open(self._work, "r+b") as file:
            for page, offsets in self._frames.items():
                usable = offsets[:-1] if page in skip else offsets
                content = _read_page(log.fileno(), usable[-1]) if usable else b""
                if content:
                    file.seek((page - 1) * PAGE_SIZE_BYTES)
                    file.write(content)

    def remove(self) -> None:
        """Remove the copy."""
        self._carrier.remove()
        _remove(self._work)


def _step(replaced: set[int]) -> int:
    """How many pages to give up at once."""
    return 1 if len(replaced) < _SINGLE_PAGES else len(replaced)


class _Carrier:
    """A database under the same key, whose pages stand in for lost ones so that SQLite reads on.

    A page opens at its own number only, so this one has as many. They hold zeros, but for the first: it
    says that there are many pages, and nothing else of it is used.
    """

    def __init__(self, path: str, key: bytes) -> None:
        self._path = path
        self._key = key

    def replace(self, work: str, pages: set[int]) -> None:
        """Put stand-ins in the place of these pages of a file."""
        self._grow(max(pages | {os.path.getsize(work) // PAGE_SIZE_BYTES}))
        with open(self._path, "rb") as carrier, open(work, "r+b") as file:
            for page in sorted(pages):
                carrier.seek((page - 1) * PAGE_SIZE_BYTES)
                content = bytearray(carrier.read(PAGE_SIZE_BYTES))
                if page == 1:
                    content[18:20] = b"\2\2"  # a database with a log: its frames count
                file.seek((page - 1) * PAGE_SIZE_BYTES)
                file.write(content)

    def standing_in(self, data: bytes, replaced: set[int]) -> set[int]:
        """Which of the replaced pages were read as their stand-ins; the others are in the log."""
        if not replaced:
            return set()
        own = _serialized(self._path, self._key)

        def content(of: bytes, page: int) -> bytes:
            # Behind the part of the first page that `replace` changes.
            return of[(page - 1) * PAGE_SIZE_BYTES + 24 : page * PAGE_SIZE_BYTES]

        return {page for page in replaced if content(data, page) == content(own, page)}

    def remove(self) -> None:
        """Remove it; there may be none."""
        _remove(self._path)

    def _grow(self, pages: int) -> None:
        new = not os.path.lexists(self._path)
        if new:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        db = connect(self._path, self._key, journal=False, new=new)
        try:
            db.execute("CREATE TABLE IF NOT EXISTS filler (zeros)")
            while db.pragma("page_count") < pages:
                missing = pages - db.pragma("page_count")
                db.execute("INSERT INTO filler VALUES (zeroblob(?))", (min(missing, 4096) * USABLE_BYTES,))
        finally:
            db.close()


def _serialized(work: str, key: bytes) -> bytes:
    """All pages decrypted; from the first that does not open on, zeros."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    db = apsw.Connection(uri(work), flags=flags)
    try:
        encrypt(db, key)
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        # A file shorter than its header says is not refused.
        db.execute("PRAGMA writable_schema=ON").fetchall()
        try:
            data = db.serialize("main")
        except apsw.Error:
            data = None
        return data or bytes(PAGE_SIZE_BYTES)  # where not even the first page opens
    finally:
        db.close()


def _first_unread(data: bytes) -> int | None:
    """The first page that did not open. One that did ends with its tag, whatever it holds."""
    blank = bytes(PAGE_SIZE_BYTES)
    for page, start in enumerate(range(0, len(data), PAGE_SIZE_BYTES), start=1):
        if data[start : start + PAGE_SIZE_BYTES] == blank:
            return page
    return None if data else 1


def _blank_pages(work: str) -> set[int]:
    """Pages of zeros, as bad sectors leave them: known at once."""
    blank = bytes(PAGE_SIZE_BYTES)
    pages = set()
    with open(work, "rb") as file:
        page = 1
        while content := file.read(PAGE_SIZE_BYTES):
            if content == blank[: len(content)]:
                pages.add(page)
            page += 1
    return pages


def _copy(source: str, target: str) -> None:
    """Copy a file as far as the disk can read it, zeros for what it cannot, without the hole at its end.

    Empty where there is no such file. Raises OSError.
    """
    _remove(target)
    with open(target, "xb", opener=_private) as file:
        if not _size_bytes(source):
            return
        with closing(Folder.at(os.path.dirname(source))) as folder:
            source_fd, _ = folder.open_file(os.path.basename(source))
        try:
            _copy_written(source_fd, file)
        finally:
            os.close(source_fd)


def _copy_written(source_fd: int, file: IO[bytes]) -> None:
    for start, end in _written_ranges(source_fd):
        first = start // PAGE_SIZE_BYTES * PAGE_SIZE_BYTES
        file.seek(first)
        for offset in range(first, end, PAGE_SIZE_BYTES):
            file.write(_read_page(source_fd, offset))


def _written_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes (lseek(2)): it may have been made terabytes long."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _read_page(fd: int, offset: int) -> bytes:
    try:
        return os.pread(fd, PAGE_SIZE_BYTES, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return bytes(PAGE_SIZE_BYTES)


def _size_bytes(path: str) -> int:
    """The length of a regular file, 0 where there is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _remove(path: str) -> None:
    for suffix in _SUFFIXES:
        _remove_file(path + suffix)


def _remove_file(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
