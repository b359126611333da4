"""Drafts: content that is being written and is not saved yet. In memory or sealed, never plaintext on disk.

A draft is layers over segments; the first that has a segment wins:

    memory    segments being written, bounded
    spill     segments that memory could not hold, encrypted
    sealed    the front of the new object, sealed as it was appended
    base      the version that is being changed, as far as truncations left it
    (zeros)   holes

A file written front to back, as nearly all photos are, needs one segment of memory: each segment is sealed
into the new object when the next one begins. Touching a sealed segment freezes the object: it becomes one
more layer to read from, and saving seals everything anew into a fresh object under a fresh key, for a
(key, nonce) pair is never used twice.
"""

import errno
import os
from collections.abc import Generator

from pixstorefs.format import MAX_IMAGE_SIZE_BYTES, SEGMENT_SIZE_BYTES
from pixstorefs.imaging.formats import HEAD_SIZE_BYTES, sniff
from pixstorefs.objects.layout import Content
from pixstorefs.objects.reader import ObjectReader
from pixstorefs.objects.sealing import Buffer, flat
from pixstorefs.objects.spill import Spill
from pixstorefs.objects.writer import ObjectWriter
from pixstorefs.store.allocation import Allocator

SEGMENTS_PER_DRAFT = 256
SEGMENTS_OF_ALL_DRAFTS = 512
_STEP_SEGMENTS = 32


