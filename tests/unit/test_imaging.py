"""Formats and dimensions of images made here, and of a folder of real ones where there is one."""

import io
import os
import random
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import pictures
import pytest
from PIL import Image, features

from pixstorefs.imaging.dimensions import MAX_PROCESSOR_S, MAX_READ_BYTES, measure
from pixstorefs.imaging.formats import HEAD_SIZE_BYTES, extension, sniff

PILLOW_FORMATS = [
    ("JPEG", "jpeg"),
    ("PNG", "png"),
    ("GIF", "gif"),
    ("TIFF", "tiff"),
    ("BMP", "bmp"),
    ("ICO", "ico"),
]
PILLOW_FORMATS += [("WEBP", "webp")] if features.check("webp") else []
PILLOW_FORMATS += [("JPEG2000", "jp2")] if features.check("jpg_2000") else []
PILLOW_FORMATS += [("AVIF", "avif")] if features.check("avif") else []


def picture(pillow_format, size=(83, 47), **options):
    file = io.BytesIO()
    if pillow_format == "ICO":
        options = {"sizes": [size], **options}
    Image.new("RGB", size, (200, 90, 10)).save(file, pillow_format, **options)
    return file.getvalue()


def measured(content, format=None):
    format = format or sniff(content[:HEAD_SIZE_BYTES])
    return measure(lambda offset, length: content[offset : offset + length], len(content), format)


