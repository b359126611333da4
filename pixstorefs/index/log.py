"""The write-ahead log of the index as a file: which run of it is the newest, and the frames of that run.

SQLite reads a log up to the first frame that does not fit, and says nothing of what lies behind. But every
frame holds one page, encrypted and authenticated by itself, behind a plaintext header (format.md section 6).
So what lies behind a damaged frame can be told, and read. A *run* is what was written since the log began
anew: its frames carry the two salts of the log's header. Layout: https://sqlite.org/walformat.html
"""

import os
import struct
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from pixstorefs.disk.folder import Folder, OddFile

LOG_HEADER_SIZE_BYTES = 32
_FRAME_HEADER = struct.Struct(">II8s")
FRAME_HEADER_SIZE_BYTES = 24
PAGE_SIZE_BYTES = 4096
_FRAME_SIZE_BYTES = FRAME_HEADER_SIZE_BYTES + PAGE_SIZE_BYTES
_SALTS = slice(16, 24)
# A log begins anew when it has 4 MB at least: so many times are 4 TB. Salts of another log are rarely near.
_MOST_RUNS = 1 << 20
_MAGICS = (0x377F0682, 0x377F0683)
# A log has zeros behind what was written to it. So many frames of zeros are its end, whatever its length
# says: somebody may have made it terabytes long.
_FRAMES_OF_ZEROS = 4096


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a log: the salts of its run, and how many frames of that run lie before it.

    Without salts it is no place: there is no log, or nothing in it.
    """

    salts: bytes = b""
    frames: int = 0

    def is_newer_run(self, other: "Position") -> bool:
        """Whether this run of a log began after the other one's, since the log was last emptied.

        SQLite counts the first salt up by one for each run, and draws it anew for an empty log.
        """
        ahead = int.from_bytes(self.salts[:4], "big") - int.from_bytes(other.salts[:4], "big")
        return 0 < ahead % (1 << 32) < _MOST_RUNS


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: the number of its page, and where the encrypted page lies in the file."""

    page: int
    offset: int


@dataclass(frozen=True, slots=True)
class Run:
    """The newest run of a log, as its frame headers tell it; nothing of them is verified.

    `has_header`: the header of the log is whole, and of this run. Else SQLite reads nothing of it.
    `is_foreign`: there is a file with something in it, and it is no log.
    """

    salts: bytes
    frames: tuple[Frame, ...]
    has_header: bool = False
    is_foreign: bool = False

    @property
    def position(self) -> Position:
        """Behind the last frame."""
        return Position(self.salts, len(self.frames))


def salts_in(fd: int) -> bytes:
    """The salts in the header of an open log; none where it has no header that is whole. Raises OSError."""
    header = os.pread(fd, LOG_HEADER_SIZE_BYTES, 0)
    return header[_SALTS] if _is_whole(header) else b""


def _is_whole(header: bytes) -> bool:
    """Whether a log's header has its own checksum: two sums over its first six words."""
    if len(header) < LOG_HEADER_SIZE_BYTES:
        return False
    magic, *_, said_one, said_two = struct.unpack(">8I", header)
    if magic not in _MAGICS:
        return False
    words = struct.unpack(">6I" if magic & 1 else "<6I", header[:24])
    one = two = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) % (1 << 32)
        two = (two + odd + one) % (1 << 32)
    return (one, two) == (said_one, said_two)


def newest_run(path: str) -> Run:
    """The newest run of the log at `path`, without frames where there is no such file. Raises OSError."""
    try:
        with closing(Folder.at(os.path.dirname(path))) as folder:
            fd, status = folder.open_file(os.path.basename(path))
    except (FileNotFoundError, OddFile):
        return Run(b"", ())
    try:
        headers = _frame_headers(fd, status.st_size)
        of_header = salts_in(fd)
        salts = of_header or _newest_salts([salts for _, salts in headers])
        # A log that was never written to holds zeros.
        is_written = any(os.pread(fd, PAGE_SIZE_BYTES, 0)) or any(any(found) for _, found in headers)
    finally:
        os.close(fd)
    # What stands in front of the last frame of a run is of that run, also where its own salts are damaged.
    last = max((number for number, (_, found) in enumerate(headers) if found == salts), default=-1)
    frames = (
        Frame(page, LOG_HEADER_SIZE_BYTES + number * _FRAME_SIZE_BYTES + FRAME_HEADER_SIZE_BYTES)
        for number, (page, _) in enumerate(headers[: last + 1])
    )
    return Run(salts, tuple(frames), has_header=bool(of_header), is_foreign=is_written and not salts)


def _frame_headers(fd: int, size_bytes: int) -> list[tuple[int, bytes]]:
    """Page number and salts of every frame, up to the zeros that end a log."""
    found: list[tuple[int, bytes]] = []
    zeros = 0
    for offset in range(LOG_HEADER_SIZE_BYTES, size_bytes - _FRAME_SIZE_BYTES + 1, _FRAME_SIZE_BYTES):
        page, _, salts = _FRAME_HEADER.unpack(os.pread(fd, _FRAME_HEADER.size, offset))
        found.append((page, salts))
        zeros = 0 if any(salts) else zeros + 1
        if zeros == _FRAMES_OF_ZEROS:
            break
    return found


def _newest_salts(of_frames: list[bytes]) -> bytes:
    """The salts of the newest run, by its frames: a header that is damaged does not tell.

    Not by one alone, whose own salts may be damaged; and what is no log at all has no two that agree.
    """
    counted = Counter(salts for salts in of_frames if any(salts))
    several = list(counted) if len(counted) == 1 else [salts for salts, n in counted.items() if n > 1]
    newest = b""
    for salts in several:
        if not newest or Position(salts).is_newer_run(Position(newest)):
            newest = salts
    return newest
