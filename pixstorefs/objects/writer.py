"""Writing objects: sealed segments, front to back, exactly once."""

import os

from pixstorefs.disk.files import write_fully
from pixstorefs.errors import CorruptImage
from pixstorefs.format import (
    HEADER_SIZE_BYTES,
    SEALED_SEGMENT_SIZE_BYTES,
    SEGMENT_SIZE_BYTES,
    TAG_SIZE_BYTES,
    padded_size,
)
from pixstorefs.objects.directory import BATCH_SEGMENTS, ObjectDirectory
from pixstorefs.objects.layout import SealedObject, offset_of, slot_of
from pixstorefs.objects.sealing import BrokenSeal, Buffer, Sealer, VersionKey, object_header

_ZEROS = bytes(SEGMENT_SIZE_BYTES)


class ObjectWriter:
    """Writes one object. Segments come in ascending order, each once; the last one through `finish`."""

    def __init__(self, directory: ObjectDirectory, key: VersionKey, image_id: bytes) -> None:
        self.key = key
        self._directory = directory
        self._sealer = Sealer(key, directory.store_id, image_id)
        self._fd = -1
        self._created = False
        self._has_header = False
        self._runs: list[list[int]] = []
        self._segments = 0

    @property
    def next_index(self) -> int:
        """The lowest segment index that may still be sealed."""
        return self._runs[-1][0] + self._runs[-1][1] if self._runs else 0

    def create(self) -> None:
        """Make the file already, empty. Raises OSError; it is made when it is written to, then."""
        self._fd = self._directory.create_file(self.key.version_id)
        self._created = True

    def append(self, index: int, plaintext: memoryview) -> None:
        """Seal whole segments from logical `index` on; more must follow, for none of them is the last.

        Raises OSError (ENOSPC, EIO, ...). The object can then never be finished, for a nonce of the
        failed segments may have met the disk; what was sealed before can still be read back.
        """
        for start in range(0, len(plaintext), BATCH_SEGMENTS * SEGMENT_SIZE_BYTES):
            batch = plaintext[start : start + BATCH_SEGMENTS * SEGMENT_SIZE_BYTES]
            count = len(batch) // SEGMENT_SIZE_BYTES
            out, position = self._scratch()
            for _ in range(count):
                segment, batch = batch[:SEGMENT_SIZE_BYTES], batch[SEGMENT_SIZE_BYTES:]
                self._sealer.seal_into(
                    index, False, segment, out[position : position + SEALED_SEGMENT_SIZE_BYTES]
                )
                position += SEALED_SEGMENT_SIZE_BYTES
                index += 1
            self._write(out[:position])
            self._note(index - count, count)

    def finish(self, index: int, tail: Buffer, *, padding: bool) -> SealedObject:
        """Seal the last segment of content (1 to 131,072 bytes) and the padding; close the file.

        The padding is zeros sealed like content, behind the true size that only the index knows.
        """
        content_size_bytes = self._segments * SEGMENT_SIZE_BYTES + len(tail)
        stored_size_bytes = padded_size(content_size_bytes) if padding else content_size_bytes
        remaining = stored_size_bytes - self._segments * SEGMENT_SIZE_BYTES
        self._note(index, 1)
        runs = tuple((first, count) for first, count in self._runs)
        segment: Buffer = b"".join((tail, _ZEROS[: min(remaining, SEGMENT_SIZE_BYTES) - len(tail)]))
        tag = b""
        while remaining > 0:
            last = remaining <= SEGMENT_SIZE_BYTES
            out, position = self._scratch()
            end = position + len(segment) + TAG_SIZE_BYTES
            self._sealer.seal_into(index, last, segment, out[position:end])
            tag = bytes(out[end - TAG_SIZE_BYTES : end])
            self._write(out[:end])
            remaining -= len(segment)
            segment = memoryview(_ZEROS)[: min(remaining, SEGMENT_SIZE_BYTES)]
            index += 1
        os.close(self._fd)
        self._fd = -1
        return SealedObject(self.key, stored_size_bytes, tag, runs)

    def read_back(self, index: int, out: memoryview) -> None:
        """Open a segment sealed by `append` (of an object that is not finished) into `out`."""
        slot = slot_of(tuple((first, count) for first, count in self._runs), index)
        sealed = os.pread(self._fd, SEALED_SEGMENT_SIZE_BYTES, offset_of(slot))
        try:
            self._sealer.open_into(index, False, sealed, out[:SEGMENT_SIZE_BYTES])
        except (BrokenSeal, ValueError):
            raise CorruptImage("a draft was damaged on the disk before it could be saved") from None

    def abort(self) -> None:
        """Remove what was written; no trace of the object stays. Harmless when nothing was."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._created:
            self._directory.unlink([self.key.version_id])

    def _note(self, index: int, count: int) -> None:
        if self._runs and self.next_index == index:
            self._runs[-1][1] += count
        else:
            self._runs.append([index, count])
        self._segments += count

    def _scratch(self) -> tuple[memoryview, int]:
        """The shared buffer, and where sealed bytes start: behind the header if it is not written yet."""
        out = self._directory.scratch
        if self._has_header:
            return out, 0
        out[:HEADER_SIZE_BYTES] = object_header(self.key.version_id)
        return out, HEADER_SIZE_BYTES

    def _write(self, data: memoryview) -> None:
        if self._fd < 0:
            self.create()
        self._directory.keep_reserve()
        self._has_header = True
        write_fully(self._fd, data, self._directory.make_room)