def box(kind, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def heic(extents, associations, primary=1, brand=b"heic", wide=False):
    """A HEIF file with one `ispe` for each extent; `associations` are (item, number of its ispe)."""
    ipma = b"".join(struct.pack(">HBH" if wide else ">HBB", item, 1, number) for item, number in associations)
    properties = [box(b"ispe", bytes(4), struct.pack(">II", *extent)) for extent in extents]
    meta = [
        box(b"pitm", bytes(4), struct.pack(">H", primary)) if primary else b"",
        box(
            b"iprp",
            box(b"ipco", *properties),
            box(b"ipma", bytes([0, 0, 0, wide]), struct.pack(">I", len(associations)), ipma),
        ),
    ]
    return (
        box(b"ftyp", brand, bytes(4), b"mif1", b"heic")
        + box(b"free", b"x" * 90)
        + box(b"meta", bytes(4), *meta)
    )


def tiff_folder(order, offset, entries):
    """A classic TIFF folder of (tag, values), as LONGs; returns it with the arrays behind it."""
    behind = offset + 2 + 12 * len(entries) + 4
    folder, arrays = struct.pack(order + "H", len(entries)), b""
    for tag, values in entries:
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, arrays = struct.pack(order + "I", behind + len(arrays)), arrays + packed
        folder += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    return folder + bytes(4) + arrays


def raw(order):
    """A RAW as NEF and DNG are: a thumbnail first, in its sub-folders a preview and the photo."""
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    preview = [(254, (1,)), (256, (1600,)), (257, (1200,))]
    photo = [(254, (0,)), (256, (6000,)), (257, (4000,))]
    content = mark + struct.pack(order + "I", 100)
    content = content.ljust(100, b"\0") + tiff_folder(
        order, 100, [(254, (1,)), (256, (160,)), (257, (120,)), (330, (300, 500))]
    )
    content = content.ljust(300, b"\0") + tiff_folder(order, 300, preview)
    return content.ljust(500, b"\0") + tiff_folder(order, 500, photo)


@pytest.mark.parametrize(("pillow_format", "format"), PILLOW_FORMATS)
def test_images_of_pillow(pillow_format, format):
    """The format and the size of what Pillow writes are told from its bytes."""
    content = picture(pillow_format)
    assert sniff(content[:HEAD_SIZE_BYTES]) == format
    assert measured(content) == (83, 47)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        (b"", None),
        (b"\xff", None),
        (b"\xff\xd8\xff\xe1", "jpeg"),
        (b"GIF87a", "gif"),
        (b"GIF88a", None),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\x89PNG\n\x1a\n", None),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", None),
        (b"II*\x00\x08\x00\x00\x00", "tiff"),
        (b"MM\x00*\x00\x00\x00\x08", "tiff"),
        (b"II+\x00\x08\x00\x00\x00", "tiff"),
        (b"MM\x00+\x00\x08\x00\x00", "tiff"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "cr2"),
        (b"IIRO\x08\x00\x00\x00", "orf"),
        (b"IIRS\x08\x00\x00\x00", "orf"),
        (b"MMOR\x00\x00\x00\x08", "orf"),
        (b"IIU\x00\x18\x00\x00\x00", "rw2"),
        (b"FUJIFILMCCD-RAW 0201", "raf"),
        (b"FUJI mountain", None),
        (b"8BPS\x00\x01", "psd"),
        (b"BM is how this text begins", None),
        (b"BM" + bytes(12) + b"\x28\x00\x00\x00", "bmp"),
        (b"\x00\x00\x01\x00\x01\x00\x10\x10\x00\x00\x01\x00\x20\x00\x68\x04\x00\x00\x16\x00\x00\x00", "ico"),
        (b"\x00\x00\x01\x00" + bytes(60), None),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n\x00\x00\x00\x14ftypjp2 ", "jp2"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n\x00\x00\x00\x14ftypmjp2", None),
        (b"\xff\x4f\xff\x51\x00\x2f", "jp2"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jxl"),
        (b"\xff\x0a\xfa\x1f", "jxl"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "heic"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "heic"),
        (b"\x00\x00\x00\x14ftypmif1\x00\x00\x00\x00mif1", "heic"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avifmiaf", "avif"),
        (b"\x00\x00\x00\x14ftypmif1\x00\x00\x00\x00mif1avif", "heic"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf", "avif"),
        (b"\x00\x00\x00\x18ftypavis\x00\x00\x00\x00avismsf1", "avif"),
        (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom", "cr3"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00isomheic", None),
        (b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", None),
        (b"%PDF-1.7", None),
        (b"SQLite format 3\x00", None),
        (b"\x00\x01\x00\x00\x00", None),
        (bytes(64), None),
    ],
)
def test_heads(head, format):
    """Each format is known by its own bytes, and look-alikes are not taken for it."""
    assert sniff(head) == format


def test_sniff_takes_any_bytes():
    """Heads cut anywhere and random ones never raise."""
    generator = random.Random(7)
    for pillow_format, _ in PILLOW_FORMATS:
        content = picture(pillow_format)
        for length in range(HEAD_SIZE_BYTES):
            sniff(content[:length])
    starts = [
        b"",
        b"II*\0",
        b"RIFF",
        b"\0\0\1\0",
        b"\0\0\0\x18ftypmif1",
        b"\0\0\0\x0c",
        b"\xff\xff\xff\xffftyp",
    ]
    for _ in range(2000):
        sniff(generator.choice(starts) + generator.randbytes(generator.randrange(64)))


def test_extension():
    """JPEGs are .jpg; the other formats are called like their extension."""
    assert [extension(format) for format in ("jpeg", "png", "tiff", "cr2")] == ["jpg", "png", "tiff", "cr2"]


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"exif": b"Exif\0\0MM\0*"}])
@pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")
def test_webp_variants(options):
    """Lossless, lossy and extended WebP are measured."""
    assert measured(picture("WEBP", (1000, 3), **options)) == (1000, 3)


