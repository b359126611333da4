"""Dimensions: width and height of an image in pixels, from its header, without decoding it.

Pillow does it for PNG, GIF, BMP and JPEG 2000. Own parsers, none over a screen long, where it cannot or
does more: it lacks HEIC, decodes on opening (ICO), reads the whole file first (WebP, AVIF), swaps the sides
of rotated TIFFs, sees the thumbnail in front of a RAW instead of the RAW, and reads all metadata of JPEG and
PSD (measured: 123 µs for a JPEG against 12, and up to 1.3 s for a damaged PSD).
"""

import io
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import IO

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PngImagePlugin import PngImageFile

Read = Callable[[int, int], bytes]
Size = tuple[int, int]

# Real headers with all their metadata have a few MiB at most; what needs more is not worth a save's time.
MAX_READ_BYTES = 16 << 20
# And so many times longer than any real one takes (12 us to 3 ms), for headers made to take long. Processor
# time, so that a busy machine measures what an idle one does.
MAX_PROCESSOR_S = 0.5
# A side of more pixels is a lie, and wraps around in programs that take it for a signed number.
_MAX_SIDE = (1 << 31) - 1
# Some 80 bytes a tile: 4 KiB in a 12-megapixel HEIC of 48 tiles.
_MAX_META_SIZE_BYTES = 1 << 20
_MAX_TOP_BOXES = 64
# Depth maps and the like come as APP segments of 64 KiB before the frame header.
_MAX_JPEG_SEGMENTS = 1024
# Far beyond the tags and the resolutions there are; damaged folders claim any number.
_MAX_TIFF_ENTRIES = 4096
_MAX_TIFF_SUBFOLDERS = 16
_BUFFER_SIZE_BYTES = 16 * 1024

# The classes themselves, not Image.open: that tries every plugin, and refuses photos beyond 179 megapixels as
# decompression bombs, which only matters to those who decompress.
_PILLOW: dict[str, Callable[[IO[bytes]], ImageFile]] = {
    "png": PngImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "jp2": Jpeg2KImageFile,
}
# SOF0 to SOF15, without DHT, JPG and DAC in between; stuffing, TEM, RST0 to RST7 and SOI.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
# The warning filters are global to the process: two threads that restore them must not interleave.
_warnings_lock = threading.Lock()


def measure(read: Read, size_bytes: int, format: str) -> Size | None:
    """Width and height in pixels as stored (EXIF rotation not applied), or None where they cannot be told.

    `read(offset, length)` gives plaintext bytes, fewer at the end of the `size_bytes` there are; `format` is
    what `formats.sniff` said. Never raises: a damaged image, and an error of `read` too, give None, and so
    does a header that takes more than MAX_READ_BYTES or, in this thread, MAX_PROCESSOR_S.
    """
    try:
        parse = _PARSERS.get(format, _by_pillow if format in _PILLOW else None)
        size = parse(_Budget(read, size_bytes).read, size_bytes, format) if parse else None
    # The plugins meet damaged files with almost any exception: a list of them would be a list of surprises.
    except Exception:  # noqa: BLE001
        return None
    return size if size and all(0 < side <= _MAX_SIDE for side in size) else None


class _Budget:
    """Reads for a parser until that has had enough: every step of one that may take long is a read."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes
        self._left_bytes = MAX_READ_BYTES
        self._ends_s = time.thread_time() + MAX_PROCESSOR_S

    def read(self, offset: int, length: int) -> bytes:
        """As the `read` it was given. Raises OSError when the budget is used up."""
        length = min(length, max(self._size_bytes - offset, 0))
        self._left_bytes -= length
        if self._left_bytes < 0 or time.thread_time() > self._ends_s:
            raise OSError("a header of unreasonable length")
        return self._read(offset, length) if length else b""


class _Plaintext(io.RawIOBase):
    """The plaintext as a read-only file for Pillow, which trusts the lengths it reads."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self._size_bytes = size_bytes
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise OSError("a seek to before the start")
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        data = self._read(self._offset, len(buffer))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _by_pillow(read: Read, size_bytes: int, format: str) -> Size:
    file = io.BufferedReader(_Plaintext(read, size_bytes), _BUFFER_SIZE_BYTES)
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF and the like: not our caller's concern
        with _PILLOW[format](file) as image:
            return image.size


def _jpeg(read: Read, _size_bytes: int, _format: str) -> Size | None:
    """ITU-T T.81 annex B: the frame header, the first of the markers SOF0 to SOF15.

    Like other decoders it steps over stray bytes between segments: cameras pad them.
    """
    offset = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        head = read(offset, 32)
        marker_at = head.find(b"\xff")
        if marker_at < 0 or len(head) < marker_at + 2:
            if len(head) < 32:
                return None
            offset += 31
            continue
        offset += marker_at
        marker = head[marker_at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            offset += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            offset += 2
        elif marker in (0xD9, 0xDA):  # the end, or pixels without a frame header
            return None
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", read(offset + 5, 4))
            return width, height
        else:
            (length,) = struct.unpack(">H", read(offset + 2, 2))
            offset += 2 + max(length, 2)
    return None


def _webp(read: Read, _size_bytes: int, _format: str) -> Size | None:
    """RFC 9649: the canvas of the extended format (2.7), or the one image of the simple ones (2.5, 2.6)."""
    head = read(0, 30)
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L" if head[20] == 0x2F:
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 " if (
            head[23:26] == b"\x9d\x01\x2a"
        ):  # RFC 6386 section 9.1; the upper two bits are a scale
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _ico(read: Read, _size_bytes: int, _format: str) -> Size:
    """The largest image of the directory; a side of 256 is written as 0."""
    count = int.from_bytes(read(4, 2), "little")
    entries = read(6, 16 * count)
    sizes = [(entries[at] or 256, entries[at + 1] or 256) for at in range(0, len(entries) - 15, 16)]
    return max(sizes, key=_area)


