"""The waiting part of reading: what the page cache has is answered at once, the disk is waited for."""

import time

import trio

from pixstorefs.fs.open_image import OpenImage
from pixstorefs.fs.operations_polling import Turns

# A fast disk answers within this time. Looking again and again until then, while others are served, beats a
# thread: the hop there and back takes 85 us (measured) on top of the disk's own time.
_PATIENCE_S = 300e-6


class Reading:
    """Reads open images without keeping the event loop from others."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def read(self, image: OpenImage, offset: int, size_bytes: int) -> memoryview:
        """As `OpenImage.read`, which see."""
        try:
            return image.read(offset, size_bytes, nowait=True)
        except BlockingIOError:
            image.read_ahead(offset, size_bytes)
        with self._turns.needed():
            deadline_s = time.perf_counter() + _PATIENCE_S
            while time.perf_counter() < deadline_s:
                await trio.lowlevel.checkpoint()
                try:
                    return image.read(offset, size_bytes, nowait=True)
                except BlockingIOError:
                    pass
        await self._turns.in_thread(image.warm, offset, size_bytes)
        return image.read(offset, size_bytes, nowait=False)
