"""Which keys the pages of an index hold, and so which images somebody could still open.

A page opens on its own, under the key of the index and its own number: it is authentic or nothing. So
everything that can be had of a damaged index is the pages that are still, byte for byte, what a store wrote.
This reads them without the code under test: every page of a store's history is opened once, and what is left
after a damage is looked up by its bytes.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw

PAGE_BYTES = 4096
_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_FRAME_BYTES = _FRAME_HEADER_BYTES + PAGE_BYTES
# A damaged file may claim a terabyte; what stores wrote here is far shorter.
_MOST_BYTES = 32 << 20


class KeyPages:
    """Every page that a store ever wrote, and which of the `needles` (keys, image ids) stand on it."""

    def __init__(self, key: bytes, needles: Iterable[bytes], scratch: Path) -> None:
        self._key = key
        self._needles = list(needles)
        self._scratch = scratch
        self._pages: dict[tuple[int, bytes], frozenset[bytes]] = {}
        self._log_headers: set[bytes] = set()

    def learn(self, database: Path) -> None:
        """Open every page of an index that is whole, and every frame of its log."""
        self._learn_file(list(pages_of(database)))
        log = Path(f"{database}-wal")
        frames = list(self._own_frames(log))
        newest = dict(_numbered(database)) | dict(frames)
        for layer in _layers(frames):
            self._learn_file([page for _, page in sorted((newest | layer).items())])

    def left_in(self, files: Iterable[Path]) -> set[bytes]:
        """The needles on pages of these files, indexes and logs, that are as they were written."""
        found: set[bytes] = set()
        for path in files:
            with contextlib.suppress(OSError):
                for number, page in frames_of(path) if path.name.endswith("-wal") else _numbered(path):
                    found |= self._pages.get((number, _digest(number, page)), frozenset())
        return found

    def in_front_of_log(self, log: Path) -> set[bytes]:
        """The needles in the log before its first frame that is not as it was written."""
        found: set[bytes] = set()
        with contextlib.suppress(OSError):
            if _head(log) not in self._log_headers:
                return found
            for number, page in frames_of(log):
                if (needles := self._pages.get((number, _digest(number, page)))) is None:
                    break
                found |= needles
        return found

    def inside(self, database: Path) -> set[bytes]:
        """The needles in an index written since, as far as SQLite reads it."""
        try:
            content = b"".join(pages_of(database))
        except OSError:
            return set()
        plain = self._opened(content)
        return {needle for needle in self._needles if needle in plain}

    def _own_frames(self, log: Path) -> Iterator[tuple[int, bytes]]:
        """Frames of the log's present generation; behind them lie those it has written over in part."""
        if not log.exists():
            return
        header = _head(log)
        self._log_headers.add(header)
        yield from frames_of(log, salts=header[16:24])

    def _learn_file(self, pages: list[bytes]) -> None:
        plain = self._opened(b"".join(pages))
        for number, page in enumerate(pages, 1):
            text = plain[(number - 1) * PAGE_BYTES : number * PAGE_BYTES]
            needles = frozenset(needle for needle in self._needles if needle in text)
            self._pages[number, _digest(number, page)] = needles

    def _opened(self, content: bytes) -> bytes:
        """The pages of a database decrypted; from the first that does not open on, zeros."""
        path = self._scratch / "opened.db"
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        path.write_bytes(content)
        db = apsw.Connection(str(path))
        try:
            db.pragma("cipher", "aegis")
            db.pragma("key", f"raw:{self._key.hex()}")
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            db.execute("PRAGMA writable_schema=ON").fetchall()
            return db.serialize("main") or b""
        except apsw.Error:
            return b""
        finally:
            db.close()


def pages_of(path: Path) -> Iterator[bytes]:
    """The pages of a database. Raises OSError."""
    content = _content(path)
    for start in range(0, len(content) - PAGE_BYTES + 1, PAGE_BYTES):
        yield content[start : start + PAGE_BYTES]


def frames_of(log: Path, *, salts: bytes | None = None) -> Iterator[tuple[int, bytes]]:
    """Number and page of every frame of a log, up to the first of other `salts`. Raises OSError."""
    content = _content(log)
    for start in range(_LOG_HEADER_BYTES, len(content) - _FRAME_BYTES + 1, _FRAME_BYTES):
        number = int.from_bytes(content[start : start + 4], "big")
        if number == 0 or (salts is not None and content[start + 8 : start + 16] != salts):
            return
        yield number, content[start + _FRAME_HEADER_BYTES : start + _FRAME_BYTES]


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    return enumerate(pages_of(path), 1)


def _layers(frames: list[tuple[int, bytes]]) -> Iterator[dict[int, bytes]]:
    """The first frame of every page, then the second of those that have one, and so on."""
    waiting: dict[int, list[bytes]] = {}
    for number, page in frames:
        waiting.setdefault(number, []).append(page)
    # How many pages there are stands on the first: its newest state goes with every layer.
    waiting[1] = waiting.get(1, [])[-1:]
    depth = 0
    while layer := {number: pages[depth] for number, pages in waiting.items() if len(pages) > depth}:
        yield layer
        depth += 1


def _digest(number: int, page: bytes) -> bytes:
    # The first bytes of the file (a salt, SQLite's page size) are not authenticated.
    return hashlib.blake2b(page[24:] if number == 1 else page, digest_size=16).digest()


def _head(log: Path) -> bytes:
    with open(log, "rb") as file:
        return file.read(_LOG_HEADER_BYTES)


def _content(path: Path) -> bytes:
    """The front of a regular file; nothing else is looked into: reading a FIFO would wait for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        return file.read(_MOST_BYTES)