@pytest.mark.parametrize("pillow_format", ["JPEG", "TIFF", "PNG"])
def test_rotation_is_not_applied(pillow_format):
    """The sides are those of the stored pixels, whatever EXIF says about turning them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert measured(picture(pillow_format, exif=exif)) == (83, 47)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "stray",
    [
        b"",
        b"\xff" * 40,
        b"\0" * 500,
        b"\xff\x00" * 9,
        b"\xff\xd0",
        b"\xff\xe1\0\x09\xff\xd8\xff\xd9x",
        b"x" * 30 + b"\xff",
    ],
)
def test_jpeg_with_stray_bytes(progressive, stray):
    """Bytes that cameras and editors leave between the segments of a JPEG do no harm."""
    content = picture("JPEG", progressive=progressive)
    assert measured(content[:20] + stray + content[20:]) == (83, 47)  # behind the JFIF segment
    assert measured(content[:2] + b"\xff\xda" + content[2:], "jpeg") is None


def test_icons_hold_many_sizes():
    """An icon measures as its largest image; 256 is written as 0."""
    assert measured(picture("ICO", (300, 300), sizes=[(16, 16), (256, 256), (32, 32)])) == (256, 256)


@pytest.mark.parametrize("version", [1, 2])
def test_photoshop(version):
    """PSD, and PSB for the large ones, are measured."""
    content = b"8BPS" + struct.pack(">H6xHIIHH", version, 3, 47, 83, 8, 3)
    assert sniff(content) == "psd"
    assert measured(content) == (83, 47)


def test_huge_photos_are_measured():
    """A header of 400 megapixels is measured: nothing is decoded, so there is no bomb to fear."""
    content = bytearray(picture("PNG"))
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    ihdr = content[12:29]
    content[29:33] = struct.pack(">I", zlib.crc32(ihdr))
    assert measured(bytes(content)) == (20_000, 20_000)


@pytest.mark.parametrize("order", ["<", ">"])
def test_raw_is_not_its_thumbnail(order):
    """A RAW whose first folder is a thumbnail measures as the photo in the sub-folder."""
    assert sniff(raw(order)[:HEAD_SIZE_BYTES]) == "tiff"
    assert measured(raw(order)) == (6000, 4000)


def test_raw_with_its_own_mark():
    """Olympus RAWs are TIFFs under another mark."""
    assert measured(b"IIRO" + raw("<")[4:]) == (6000, 4000)


def test_thumbnail_alone_is_better_than_nothing():
    """A RAW without a photo in a sub-folder measures as the thumbnail it has."""
    content = b"II*\x00" + struct.pack("<I", 8)
    content += tiff_folder("<", 8, [(254, (1,)), (256, (160,)), (257, (120,))])
    assert measured(content) == (160, 120)


def test_big_tiff():
    """BigTIFF is measured."""
    content = picture("TIFF", big_tiff=True)
    assert content[2:4] == b"+\x00"
    assert measured(content) == (83, 47)


def test_heic_primary_item():
    """HEIC measures as its primary item, not as a tile or a thumbnail."""
    extents = [(512, 512), (4032, 3024), (9000, 9000)]
    for wide in (False, True):
        assert measured(heic(extents, [(1, 1), (2, 3), (49, 2)], primary=49, wide=wide)) == (4032, 3024)


def test_heic_without_primary_item():
    """HEIC without a primary item, or with one that has no size, measures as its largest image."""
    extents = [(512, 512), (4032, 3024)]
    assert measured(heic(extents, [(1, 1)], primary=None)) == (4032, 3024)
    assert measured(heic(extents, [(1, 1)], primary=5)) == (4032, 3024)


@pytest.mark.parametrize("format", ["jxl", "cr3", "raf", "rw2", "svg", ""])
def test_formats_without_a_parser(format):
    """Formats that cannot be measured give None."""
    assert measured(b"\xff\x0a" + bytes(100), format) is None


def test_empty_and_zero_sizes():
    """No bytes, and sides of zero, are no size."""
    for format in (
        "jpeg",
        "png",
        "gif",
        "webp",
        "tiff",
        "bmp",
        "heic",
        "avif",
        "jp2",
        "psd",
        "ico",
        "cr2",
        "orf",
    ):
        assert measured(b"", format) is None
    assert measured(heic([(0, 100)], [(1, 1)])) is None


def damaged_copies(content, generator):
    for _ in range(25):
        copy = bytearray(content)
        for _ in range(generator.randrange(1, 6)):
            copy[generator.randrange(min(len(copy), 400))] = generator.randrange(256)
        yield bytes(copy)
    for _ in range(10):
        yield content[: generator.randrange(len(content))]


def test_damaged_images_never_raise():
    """Cut and scribbled-over images give a size or None, without a warning."""
    generator = random.Random(11)
    contents = [(format, picture(pillow_format)) for pillow_format, format in PILLOW_FORMATS]
    contents += [("tiff", raw("<")), ("tiff", raw(">")), ("heic", heic([(8, 8), (90, 70)], [(1, 2)]))]
    contents += [("psd", b"8BPS" + bytes(100))]
    for format, content in contents:
        for copy in damaged_copies(content, generator):
            size = measured(copy, format)
            assert size is None or (size[0] > 0 and size[1] > 0)


def test_errors_of_read_are_no_size():
    """Where the plaintext cannot be read there is no size, and no exception."""

    def fail(offset, length):
        raise OSError("the disk")

    for format in ("jpeg", "webp", "heic", "tiff"):
        assert measure(fail, 1000, format) is None


def test_only_the_header_is_read():
    """A large image costs a few reads at its start, and a header without end is given up."""
    content = picture("JPEG") + bytes(10)
    reads = []

    def read(offset, length):
        reads.append(length)
        return content[offset : offset + length].ljust(length, b"\0")

    assert measure(read, 1 << 33, "jpeg") == (83, 47)
    assert sum(reads) <= 64 * 1024

    reads.clear()
    endless = b"\xff\xd8" + b"\xff\xe1\xff\xff".ljust(65537, b"x") * 2

    def read_endless(offset, length):
        reads.append(length)
        start = 2 + (offset - 2) % 65537 if offset >= 2 else offset
        return (endless * 2)[start : start + length]

    assert measure(read_endless, 1 << 40, "jpeg") is None
    assert sum(reads) <= MAX_READ_BYTES


@pytest.mark.parametrize(("content", "format"), [(pictures.slow_tiff, "tiff"), (pictures.slow_png, "png")])
def test_headers_made_to_take_long_are_given_up(content, format):
    """However many steps a header has, measuring it takes no more processor time than it may."""
    made = content()
    began_s = time.thread_time()
    assert measure(lambda offset, length: made[offset : offset + length], len(made), format) is None
    assert time.thread_time() - began_s < 2 * MAX_PROCESSOR_S


def test_sides_that_no_image_has():
    """A side of 2^31 pixels or more is no size, and one pixel less is."""
    for side, told in ((1 << 31, None), ((1 << 31) - 1, ((1 << 31) - 1, 7))):
        header = b"8BPS\0\1" + bytes(8) + struct.pack(">II", 7, side)
        assert (
            measure(lambda offset, length, header=header: header[offset : offset + length], 22, "psd") == told
        )


def test_threads_leave_the_warning_filters_alone():
    """Measuring in many threads at once leaves the process's warning filters as they were."""
    before = list(warnings.filters)
    content = picture("PNG")
    threads = [threading.Thread(target=lambda: [measured(content) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def stored_size_by_pillow(path):
    """What Pillow says, with the turning it applies to TIFFs undone; None where it cannot open the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                if image.format == "TIFF":
                    return image.tag_v2[256], image.tag_v2[257]
                return image.size
        except Exception:
            return None


@pytest.mark.skipif(
    not pictures.CORPUS.is_dir(), reason="no folder of real photos: name one in PIXSTOREFS_CORPUS"
)
def test_real_images():
    """On real files of all kinds we never raise, and agree with Pillow wherever it opens one."""
    opened = 0
    for folder, _, names in os.walk(pictures.CORPUS):
        for name in names:
            path = Path(folder, name)
            content = path.read_bytes()
            format = sniff(content[:HEAD_SIZE_BYTES])
            size = measured(content, format) if format else None
            expected = stored_size_by_pillow(path)
            if expected is not None:
                assert size == expected, f"{path} ({format})"
                opened += 1
    assert opened > 0
