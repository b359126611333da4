"""Formats: which image format a file has, told from its first bytes.

The name of a file plays no part: programs save under temporary names, and cameras have opinions. `sniff` runs
at every save, so it is one lookup of the first four bytes and, where those are shared, one comparison more.
SVG is missing on purpose: it is text, and telling it from other XML takes more than a look.
"""

# Bytes that `sniff` looks at; more do no harm.
HEAD_SIZE_BYTES = 64

_STARTS = {
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
    b"II+\x00": "tiff",  # BigTIFF
    b"MM\x00+": "tiff",
    b"8BPS": "psd",
    b"\x00\x00\x01\x00": "ico",
    b"\x00\x00\x00\x0c": "box",  # the signature box of JPEG 2000 and JPEG XL
    b"\xffO\xffQ": "jp2",  # a codestream without its box
    b"IIRO": "orf",
    b"IIRS": "orf",
    b"MMOR": "orf",
    b"IIU\x00": "rw2",
    b"FUJI": "raf",
}
_JPEG_START = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_JXL_SIGNATURE = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_JXL_START = b"\xff\x0a"

# The header sizes of the BMP versions ever in use: "BM" alone begins too many texts.
_BMP_HEADER_SIZES_BYTES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

# Brands of ISO/IEC 14496-12 files that are images, by what they are coded with. mif1 and msf1 (ISO/IEC
# 23008-12) only say "an image": the other brands decide, and HEIC is what cameras mean by them.
_BRANDS = {
    b"avif": "avif",
    b"avis": "avif",
    b"heic": "heic",
    b"heix": "heic",
    b"heim": "heic",
    b"heis": "heic",
    b"hevc": "heic",
    b"hevx": "heic",
    b"hevm": "heic",
    b"hevs": "heic",
    b"crx ": "cr3",
}
_GENERAL_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})

_EXTENSIONS = {"jpeg": "jpg"}


def sniff(head: bytes) -> str | None:
    """The format of a file by its first bytes, HEAD_SIZE_BYTES of them or what there is; None if no image.

    One of: jpeg, png, gif, webp, tiff, bmp, heic, avif, jxl, jp2, psd, ico, cr2, cr3, orf, rw2, raf. The RAW
    formats that are TIFFs and say no more at their head (NEF, DNG, ARW, PEF) are "tiff".
    """
    if head[:3] == _JPEG_START:
        return "jpeg"
    format = _STARTS.get(head[:4])
    if format is not None:
        return _confirm(format, head)
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    if head[:2] == b"BM":
        return "bmp" if int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES_BYTES else None
    return "jxl" if head[:2] == _JXL_START else None


def extension(format: str) -> str:
    """The usual file name extension of a format `sniff` names, without the dot."""
    return _EXTENSIONS.get(format, format)


def _confirm(format: str, head: bytes) -> str | None:
    """The final word where the first four bytes are not enough."""
    match format:
        case "tiff":
            return "cr2" if head[8:10] == b"CR" and head[:2] == b"II" else "tiff"
        case "png":
            sure = head[:8] == _PNG_SIGNATURE
        case "gif":
            sure = head[4:6] in (b"7a", b"9a")
        case "webp":
            sure = head[8:12] == b"WEBP"
        case "raf":
            sure = head[:15] == b"FUJIFILMCCD-RAW"
        case "ico":
            sure = _is_icon(head)
        case "box":
            return _by_signature_box(head)
        case _:
            sure = True
    return format if sure else None


def _is_icon(head: bytes) -> bool:
    """Whether a directory follows whose first image lies behind it: 00 00 01 00 alone is too common."""
    count = int.from_bytes(head[4:6], "little")
    image_offset = int.from_bytes(head[18:22], "little")
    return count > 0 and 6 + 16 * count <= image_offset


def _by_signature_box(head: bytes) -> str | None:
    signature = head[:12]
    if signature == _JXL_SIGNATURE:
        return "jxl"
    # mjp2 is Motion JPEG 2000: a film.
    return "jp2" if signature == _JP2_SIGNATURE and head[20:24] != b"mjp2" else None


def _by_brand(head: bytes) -> str | None:
    brands = [head[8:12]]
    end = min(len(head), int.from_bytes(head[:4], "big"))
    brands += [head[at : at + 4] for at in range(16, end - 3, 4)]
    major = _BRANDS.get(brands[0])
    if major is not None:
        return major
    if brands[0] not in _GENERAL_BRANDS:
        return None  # a film may name image brands among the compatible ones
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "heic")
