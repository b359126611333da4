"""The waiting part of reading: what the page cache has is answered at once, the disk is waited for.

Whoever copies, indexes or backs up a folder reads its images in the order of the listing, which is mostly
that in which they were saved. When two in a row had to come from the disk, the next ones are asked for before
somebody opens them: otherwise the disk would have one small request at a time.
"""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import trio

from pixstorefs.fs.open_image import OpenImage
from pixstorefs.fuse.event_loop import Turns
from pixstorefs.store.store import Store

# A fast disk answers within this time. Looking again and again until then, while others are served, beats a
# thread: the hop there and back takes 85 us (measured) on top of the disk's own time.
_PATIENCE_S = 300e-6

# Version ids behind the last one that still count as the next image: others were saved or deleted between.
_NEAR = 4
_AHEAD = 16
# The front of an image: a thumbnailer wants no more, and what is read to its end gets read-ahead of its own.
# Header and tags come on top of the 256 KiB that the kernel asks for first.
_FRONT_SIZE_BYTES = (256 << 10) + 4096
_LONG_FRONT_SIZE_BYTES = 8 << 20


class Reading:
    """Reads open images without keeping the event loop from others."""

    def __init__(self, store: Store, turns: Turns) -> None:
        self._store = store
        self._turns = turns
        self._last = -_NEAR
        self._missed_last = False
        self._asked_below = 0
        # Whether the last image followed the one before it; which one is expected to be read whole next.
        self._in_a_row = False
        self._expected = -1
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    async def read(self, image: OpenImage, offset: int, size_bytes: int) -> memoryview:
        """As `OpenImage.read`, which see."""
        try:
            content = image.read(offset, size_bytes, nowait=True)
        except BlockingIOError:
            image.read_ahead(offset, size_bytes)
            self._ask_ahead(image, offset, size_bytes, missed=True)
            return await self._read_from_disk(image, offset, size_bytes)
        self._ask_ahead(image, offset, size_bytes, missed=False)
        return content

    async def _read_from_disk(self, image: OpenImage, offset: int, size_bytes: int) -> memoryview:
        with self._turns.needed():
            deadline_s = time.perf_counter() + _PATIENCE_S
            while time.perf_counter() < deadline_s:
                await trio.lowlevel.checkpoint()
                if image.is_cached(offset, size_bytes):
                    with contextlib.suppress(BlockingIOError):
                        return image.read(offset, size_bytes, nowait=True)
        await self._turns.in_thread(image.warm, offset, size_bytes)
        return image.read(offset, size_bytes, nowait=False)

    def _ask_ahead(self, image: OpenImage, offset: int, size_bytes: int, *, missed: bool) -> None:
        """In the thread: finding room in the page cache takes longer than opening what is read."""
        self._note_front(image, offset, missed=missed)
        ahead = image.ahead(offset, size_bytes, missed=missed)
        if ahead is not None:
            self._thread.submit(image.read_ahead, *ahead)
        self._note_middle(image, offset, size_bytes)

    def _note_middle(self, image: OpenImage, offset: int, size_bytes: int) -> None:
        """A long image is read to its end, the second one in a row: the next one will be, too."""
        version_id = image.inode.version_id
        passes_middle = offset <= image.size_bytes // 2 < offset + size_bytes
        if passes_middle and offset and version_id == self._last and self._in_a_row:
            self._expected = version_id + 1
            self._thread.submit(self._store.read_ahead, (self._expected,), _LONG_FRONT_SIZE_BYTES)

    def _note_front(self, image: OpenImage, offset: int, *, missed: bool) -> None:
        """The front of an image is read: ask for those behind it, if images come one after the other."""
        version_id = image.inode.version_id
        if offset or version_id is None or version_id == self._last:
            return
        follows = self._in_a_row = self._last < version_id <= self._last + _NEAR
        if version_id == self._expected:
            image.expect_reading(_LONG_FRONT_SIZE_BYTES)
        # What was asked for is no miss any more; whoever is half through it wants the next ones.
        half_through = version_id < self._asked_below <= version_id + _AHEAD // 2
        if follows and (half_through or (missed and self._missed_last)):
            first = self._asked_below if half_through else version_id + 1
            self._asked_below = version_id + 1 + _AHEAD
            self._thread.submit(self._store.read_ahead, range(first, self._asked_below), _FRONT_SIZE_BYTES)
        self._last, self._missed_last = version_id, missed
