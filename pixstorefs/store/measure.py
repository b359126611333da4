"""The dimensions of a saved image, read from its header."""

from pixstorefs.format import SEGMENT_SIZE_BYTES
from pixstorefs.imaging.dimensions import measure
from pixstorefs.records import Inode
from pixstorefs.store.store import Store


def measure_object(store: Store, inode: Inode, image_format: str) -> tuple[int, int] | None:
    """Width and height of a saved image in pixels, None where its header does not tell."""
    reader = store.open_object(inode)
    buffer = memoryview(bytearray(SEGMENT_SIZE_BYTES))
    held = -1

    def read(offset: int, length: int) -> bytes:
        nonlocal held
        parts = []
        end = min(offset + length, inode.size_bytes)
        while offset < end:
            index, within = divmod(offset, SEGMENT_SIZE_BYTES)
            if index != held:
                with store.lock:
                    reader.read_segment(index, buffer)
                held = index
            part = bytes(buffer[within : within + end - offset])
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    try:
        return measure(read, inode.size_bytes, image_format)
    finally:
        reader.close()
