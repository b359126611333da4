"""Pictures, and trees of files like those people keep pictures in, made here and the same every time."""

import functools
import io
import os
import random
import struct
import zlib
from pathlib import Path

from PIL import Image, PngImagePlugin, features

IS_ROOT = os.geteuid() == 0

# A folder of real photos. They are nobody's to redistribute: without them the tests that need them skip.
CORPUS = Path(os.environ.get("PIXSTOREFS_CORPUS", Path(__file__).resolve().parents[2] / "shared" / "corpus"))

# Strings that the pictures below carry inside, each long enough to be searched for.
DESCRIPTION = "Grandmother's garden before the storm"
ARTIST = "Annelies Photographer-Example"
CAMERA = "Imaginary Optics Model Nine"
COMMENT = "Keyword: family reunion, do not publish"
DATE = "1998:07:12 09:30:15"

_DESCRIPTION, _MAKE, _MODEL, _ORIENTATION, _DATE_TIME, _ARTIST = (
    0x010E,
    0x010F,
    0x0110,
    0x0112,
    0x0132,
    0x013B,
)
_EXIF_IFD, _DATE_ORIGINAL, _USER_COMMENT = 0x8769, 0x9003, 0x9286
_GPS_IFD, _LATITUDE_REF, _LATITUDE = 0x8825, 1, 2

_SECOND_NS = 10**9

# Names that programs, shells and file systems have been seen to trip over.
ODD_NAMES = [
    b"with two  spaces.jpg",
    b" leading and trailing space ",
    b"-rf.jpg",
    b"--help",
    "Größe — 写真 🌄.jpg".encode(),
    "composed \u00e9.jpg".encode(),
    "composed e\u0301.jpg".encode(),
    b"latin1 caf\xe9.jpg",
    b"\xff\xfe not text",
    b"line one\nline two.jpg",
    b"tab\t bell\x07 escape\x1b[31m.jpg",
    b"quote'\"`$HOME;&|<>*?[a-z]{x,y}!#~%s%n.jpg",
    b"back\\slash.jpg",
    b"colon: comma, equals=.jpg",
    b".hidden.jpg",
    b"...",
    b"Case.JPG",
    b"case.jpg",
    b"n" * 251 + b".jpg",
    "写".encode() * 85,
]


