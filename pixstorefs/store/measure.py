"""The dimensions of a saved image, read from its header."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from pixstorefs.errors import CorruptImage
from pixstorefs.format import SEGMENT_SIZE_BYTES
from pixstorefs.imaging.dimensions import measure
from pixstorefs.objects.reader import ObjectReader
from pixstorefs.records import Inode
from pixstorefs.store.store import Store

# Does what must not happen while another thread seals or opens segments.
Exclusively = Callable[[Callable[[], None]], None]


class Measuring:
    """A saved image whose header is about to be read. Close it."""

    def __init__(self, store: Store, inode: Inode, image_format: str) -> None:
        """Raises CorruptImage where the index does not know the object."""
        self._reader = store.open_object(inode)
        # One that cannot be opened has no dimensions; whoever reads the image is told more.
        with suppress(CorruptImage):
            self._reader.open()
        self._size_bytes = inode.size_bytes
        self._format = image_format

    def dimensions(self, exclusively: Exclusively) -> tuple[int, int] | None:
        """Width and height in pixels, None where the header does not tell. From any thread."""
        plaintext = _Plaintext(self._reader, self._size_bytes, exclusively)
        return measure(plaintext.read, self._size_bytes, self._format)

    def close(self) -> None:
        """Let go of the object."""
        self._reader.close()


class _Plaintext:
    def __init__(self, reader: ObjectReader, size_bytes: int, exclusively: Exclusively) -> None:
        self._reader = reader
        self._size_bytes = size_bytes
        self._exclusively = exclusively
        self._buffer = memoryview(bytearray(SEGMENT_SIZE_BYTES))
        self._held = -1

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        end = min(offset + length, self._size_bytes)
        while offset < end:
            index, within = divmod(offset, SEGMENT_SIZE_BYTES)
            if index != self._held:
                self._held = -1
                self._reader.warm(index, 1)  # the disk is waited for here, and keeps nobody else
                self._exclusively(partial(self._reader.read_segment, index, self._buffer))
                self._held = index
            part = bytes(self._buffer[within : within + end - offset])
            parts.append(part)
            offset += len(part)
        return b"".join(parts)