class Draft:
    """The unsaved content of one image."""

    def __init__(
        self, allocator: Allocator, image_id: bytes, base: ObjectReader | None = None, size_bytes: int = 0
    ) -> None:
        """An empty draft, or one that starts as the version `base` (`size_bytes` long).

        The reader stays the caller's; it must outlive the draft.
        """
        self.size_bytes = size_bytes
        self._allocator = allocator
        self._image_id = image_id
        self._base = base
        self._base_limit_bytes = size_bytes
        self._memory: dict[int, bytearray] = {}
        self._spilled: dict[int, int] = {}
        self._spill: Spill | None = None
        self._writer: ObjectWriter | None = None
        self._frozen = base is not None
        self._sealed_segments = 0
        self._sequential_end = 0
        self._head = b""
        # Content that was sealed but whose transaction failed; still what the draft holds while not None.
        self._content: Content | None = None
        self._finished: list[int] = []
        self._base_is_own = False

    # Writing

    def prepare(self) -> None:
        """Make the object's file before there is anything to write to it. Never fails.

        It takes a fifth of a save; whoever has time before the content comes spares the save that.
        """
        if self._writer is None and not self._frozen:
            self._writer = self._allocator.prepare_object(self._image_id)

    def write(self, offset: int, data: Buffer) -> None:
        """Put `data` at `offset`; what lies between the old end and `offset` reads as zeros.

        Raises OSError: EFBIG beyond 16 TiB, ENOSPC or EIO from the disk. The draft then holds what it held,
        except that a part of `data` may be in it: the caller must not save it unless the write is repeated.
        Raises InvalidInput where `data` is no buffer of bytes.
        """
        with flat(data) as view:
            self._write(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self._content = None
        if offset + len(view) > MAX_IMAGE_SIZE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        while view:
            index, within = divmod(offset, SEGMENT_SIZE_BYTES)
            size_bytes = 0
            if offset <= self._sequential_end and not self._frozen:
                self._seal_completed(offset)
                size_bytes = self._append_directly(index, within, view)
            if not size_bytes:
                size_bytes = min(SEGMENT_SIZE_BYTES - within, len(view))
                segment = self._segment_to_change(index, within, size_bytes)
                segment[within : within + size_bytes] = view[:size_bytes]
            if offset <= self._sequential_end:
                self._sequential_end = max(self._sequential_end, offset + size_bytes)
            offset += size_bytes
            view = view[size_bytes:]
            self.size_bytes = max(self.size_bytes, offset)

    def truncate(self, size_bytes: int) -> None:
        """Make the draft `size_bytes` long: the rest is dropped, or zeros are added without storing them.

        Raises OSError: EFBIG beyond 16 TiB, ENOSPC, EIO.
        """
        self._content = None
        if size_bytes > MAX_IMAGE_SIZE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if size_bytes < self.size_bytes:
            kept, within = divmod(size_bytes, SEGMENT_SIZE_BYTES)
            if self._sealed_segments > kept:
                self._frozen = True
                if within:
                    self._segment_to_change(kept, 0, 0)
                self._sealed_segments = kept
            if within and (kept in self._memory or kept in self._spilled):
                segment = self._segment_to_change(kept, 0, 0)
                segment[within:] = bytes(SEGMENT_SIZE_BYTES - within)
            self._drop(kept + bool(within))
            self._base_limit_bytes = min(self._base_limit_bytes, size_bytes)
            self._sequential_end = min(self._sequential_end, size_bytes)
        self.size_bytes = size_bytes

    def close(self) -> None:
        """Drop everything that was not saved."""
        self._drop(0)
        if self._spill is not None:
            self._spill.close()
            self._spill = None
        if self._writer is not None:
            self._allocator.discard_object(self._writer)
            self._writer = None
        self._close_own_base()
        for version_id in self._finished:
            self._allocator.discard_finished(version_id)
        self._finished = []

    def resume(self, content: Content) -> None:
        """The transaction that should have saved `content` failed: go on from it.

        It may be sealed (that is, offered) again as it is, or written to; it is removed by `close`.
        """
        self._drop(0)
        if self._writer is not None:
            self._allocator.discard_object(self._writer)
            self._writer = None
        self._close_own_base()
        self._base_is_own = True
        self._base = self._allocator.open_finished(content.sealed, self._image_id)
        self._base_limit_bytes = content.size_bytes
        self._sealed_segments = 0
        self._frozen = True
        self._content = content
        self._finished.append(content.sealed.key.version_id)

    def _close_own_base(self) -> None:
        """Close the base if it is not the caller's but a reader of an object that `resume` was given."""
        if self._base_is_own and self._base is not None:
            self._base.close()

    # Reading

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the content from `offset` on; the range must lie inside the draft.

        Raises CorruptImage or OSError where the base cannot be read.
        """
        while out:
            index, within = divmod(offset, SEGMENT_SIZE_BYTES)
            size_bytes = min(SEGMENT_SIZE_BYTES - within, len(out))
            held = self._memory.get(index)
            segment: Buffer = held if held is not None else self._load(index)
            out[:size_bytes] = memoryview(segment)[within : within + size_bytes]
            offset += size_bytes
            out = out[size_bytes:]

    # Saving

    def seal(self) -> Generator[None, None, Content]:
        """Finish the object, a few megabytes a step; returns the content to save.

        The draft must not be changed between the steps, and afterwards only after `resume`.
        Raises OSError (ENOSPC, EIO) or CorruptImage; the draft stays as it was and can be sealed again.
        """
        if self._content is not None:
            self._finished.remove(self._content.sealed.key.version_id)
            return self._content
        present = self._present()
        head = self._read_head()
        if not present:
            return Content(self._allocator.empty_object(), self.size_bytes, None)
        if present[-1] < self._sealed_segments:
            self._frozen = True  # what is last now was sealed as if more followed
        writer = self._writer
        if writer is None or self._frozen:
            writer = self._allocator.begin_object(self._image_id)
        try:
            first = self._sealed_segments if writer is self._writer else 0
            for done, index in enumerate(present[:-1]):
                if index >= first:
                    writer.append(index, memoryview(self._whole(index)))
                    if done % _STEP_SEGMENTS == 0:
                        yield
            last = present[-1]
            length = min(SEGMENT_SIZE_BYTES, self.size_bytes - last * SEGMENT_SIZE_BYTES)
            tail = memoryview(self._whole(last))[:length]
            sealed = writer.finish(last, tail, padding=self._allocator.padding)
        except BaseException:
            if writer is self._writer:
                self._frozen = True
            else:
                self._allocator.discard_object(writer)
            raise
        if writer is self._writer:
            self._writer = None
        return Content(sealed, self.size_bytes, sniff(head))

    def seal_at_once(self) -> Content:
        """`seal` without pauses, for callers that have no event loop to keep alive."""
        steps = self.seal()
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                content: Content = finished.value
                return content

    # Layers

    def _present(self) -> list[int]:
        """Indices of all segments that are not holes, ascending."""
        present = set(self._memory) | set(self._spilled) | set(range(self._sealed_segments))
        if self._base is not None:
            end = -(-self._base_limit_bytes // SEGMENT_SIZE_BYTES)
            for first, count in self._base.runs:
                present.update(range(first, min(first + count, end)))
        return sorted(present)

    def _whole(self, index: int) -> bytearray:
        held = self._memory.get(index)
        return held if held is not None else self._load(index)

    def _load(self, index: int) -> bytearray:
        """A segment that is not in memory, from the layers below it."""
        segment = bytearray(SEGMENT_SIZE_BYTES)
        out = memoryview(segment)
        slot = self._spilled.get(index)
        start = index * SEGMENT_SIZE_BYTES
        if slot is not None:
            assert self._spill is not None
            self._spill.get(slot, out)
        elif index < self._sealed_segments:
            assert self._writer is not None
            self._writer.read_back(index, out)
        elif self._base is not None and start < self._base_limit_bytes:
            self._base.read_segment(index, out)
            valid = self._base_limit_bytes - start
            if valid < SEGMENT_SIZE_BYTES:
                out[valid:] = bytes(SEGMENT_SIZE_BYTES - valid)
        return segment

    def _segment_to_change(self, index: int, within: int, size_bytes: int) -> bytearray:
        """The segment in memory, its old content loaded unless all of it will be overwritten."""
        segment = self._memory.get(index)
        if segment is not None:
            return segment
        if index < self._sealed_segments:
            self._frozen = True
        self._make_room()
        whole = within == 0 and size_bytes == SEGMENT_SIZE_BYTES
        segment = bytearray(SEGMENT_SIZE_BYTES) if whole else self._load(index)
        self._forget_spilled(index)
        self._memory[index] = segment
        self._allocator.segments_in_memory += 1
        return segment

    def _make_room(self) -> None:
        """Spill what memory cannot hold."""
        while len(self._memory) >= SEGMENTS_PER_DRAFT or (
            self._allocator.segments_in_memory >= SEGMENTS_OF_ALL_DRAFTS and self._memory
        ):
            if self._spill is None:
                self._spill = self._allocator.begin_spill()
            index = min(self._memory)
            self._spilled[index] = self._spill.put(self._memory[index])
            del self._memory[index]
            self._allocator.segments_in_memory -= 1

    def _drop(self, start: int, end: int | None = None) -> None:
        """Forget what memory and spill hold of the segments from `start` to before `end`."""
        for index in [*self._memory, *self._spilled]:
            if index >= start and (end is None or index < end):
                if self._memory.pop(index, None) is not None:
                    self._allocator.segments_in_memory -= 1
                self._forget_spilled(index)

    def _forget_spilled(self, index: int) -> None:
        slot = self._spilled.pop(index, None)
        if slot is not None:
            assert self._spill is not None
            self._spill.free(slot)

    # Sealing as it is appended

    def _append_directly(self, index: int, within: int, view: memoryview) -> int:
        """Seal whole segments straight from the caller's buffer; returns how many bytes that took.

        At least one byte stays behind, so that the last segment of the content is never among them.
        """
        count = (len(view) - 1) // SEGMENT_SIZE_BYTES
        if within or not count or index != self._sealed_segments or self._frozen or index in self._memory:
            return 0
        self._append(index, view[: count * SEGMENT_SIZE_BYTES])
        # What memory and spill hold of these segments (written earlier, out of order) is older.
        self._drop(index, index + count)
        return count * SEGMENT_SIZE_BYTES

    def _seal_completed(self, offset: int) -> None:
        """Seal the segments in memory that end before `offset`, where something is about to be written."""
        while (self._sealed_segments + 1) * SEGMENT_SIZE_BYTES <= offset:
            index = self._sealed_segments
            segment = self._memory.get(index)
            if segment is None:
                return
            self._append(index, memoryview(segment))
            del self._memory[index]
            self._allocator.segments_in_memory -= 1

    def _append(self, index: int, segments: memoryview) -> None:
        if self._writer is None:
            self._writer = self._allocator.begin_object(self._image_id)
        if index == 0:
            self._head = bytes(segments[:HEAD_SIZE_BYTES])
        try:
            self._writer.append(index, segments)
        except OSError:
            # Segments of this call that were written do not count: the draft holds what it held.
            self._frozen = True
            raise
        self._sealed_segments = self._writer.next_index

    def _read_head(self) -> bytes:
        if self._head and not self._frozen:
            return self._head
        head = bytearray(min(HEAD_SIZE_BYTES, self.size_bytes))
        self.read_into(0, memoryview(head))
        return bytes(head)
