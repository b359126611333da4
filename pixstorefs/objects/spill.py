"""Spill: scratch space for drafts that memory cannot hold. Ciphertext only, and nameless.

Each write has a number of its own, which is the nonce, so no (key, nonce) pair is used twice however often a
draft rewrites a segment. A slot that is no longer needed takes another segment: the file is never longer than
the most that was spilled at a time. The key and the numbers live in memory only, and the file has lost its
name before its first byte: a crash leaves nothing. Rejected: a slot for each write, whose number is then its
place; 300 MB written at random took 1.5 GB of the disk.
"""

import os
from collections.abc import Callable

from pixstorefs.disk.files import write_fully
from pixstorefs.errors import CorruptImage
from pixstorefs.format import IV_SIZE_BYTES, KEY_SIZE_BYTES, SEALED_SEGMENT_SIZE_BYTES, SEGMENT_SIZE_BYTES
from pixstorefs.objects.sealing import BrokenSeal, Buffer, Sealer, VersionKey

_NO_VERSION = 0


class Spill:
    """Encrypted segments of one draft, addressed by slot."""

    def __init__(self, fd: int, random: Callable[[int], bytes], make_room: Callable[[], None]) -> None:
        """Take over the descriptor of an empty file without a name."""
        self._make_room = make_room
        key = VersionKey(_NO_VERSION, random(KEY_SIZE_BYTES), random(IV_SIZE_BYTES))
        self._sealer = Sealer(key, b"spill", b"")
        self._sealed = memoryview(bytearray(SEALED_SEGMENT_SIZE_BYTES))
        # The number of the write that each slot holds, and slots that hold none.
        self._numbers: list[int] = []
        self._free: list[int] = []
        self._writes = 0
        self._fd = fd

    def put(self, segment: Buffer) -> int:
        """Keep a whole segment; returns its slot. Raises OSError (ENOSPC, EIO)."""
        self._sealer.seal_into(self._writes, False, segment, self._sealed)
        self._writes += 1
        slot = self._free[-1] if self._free else len(self._numbers)
        os.lseek(self._fd, slot * SEALED_SEGMENT_SIZE_BYTES, os.SEEK_SET)
        write_fully(self._fd, self._sealed, self._make_room)
        # Only now: a slot that could not be written is as free as before.
        if self._free:
            self._free.pop()
            self._numbers[slot] = self._writes - 1
        else:
            self._numbers.append(self._writes - 1)
        return slot

    def free(self, slot: int) -> None:
        """What a slot holds is not needed any more."""
        self._free.append(slot)

    def get(self, slot: int, out: memoryview) -> None:
        """Read a segment back into `out`. Raises CorruptImage where the disk changed it."""
        sealed = os.pread(self._fd, SEALED_SEGMENT_SIZE_BYTES, slot * SEALED_SEGMENT_SIZE_BYTES)
        try:
            self._sealer.open_into(self._numbers[slot], False, sealed, out[:SEGMENT_SIZE_BYTES])
        except (BrokenSeal, ValueError):
            raise CorruptImage("a draft was damaged on the disk before it could be saved") from None

    def close(self) -> None:
        """Give the space back."""
        os.close(self._fd)
