"""Reading objects: nothing that was not verified leaves them."""

import errno
import os
from collections.abc import Iterator

from pixstorefs.disk.files import read_ahead
from pixstorefs.disk.folder import OddFile
from pixstorefs.errors import CorruptImage
from pixstorefs.format import (
    HEADER_SIZE_BYTES,
    SEALED_SEGMENT_SIZE_BYTES,
    SEGMENT_SIZE_BYTES,
    TAG_SIZE_BYTES,
    sealed_size,
)
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.layout import SealedObject, offset_of, slot_of
from pixstorefs.objects.sealing import BrokenSeal, Sealer, VersionKey, object_header
from pixstorefs.records import Version

_ZEROS = bytes(SEGMENT_SIZE_BYTES)


class ObjectReader:
    """Reads one finished object. Nothing that was not verified leaves it."""

    def __init__(self, directory: ObjectDirectory, sealed: SealedObject, image_id: bytes) -> None:
        self._directory = directory
        self._sealed = sealed
        self._image_id = image_id
        self._sealer = Sealer(sealed.key, directory.store_id, image_id)
        self._last_slot = -(-sealed.stored_size_bytes // SEGMENT_SIZE_BYTES) - 1
        self._fd = -1
        self.runs = sealed.runs

    def open(self) -> None:
        """Open the object's file, so that it stays readable after it is unlinked. Raises CorruptImage."""
        if self._fd >= 0 or not self.runs:
            return
        try:
            fd, size_bytes = self._directory.open_file(self._sealed.key.version_id)
        except FileNotFoundError:
            raise self._damaged("is missing") from None
        except OddFile as error:
            raise self._damaged(f"is no file ({error})") from None
        self._take(fd, size_bytes)

    def open_copy(self, content: bytes) -> None:
        """Read from a copy of the object, in memory, instead of its file. Raises CorruptImage."""
        fd = os.memfd_create("object", os.MFD_CLOEXEC)
        os.write(fd, content)
        self._take(fd, len(content))

    def _take(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        expected_bytes = sealed_size(self._sealed.stored_size_bytes)
        if size_bytes != expected_bytes:
            self.close()
            raise self._damaged(f"has {size_bytes} bytes instead of {expected_bytes}")

    def close(self) -> None:
        """Close the file; a closed reader opens it again by itself."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def has(self, index: int) -> bool:
        """Whether segment `index` is stored; one that is not reads as zeros."""
        return slot_of(self.runs, index) >= 0

    def read_segment(self, index: int, out: memoryview, *, nowait: bool = False) -> None:
        """Fill `out` (131,072 bytes) with segment `index`, zeros where nothing is stored.

        Raises CorruptImage where the object is missing or a tag does not match, BlockingIOError with
        `nowait` where the disk would have to be waited for, OSError (EIO) from the disk.
        """
        slot = slot_of(self.runs, index)
        if slot < 0:
            out[:] = _ZEROS
            return
        self._open_slot(slot, index, out, nowait=nowait)

    def read_ahead(self, index: int, count: int) -> None:
        """Have the disk read the ciphertext of some segments while others are worked on."""
        slot = slot_of(self.runs, index)
        if slot >= 0 and self._fd >= 0:
            read_ahead(self._fd, offset_of(slot), count * SEALED_SEGMENT_SIZE_BYTES)

    def is_cached(self, index: int, count: int) -> bool:
        """Whether the page cache seems to have some segments: it has their last bytes."""
        last_byte = bytearray(1)
        try:
            # From the last one on, for that comes last.
            return all(_read_cached(self._fd, last_byte, at) for at in reversed(self._ends(index, count)))
        except BlockingIOError:
            return False

    def warm(self, index: int, count: int) -> None:
        """Wait until the page cache has some segments. Safe to call from another thread.

        Their last bytes are read, not all: what was asked for ahead comes a segment at a time, and a copy of
        it would cost more than opening it.
        """
        self.read_ahead(index, count)
        for at in self._ends(index, count):
            os.pread(self._fd, 1, at)

    def _ends(self, index: int, count: int) -> list[int]:
        """Offsets of the last bytes of some segments, without those that are holes or behind the end."""
        slot = slot_of(self.runs, index)
        if slot < 0 or self._fd < 0:
            return []
        behind = range(slot + 1, min(slot + count, self._last_slot + 1) + 1)
        end = offset_of(self._last_slot) + self._segment_size(self._last_slot) + TAG_SIZE_BYTES
        return [min(offset_of(following), end) - 1 for following in behind]

    def verify(self) -> None:
        """Check the header, every tag, padding included, and the size. Raises CorruptImage, OSError."""
        if not self.runs:
            return
        self.open()
        # What the page cache holds is no proof of what the disk does: after a write error it may differ.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in self.verified_segments():
            pass

    def verified_segments(self) -> Iterator[int]:
        """The same in steps, from the page cache where it is there: sizes in bytes of what was verified."""
        if not self.runs:
            return
        self.open()
        out = memoryview(bytearray(SEGMENT_SIZE_BYTES))
        tag = b""
        for slot, index in enumerate(self._indices()):
            tag = self._open_slot(slot, index, out)
            yield self._segment_size(slot)
        if tag != self._sealed.tag:
            raise self._damaged("ends with another tag than the index has")

    def _indices(self) -> Iterator[int]:
        """Logical index of every slot; the padding goes on counting behind the last content segment."""
        slots = index = 0
        for first, count in self.runs:
            for index in range(first, first + count):
                yield index
            slots += count
        for _ in range(slots, self._last_slot + 1):
            index += 1
            yield index

    def _segment_size(self, slot: int) -> int:
        return min(SEGMENT_SIZE_BYTES, self._sealed.stored_size_bytes - slot * SEGMENT_SIZE_BYTES)

    def _open_slot(self, slot: int, index: int, out: memoryview, *, nowait: bool = False) -> bytes:
        self.open()
        size_bytes = self._segment_size(slot)
        # The header is read with the first segment, so that checking it costs no read of its own.
        header_bytes = HEADER_SIZE_BYTES if slot == 0 else 0
        stored = self._directory.scratch[: header_bytes + size_bytes + TAG_SIZE_BYTES]
        offset = offset_of(slot) - header_bytes
        got = _read_cached(self._fd, stored, offset) if nowait else os.preadv(self._fd, [stored], offset)
        if got != len(stored):
            if nowait and got:
                raise BlockingIOError
            raise self._damaged(f"ends too early, at segment {slot}")
        sealed = stored[header_bytes:]
        if header_bytes and stored[:header_bytes] != object_header(self._sealed.key.version_id):
            raise self._damaged("has a damaged header")
        try:
            self._sealer.open_into(index, slot == self._last_slot, sealed, out[:size_bytes])
        except BrokenSeal:
            raise self._damaged(f"does not match its tag at segment {slot}") from None
        if size_bytes < SEGMENT_SIZE_BYTES:
            out[size_bytes:] = _ZEROS[size_bytes:]
        return bytes(sealed[-TAG_SIZE_BYTES:])

    def _damaged(self, what: str) -> CorruptImage:
        return CorruptImage(
            f"image {self._image_id.hex()} is damaged: its object {self._sealed.key.version_id} {what}. "
            "Every other image works; restore this one from a backup, or delete it"
        )


def reader_of(directory: ObjectDirectory, version: Version, image_id: bytes) -> ObjectReader:
    """A reader of a version as the index knows it."""
    key = VersionKey(version.version_id, version.key, version.iv)
    sealed = SealedObject(key, version.stored_size_bytes, version.tag, version.runs)
    return ObjectReader(directory, sealed, image_id)


def is_intact(
    directory: ObjectDirectory, version: Version, image_id: bytes, *, copy: bytes | None = None
) -> bool:
    """Whether a version's object is on the disk, whole: header, every tag, size. Raises OSError (EIO).

    With `copy` whether that is such an object.
    """
    reader = reader_of(directory, version, image_id)
    try:
        if copy is not None:
            reader.open_copy(copy)
        reader.verify()
    except CorruptImage:
        return False
    finally:
        reader.close()
    return True


def _read_cached(fd: int, out: memoryview | bytearray, offset: int) -> int:
    """Read what the page cache has; raises BlockingIOError where that is nothing.

    File systems that cannot tell (tmpfs, some network ones) count as not having it.
    """
    try:
        return os.preadv(fd, [out], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise BlockingIOError from None