def _psd(read: Read, _size_bytes: int, _format: str) -> Size:
    """The file header of PSD and of its large form, PSB: height before width."""
    height, width = struct.unpack(">II", read(14, 8))
    return width, height


def _tiff(read: Read, _size_bytes: int, _format: str) -> Size | None:
    """TIFF 6.0, BigTIFF and the RAWs built like them: the first folder, or what it is a thumbnail of."""
    head = read(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\x00", b"\x00+")
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    folder = _tiff_folder(read, first, order, big)
    candidates = [folder]
    if _is_reduced(folder):
        # NEF, DNG and ARW: a preview first, for programs that know no better, and the photo in a sub-folder.
        offsets = folder.get(330, ())[:_MAX_TIFF_SUBFOLDERS]
        subfolders = [_tiff_folder(read, offset, order, big) for offset in offsets]
        candidates = [each for each in subfolders if not _is_reduced(each)] or candidates
    return max(((each[256][0], each[257][0]) for each in candidates), key=_area)


def _tiff_folder(read: Read, offset: int, order: str, big: bool) -> dict[int, tuple[int, ...]]:
    """The integers of the tags we use: NewSubfileType, ImageWidth, ImageLength, SubIFDs."""
    count_code, entry_code, inline_size = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    count_size, entry = struct.calcsize(count_code), struct.Struct(order + entry_code)
    (count,) = struct.unpack(order + count_code, read(offset, count_size))
    entries = read(offset + count_size, min(count, _MAX_TIFF_ENTRIES) * entry.size)
    folder = {}
    for at in range(0, len(entries) - entry.size + 1, entry.size):
        tag, type_number, values, inline = entry.unpack_from(entries, at)
        code = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(type_number)
        if tag not in (254, 256, 257, 330) or code is None or not 0 < values <= _MAX_TIFF_ENTRIES:
            continue
        layout = struct.Struct(f"{order}{values}{code}")
        if layout.size > inline_size:
            (place,) = struct.unpack(order + ("Q" if big else "I"), inline)
            inline = read(place, layout.size)
        folder[tag] = layout.unpack_from(inline)
    return folder


def _is_reduced(folder: dict[int, tuple[int, ...]]) -> bool:
    return bool(folder.get(254, (0,))[0] & 1)


def _isobmff(read: Read, size_bytes: int, _format: str) -> Size | None:
    """HEIC and AVIF (ISO/IEC 23008-12): the `ispe` property of the primary item, else the largest one."""
    meta = _meta_box(read, size_bytes)
    boxes = dict(_boxes(meta, 4))  # after version and flags
    properties = dict(_boxes(boxes[b"iprp"], 0))
    extents = {
        number: struct.unpack_from(">II", body, 4)
        for number, (kind, body) in enumerate(_boxes(properties[b"ipco"], 0), start=1)
        if kind == b"ispe"
    }
    primary_item = None
    if b"pitm" in boxes:
        body = boxes[b"pitm"]
        (primary_item,) = struct.unpack_from(">I" if body[0] else ">H", body, 4)
    for item, number in _associations(properties.get(b"ipma", b"")):
        if item == primary_item and number in extents:
            return extents[number]
    return max(extents.values(), key=_area)


def _meta_box(read: Read, size_bytes: int) -> bytes:
    offset = 0
    for _ in range(_MAX_TOP_BOXES):
        head = read(offset, 16)
        length, kind = struct.unpack_from(">I4s", head)
        header_size = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", head, 8)
            header_size = 16
        elif length == 0:
            length = size_bytes - offset
        if kind == b"meta":
            return read(offset + header_size, min(length - header_size, _MAX_META_SIZE_BYTES))
        if length < header_size:
            break
        offset += length
    raise ValueError("no meta box")


def _boxes(data: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """The boxes inside a box as (type, body); ends at the first that makes no sense."""
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        length = length or len(data) - offset
        if length < 8:
            return
        yield kind, data[offset + 8 : offset + length]
        offset += length


def _associations(body: bytes) -> Iterator[tuple[int, int]]:
    """(item, number of its property, from 1) for all items of an `ipma` box, in its order."""
    if not body:
        return
    item_code = ">I" if body[0] else ">H"
    wide = bool(body[3] & 1)
    (entries,) = struct.unpack_from(">I", body, 4)
    at = 8
    for _ in range(entries):
        (item,) = struct.unpack_from(item_code, body, at)
        at += struct.calcsize(item_code)
        count = body[at]
        at += 1
        for _ in range(count):
            # The topmost bit says whether the property is essential.
            if wide:
                yield item, int.from_bytes(body[at : at + 2], "big") & 0x7FFF
            else:
                yield item, body[at] & 0x7F
            at += 2 if wide else 1


def _area(size: Size) -> int:
    return size[0] * size[1]


_PARSERS: dict[str, Callable[[Read, int, str], Size | None]] = {
    "jpeg": _jpeg,
    "webp": _webp,
    "ico": _ico,
    "psd": _psd,
    "tiff": _tiff,
    "cr2": _tiff,
    "orf": _tiff,
    "heic": _isobmff,
    "avif": _isobmff,
}