def photo(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Something with the statistics of a photo: smooth, with noise on it."""
    source = random.Random(seed)
    coarse = Image.frombytes("RGB", (16, 12), source.randbytes(16 * 12 * 3))
    grain = Image.frombytes("RGB", (128, 128), source.randbytes(128 * 128 * 3))
    return Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), grain.resize(size), 0.08)


def exif(seed: int) -> Image.Exif:
    """EXIF as a camera writes it, all three directories of it."""
    data = Image.Exif()
    data[_DESCRIPTION] = f"{DESCRIPTION} {seed}"
    data[_MAKE] = "Imaginary Optics"
    data[_MODEL] = CAMERA
    data[_ORIENTATION] = 1 + seed % 8
    data[_DATE_TIME] = DATE
    data[_ARTIST] = ARTIST
    data.get_ifd(_EXIF_IFD).update({_DATE_ORIGINAL: DATE, _USER_COMMENT: b"ASCII\0\0\0" + COMMENT.encode()})
    data.get_ifd(_GPS_IFD).update({_LATITUDE_REF: "N", _LATITUDE: (52.0, 30.0, 17.25)})
    return data


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


@functools.cache
def jpeg(seed: int, size: tuple[int, int] = (640, 480), *, progressive: bool = False) -> bytes:
    """A JPEG with EXIF and a comment."""
    return encoded(
        photo(seed, size),
        "JPEG",
        quality=90,
        progressive=progressive,
        exif=exif(seed),
        comment=COMMENT.encode(),
    )


def png(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A PNG with text chunks."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", DESCRIPTION)
    text.add_itxt("Comment", COMMENT, "en", "Kommentar")
    return encoded(photo(seed, size), "PNG", pnginfo=text, exif=exif(seed))


def webp(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A WebP with EXIF."""
    return encoded(photo(seed, size), "WEBP", quality=80, exif=exif(seed))


def tiff(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A TIFF of two pages, one of them not compressed."""
    pages = [photo(seed, size), photo(seed + 1, size)]
    return encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], description=DESCRIPTION)


def gif(seed: int, size: tuple[int, int] = (160, 120)) -> bytes:
    """An animated GIF."""
    frames = [photo(seed + frame, size).quantize(64) for frame in range(4)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=80, comment=COMMENT)


@functools.cache
def every_format(seed: int = 1) -> dict[str, bytes]:
    """One picture of each common format, by file name. The same object every time: not to be changed."""
    made = {
        "baseline.jpg": jpeg(seed),
        "progressive.jpeg": jpeg(seed + 1, progressive=True),
        "transparent.png": png(seed + 2),
        "palette.png": encoded(photo(seed + 3, (200, 100)).quantize(16), "PNG"),
        "grey.png": encoded(photo(seed + 4, (200, 100)).convert("I;16"), "PNG"),
        "two pages.tiff": tiff(seed + 5),
        "animated.gif": gif(seed + 7),
        "windows.bmp": encoded(photo(seed + 11, (201, 99)), "BMP"),
        "pixels.ppm": encoded(photo(seed + 12, (33, 21)), "PPM"),
        "icon.ico": encoded(photo(seed + 13, (64, 64)), "ICO"),
    }
    if features.check("webp"):
        made["small.webp"] = webp(seed + 14)
    if features.check("jpg_2000"):
        made["wavelet.jp2"] = encoded(photo(seed + 15, (256, 256)), "JPEG2000")
    if features.check("avif"):
        made["modern.avif"] = encoded(photo(seed + 16, (256, 192)), "AVIF")
    return made


def make_album(root: Path) -> None:
    """Formats, names, links and attributes of all kinds, quickly made and copied: about one megabyte."""
    root.mkdir()
    _pictures(root / "every format")
    _odd_names(root / "odd names")
    _links(root / "links")
    _xattrs(root / "xattrs")


def make_tree(root: Path) -> None:
    """A tree with everything in it that a program might copy: see the functions below for what there is."""
    make_album(root)
    _sizes(root / "sizes")
    _many(root / "many in one directory")
    _permissions(root / "permissions")
    # Last, for making anything in a directory changes its time.
    _times(root / "times")


def _pictures(folder: Path) -> None:
    folder.mkdir()
    for name, content in every_format().items():
        (folder / name).write_bytes(content)


def _odd_names(folder: Path) -> None:
    folder.mkdir()
    for number, name in enumerate(ODD_NAMES):
        _write(os.fsencode(folder) + b"/" + name, b"the content of odd name %d\n" % number)
    deep = folder
    for name in ("Fotoalbum " + "x" * 200, "写" * 80, "-", "~"):
        deep = deep / name
        deep.mkdir()
    (deep / "deep.jpg").write_bytes(jpeg(41, (64, 48)))


def _sizes(folder: Path) -> None:
    folder.mkdir()
    source = random.Random(5)
    # Around the page, the segment and the largest FUSE request.
    for size_bytes in (0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 262_144, 1_048_576, 3_000_001):
        (folder / f"{size_bytes} bytes").write_bytes(source.randbytes(size_bytes))
    sparse(folder / "hole in the middle", 9_000_000, {0: b"begin", 5_000_000: source.randbytes(300_000)})
    sparse(folder / "hole at the end", 6_000_001, {0: source.randbytes(5000)})
    sparse(folder / "nothing but a hole", 20_000_000, {})


def sparse(path: Path, size_bytes: int, pieces: dict[int, bytes]) -> None:
    """A file with holes between its pieces."""
    with open(path, "wb") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size_bytes)


def _links(folder: Path) -> None:
    (folder / "other").mkdir(parents=True)
    original = folder / "original.jpg"
    original.write_bytes(jpeg(42, (320, 200)))
    os.link(original, folder / "same directory.jpg")
    os.link(original, folder / "other" / "other directory.jpg")
    (folder / "other" / "empty").touch()
    os.link(folder / "other" / "empty", folder / "empty as well")
    (folder / "to a file").symlink_to("original.jpg")
    (folder / "to a directory").symlink_to("other")
    (folder / "up and down").symlink_to("../links/./other/..//original.jpg")
    (folder / "absolute").symlink_to("/nonexistent/absolute/target")
    (folder / "to itself").symlink_to("to itself")
    os.symlink(b"broken caf\xe9 \n target", os.fsencode(folder) + b"/broken")
    (folder / "long").symlink_to("t" * 4000)


def _many(folder: Path) -> None:
    folder.mkdir()
    for number in range(300):
        (folder / f"IMG_{number:04}.jpg").write_bytes(
            b"\xff\xd8\xff\xe0" + number.to_bytes(2, "big") * number
        )


def _xattrs(folder: Path) -> None:
    folder.mkdir()
    (folder / "rated.jpg").write_bytes(jpeg(43, (100, 80)))
    attributes = {
        "user.rating": b"5",
        "user.empty": b"",
        "user.binary": bytes(range(256)),
        "user.xdg.tags": "Familie,Größe,写真".encode(),
        "user.large": random.Random(6).randbytes(2000),
    }
    if IS_ROOT:
        attributes["trusted.catalogue"] = b"only root sees this"
    for name, value in attributes.items():
        os.setxattr(folder / "rated.jpg", name, value)
    (folder / "album").mkdir()
    os.setxattr(folder / "album", "user.album", b"of a directory")
    (folder / "empty.jpg").touch()
    os.setxattr(folder / "empty.jpg", "user.on.empty", b"value")


def _permissions(folder: Path) -> None:
    folder.mkdir()
    for mode in (0o444, 0o400, 0o755, 0o666, 0o4711, 0o2755, 0o640):
        path = folder / f"mode {mode:04o}"
        path.write_bytes(b"content")
        path.chmod(mode)
    if IS_ROOT:
        (folder / "mode 0000").touch(mode=0)
        (folder / "mode 0000").chmod(0)
        (folder / "somebody else's").write_bytes(b"owned")
        os.chown(folder / "somebody else's", 12345, 54321)
        (folder / "link of somebody else").symlink_to("somebody else's")
        os.chown(folder / "link of somebody else", 12345, 54321, follow_symlinks=False)
    os.mkfifo(folder / "fifo", 0o620)
    for mode in (0o1777, 0o2775, 0o700):
        (folder / f"directory {mode:04o}").mkdir()
        (folder / f"directory {mode:04o}" / "inside.jpg").write_bytes(b"inside")
        (folder / f"directory {mode:04o}").chmod(mode)
    (folder / "read only" / "album").mkdir(parents=True)
    (folder / "read only" / "a.jpg").write_bytes(b"read only")
    (folder / "read only" / "a.jpg").chmod(0o444)
    (folder / "read only" / "album").chmod(0o555)
    (folder / "read only").chmod(0o555)


# Before 1970 with and without nanoseconds, the first and last moments that ext4 with 256-byte inodes and
# a signed 64-bit count of nanoseconds both know, and what a camera makes of an empty battery.
TIMES_NS = {
    "nanoseconds": 1_234_567_890_123_456_789,
    "one nanosecond before 1970": -1,
    "before 1970": -123_456_789 * _SECOND_NS + 5,
    "1901": -(2**31) * _SECOND_NS + 1,
    "zero": 0,
    "one second": _SECOND_NS,
    "beyond 2038": 2**31 * _SECOND_NS + 7,
    "beyond 2106": 2**32 * _SECOND_NS + 999_999_999,
    "2261": 9_200_000_000 * _SECOND_NS + 1,
}


def _times(folder: Path) -> None:
    folder.mkdir()
    for name, mtime_ns in TIMES_NS.items():
        (folder / name).write_bytes(name.encode())
        (folder / f"directory {name}").mkdir()
        (folder / f"link {name}").symlink_to(name)
        for path in (folder / name, folder / f"directory {name}", folder / f"link {name}"):
            os.utime(path, ns=(_SECOND_NS, mtime_ns), follow_symlinks=False)
    os.utime(folder, ns=(0, 987_654_321_987_654_321))


def _write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def slow_tiff() -> bytes:
    """A BigTIFF whose 16 sub-folders, all the same, hold 4,096 widths of 4,096 numbers each: 2 GB."""
    entry = struct.Struct("<HHQQ")
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, 16)
    first = struct.pack("<Q", 2) + entry.pack(254, 4, 1, 1) + entry.pack(330, 16, 16, 200)
    subfolders = (head + first).ljust(200, b"\0") + struct.pack("<16Q", *[400] * 16)
    widths = struct.pack("<Q", 4096) + entry.pack(256, 16, 4096, 400) * 4096
    return subfolders.ljust(400, b"\0") + widths


def slow_png() -> bytes:
    """A PNG of 1.3 million chunks, all empty, in front of the first that counts."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 83, 47, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"quCk", b"") * 1_300_000
