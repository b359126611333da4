"""What is known of an object without reading it, and where its segments lie in the file."""

from bisect import bisect_right
from dataclasses import dataclass

from pixstorefs.format import HEADER_SIZE_BYTES, SEALED_SEGMENT_SIZE_BYTES
from pixstorefs.objects.sealing import VersionKey
from pixstorefs.records import Runs

# Numbers above are none, whatever names and files say: the index cannot hold them all (SQLite's integers
# have 63 bits), and a thousand saves a second reach this one in 146 million years.
LAST_VERSION_ID = 1 << 62


@dataclass(frozen=True, slots=True)
class SealedObject:
    """What finishing an object tells: the bytes of plaintext it holds, padding included, and its last tag."""

    key: VersionKey
    stored_size_bytes: int
    tag: bytes
    runs: Runs


@dataclass(frozen=True, slots=True)
class Content:
    """Sealed content that waits for its transaction: the object, the true size and the image format."""

    sealed: SealedObject
    size_bytes: int
    format: str | None


def slot_of(runs: Runs, index: int) -> int:
    """The place of segment `index` in an object that stores `runs`, -1 where it is not stored."""
    if len(runs) == 1:
        first, count = runs[0]
        return index - first if first <= index < first + count else -1
    position = bisect_right(runs, index, key=lambda run: run[0]) - 1
    if position < 0 or index >= runs[position][0] + runs[position][1]:
        return -1
    return sum(count for _, count in runs[:position]) + index - runs[position][0]


def offset_of(slot: int) -> int:
    """Where a segment begins in the file."""
    return HEADER_SIZE_BYTES + slot * SEALED_SEGMENT_SIZE_BYTES
