"""The Python API: what it saves it gives back, what it refuses leaves everything as it was."""

import array
import contextlib
import ctypes
import errno
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from stores import SEGMENT, Place, check_store, digests, image, save_file

import pixstorefs
from pixstorefs import api
from pixstorefs.api import ImageStore
from pixstorefs.disk.file_lock import FileLock
from pixstorefs.disk.folder import Folder
from pixstorefs.errors import (
    CorruptImage,
    CorruptStore,
    ImageNotFound,
    InvalidInput,
    NewerFormat,
    NoSpace,
    NotAStore,
    ReadOnlyStore,
    StoreClosed,
    StoreInUse,
    StoreNotWritable,
    WrongKey,
)
from pixstorefs.keys.secrets import Secret, create_keyfile, default_keyfile_path, secret_from_keyfile
from pixstorefs.store import measure
from pixstorefs.store.key_slots import KeySlots
from pixstorefs.trust.header import create_store, read_header

# A real PNG of 3 by 2 pixels.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000003000000020802000000121"
    "6f14d000000134944415408d763f8cfc0c0c0f01f8419a0340044ee05fb0c"
    "2bea6b0000000049454e44ae426082"
)


# Saving, reading, updating, deleting


def test_save_and_read(images):
    """A saved image is read back bit for bit, and its record tells what it is."""
    record = images.save_image(PNG, directory="2026/holidays")
    assert images.read_image(record.id) == PNG
    assert (record.format, record.width, record.height) == ("png", 3, 2)
    assert record.size_bytes == len(PNG)
    assert record.path == f"2026/holidays/{record.id}.png"
    assert record.created_ns == record.modified_ns > 0
    assert images.get_image_record(record.id) == record


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes(images, kind):
    """Bytes, bytearrays and memoryviews are all data."""
    record = images.save_image(kind(image(200_000)))
    images.update_image(record.id, kind(image(300_000, 1)))
    assert images.read_image(record.id) == image(300_000, 1)


def wide(data: bytes) -> array.array:
    return array.array("I", data)


def plane(data: bytes) -> memoryview:
    """As numpy has images: two dimensions."""
    return memoryview(data).cast("B", (len(data) // 1000, 1000))


class Pixel(ctypes.Structure):
    """Items as those of numpy's structured arrays."""

    _fields_ = (("value", ctypes.c_uint32),)


def structured(data: bytes) -> memoryview:
    return memoryview((Pixel * (len(data) // 4)).from_buffer_copy(data))


def doubles(data: bytes) -> memoryview:
    return memoryview(data).cast("d", (len(data) // 80, 10))


@pytest.mark.parametrize("kind", [wide, plane, doubles, structured])
def test_buffers_that_are_not_flat(images, kind):
    """Whatever the items and dimensions of a buffer, all of its bytes are saved."""
    record = images.save_image(kind(image(200_000)))
    assert record.size_bytes == 200_000
    assert images.read_image(record.id) == image(200_000)
    assert images.update_image(record.id, kind(image(200_000, 1))).size_bytes == 200_000
    assert images.read_image(record.id) == image(200_000, 1)


def rows_reversed(data: bytes) -> memoryview:
    return memoryview(data).cast("B", (len(data) // 1000, 1000))[::-1]


@pytest.mark.parametrize(
    "kind",
    [
        lambda data: memoryview(data)[::2],
        lambda data: memoryview(data)[::-1],
        rows_reversed,
        lambda data: data.decode("latin1"),
        io.BytesIO,
        lambda data: list(data),
        lambda data: None,
    ],
)
def test_what_is_no_buffer_of_bytes(images, kind):
    """What does not lie in memory as the bytes of a file does is refused and named; nothing is saved."""
    record = images.save_image(PNG)
    for call in (images.save_image, lambda data: images.update_image(record.id, data)):
        with pytest.raises(InvalidInput, match=type(kind(image(2000))).__name__):
            call(kind(image(2000)))
    assert images.read_image(record.id) == PNG
    assert [found.id for found in images.images()] == [record.id]


def test_buffer_that_another_thread_resizes(images, monkeypatch):
    """A bytearray keeps its size as long as it is saved, and its owner can change it afterwards."""
    data = bytearray(image(300_000))
    sniffed = api.sniff

    def resize(head: bytes) -> str | None:
        with pytest.raises(BufferError):
            data.extend(b"more")
        return sniffed(head)

    monkeypatch.setattr(api, "sniff", resize)
    record = images.save_image(data)
    assert images.read_image(record.id) == image(300_000)
    data[:] = b"no image"
    with pytest.raises(InvalidInput):
        images.save_image(data)
    data.clear()


@pytest.mark.parametrize(
    "size_bytes", [3, 63, 64, 65, SEGMENT - 1, SEGMENT, SEGMENT + 1, (1 << 20) + 1, 3 << 20]
)
def test_files_of_any_size(images, tmp_path, size_bytes):
    """From a file comes the same as from memory, whatever its size; chunks are never longer than 128 KiB."""
    source = tmp_path / "source"
    source.write_bytes(image(size_bytes))
    record = images.save_image_from_file(str(source))
    assert images.read_image(record.id) == image(size_bytes)
    source.write_bytes(image(size_bytes, "changed"))
    images.update_image_from_file(record.id, str(source))
    chunks = list(images.read_image_chunks(record.id))
    assert b"".join(chunks) == image(size_bytes, "changed")
    assert {len(chunk) for chunk in chunks[:-1]} <= {SEGMENT}


def test_head_in_tiny_pieces(images, tmp_path):
    """The format is told also where the source gives a byte at a time."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def trickle() -> None:
        with open(pipe, "wb", buffering=0) as file:
            for byte in PNG:
                file.write(bytes([byte]))

    writer = threading.Thread(target=trickle)
    writer.start()
    record = images.save_image_from_file(str(pipe))
    writer.join()
    assert record.format == "png"
    assert images.read_image(record.id) == PNG


def test_update_keeps_identity(images):
    """An update changes content, format, times and token, and neither id, path nor creation."""
    first = images.save_image(PNG)
    second = images.update_image(first.id, image(1000))
    assert (second.id, second.path, second.created_ns) == (first.id, first.path, first.created_ns)
    assert second.format == "jpeg"
    assert second.token > first.token
    assert second.modified_ns >= first.modified_ns
    assert images.read_image(first.id) == image(1000)


def test_delete(images, place):
    """A deleted image is gone at once, its object with the next barrier; deleting it again says so."""
    kept, deleted = images.save_image(image(1000)), images.save_image(image(2000))
    assert images.delete_image(deleted.id) is True
    assert images.delete_image(deleted.id) is False
    assert not images.image_exists(deleted.id)
    assert images.image_exists(kept.id)
    for call in (
        images.read_image,
        images.get_image_record,
        lambda gone: list(images.read_image_chunks(gone)),
    ):
        with pytest.raises(ImageNotFound, match=deleted.id):
            call(deleted.id)
    with pytest.raises(ImageNotFound):
        images.update_image(deleted.id, image(10))
    images._store.sync()
    assert len(place.objects()) == 1


@pytest.mark.parametrize(
    "image_id", ["", "x", "00" * 16, "00" * 15, "00" * 17, "ff" * 16, "../../etc", "é", "\0"]
)
def test_ids_that_are_none(images, image_id):
    """What cannot be an id is the id of no image, whatever it is."""
    images.save_image(PNG)
    assert not images.image_exists(image_id)
    assert not images.delete_image(image_id)
    with pytest.raises(ImageNotFound):
        images.read_image(image_id)


def test_reading_on_after_delete(images, place):
    """Who began to read an image reads all of that version, though it was updated or deleted meanwhile."""
    record = images.save_image(image(5 * SEGMENT))
    chunks = images.read_image_chunks(record.id)
    read = [next(chunks)]
    images.update_image(record.id, image(100, "new"))
    images._store.sync()
    read.append(next(chunks))
    images.delete_image(record.id)
    images._store.sync()
    assert not place.objects()
    assert b"".join([*read, *chunks]) == image(5 * SEGMENT)


def test_images_of_a_directory(images):
    """A directory lists the images in it, in the order they came: not those below it, and no other files."""
    top = [images.save_image(image(10, seed)) for seed in range(3)]
    below = [images.save_image(image(10, seed), directory="a/b") for seed in range(600)]
    save_file(images._store, "notes.txt", lambda draft: draft.write(0, b"no image"))
    images.delete_image(below[7].id)
    images.update_image(below[8].id, image(20))
    assert [record.id for record in images.images()] == [record.id for record in top]
    assert [record.id for record in images.images("a/b")] == [
        record.id for record in below if record is not below[7]
    ]
    assert list(images.images("a")) == []
    for missing in ("b", "a/b/c", "notes.txt"):
        with pytest.raises(ImageNotFound, match=missing):
            list(images.images(missing))


# Tokens


def test_tokens_only_grow(place):
    """Every save and update has a higher token than all before: after deletes and reopening, too."""
    tokens = []
    for _ in range(3):
        with place.open() as images:
            record = images.save_image(image(10))
            tokens += [record.token, images.update_image(record.id, image(20)).token]
            images.delete_image(record.id)
            tokens.append(images.save_image(image(30)).token)
    assert all(before < after for before, after in itertools.pairwise(tokens))


def test_tokens_are_no_clock(place):
    """With a clock that stands still, or goes back, tokens grow all the same."""
    times = iter([1000, 1000, 1000, 5, -5, 1000])
    store = place.open()
    store.close()
    with ImageStore(place.open_store(), lambda: next(times)) as images:
        first, second = images.save_image(image(10)), images.save_image(image(10))
        third = images.update_image(first.id, image(11))
        fourth = images.update_image(first.id, image(12))
        fifth = images.update_image(first.id, image(13))
        tokens = [record.token for record in (first, second, third, fourth, fifth)]
        assert tokens == sorted(set(tokens))
        assert [third.modified_ns, fourth.modified_ns, fifth.modified_ns] == [1000, 5, -5]
        assert fifth.created_ns == 1000
        assert images.read_image(first.id) == image(13)


# What is refused


CLIMBING = ["/", "/absolute", "a//b", "a/", ".", "..", "../up", "a/../b", "a/./b"]
UNPRINTABLE = ["nul\0", "line\n", "\x1b[31m", "\x7f", "\ud800"]
TOO_LONG = ["x" * 256, "é" * 128]


@pytest.mark.parametrize("directory", CLIMBING + UNPRINTABLE + TOO_LONG)
def test_directory_names_refused(images, directory):
    """A directory that is absolute, climbs out, hides control characters or is too long is refused."""
    with pytest.raises(InvalidInput):
        images.save_image(PNG, directory=directory)
    with pytest.raises(InvalidInput):
        list(images.images(directory))
    assert list(images.images()) == []


@pytest.mark.parametrize("directory", [None, "", "a", "x" * 255, "é" * 127, "...", "~", "a b/c:d", "\udce9"])
def test_directory_names_allowed(images, directory):
    """Everything else a file system can name is a directory."""
    record = images.save_image(PNG, directory=directory)
    assert [found.id for found in images.images(directory)] == [record.id]


def test_file_in_the_way(images):
    """A directory cannot be where a file is."""
    record = images.save_image(PNG)
    with pytest.raises(InvalidInput, match="is a file"):
        images.save_image(PNG, directory=record.path)
    save_file(
        images._store, "caf\udce9".encode("utf-8", "surrogateescape").decode("latin1"), lambda draft: None
    )
    with pytest.raises(InvalidInput, match="is a file"):
        images.save_image(PNG, directory="caf\u00e9/x")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"no image", bytes(5 * SEGMENT)])
def test_no_image_is_refused(images, place, tmp_path, data):
    """What is no image is not saved, does not replace one, and leaves nothing behind."""
    record = images.save_image(PNG)
    source = tmp_path / "source"
    source.write_bytes(data)
    for call in (
        lambda: images.save_image(data),
        lambda: images.update_image(record.id, data),
        lambda: images.save_image_from_file(str(source)),
        lambda: images.update_image_from_file(record.id, str(source)),
    ):
        with pytest.raises(InvalidInput, match="no image"):
            call()
    assert images.get_image_record(record.id) == record
    assert images.read_image(record.id) == PNG
    assert len(place.objects()) == 1


def test_source_that_fails(images, place, tmp_path):
    """A missing source, or one that cannot be read, is the caller's OSError; nothing was changed."""
    record = images.save_image(PNG)
    for source, error in ((tmp_path / "missing", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error):
            images.save_image_from_file(str(source))
        with pytest.raises(error):
            images.update_image_from_file(record.id, str(source))
    assert images.read_image(record.id) == PNG
    assert len(place.objects()) == 1


# Opening


def test_store_in_use(place, images):
    """A second opener is told which process has the store: in another process, and in this one."""
    code = (
        "import sys, pixstorefs\n"
        "try: pixstorefs.open_store(sys.argv[1], keyfile=sys.argv[2])\n"
        "except pixstorefs.StoreInUse as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(place.path), str(place.keyfile)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"process {os.getpid()}" in result.stdout
    with pytest.raises(StoreInUse, match=f"process {os.getpid()}"):
        place.open()
    record = images.save_image(PNG)
    images.close()
    with place.open() as again:
        assert again.read_image(record.id) == PNG


def test_wrong_key(place, images, tmp_path):
    """Another keyfile, a passphrase, and a missing keyfile do not open the store."""
    images.close()
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    before = digests(place.path)
    for secret in ({"keyfile": str(other.keyfile)}, {"passphrase": "x"}, {"keyfile": str(tmp_path / "none")}):
        with pytest.raises(WrongKey):
            pixstorefs.open_store(str(place.path), **secret)
    with pytest.raises(InvalidInput):
        pixstorefs.open_store(str(place.path), keyfile=str(place.keyfile), passphrase="x")
    with pytest.raises(InvalidInput):
        pixstorefs.open_store(str(place.path), passphrase="")
    assert digests(place.path) == before


def test_default_keyfile(tmp_path, monkeypatch):
    """Without a secret a keyfile is made outside the store, and opens it again."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pixstorefs.open_store(str(tmp_path / "store")) as images:
        record = images.save_image(PNG)
    with pixstorefs.open_store(str(tmp_path / "store"), create=False) as images:
        assert images.read_image(record.id) == PNG
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(WrongKey):
        pixstorefs.open_store(str(tmp_path / "store"))


def test_passphrase_store_without_a_secret(tmp_path, monkeypatch):
    """A store that opens with a passphrase says so; it tells of no keyfile, which it never had."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "store"
    pixstorefs.open_store(path, passphrase="right").close()
    with pytest.raises(WrongKey, match="opens with a passphrase") as error:
        pixstorefs.open_store(path)
    assert "keyfile" not in str(error.value)
    # Nor of one that lies in its place, and belongs to no key any more.
    create_keyfile(default_keyfile_path(read_header(str(path)).store_id))
    with pytest.raises(WrongKey, match="opens with a passphrase"):
        pixstorefs.open_store(path)


def test_store_with_both_kinds_of_key_without_a_secret(tmp_path, monkeypatch):
    """Where a keyfile or a passphrase would do, and there is neither, both are named."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "store"
    pixstorefs.open_store(path).close()
    with KeySlots(str(path)) as slots:
        keyfile = secret_from_keyfile(default_keyfile_path(read_header(str(path)).store_id))
        slots.add(keyfile, lambda: Secret("passphrase", b"right"), "second")
    pixstorefs.open_store(path).close()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(WrongKey, match=r"keyfile .* does not exist.*opens with a passphrase, too"):
        pixstorefs.open_store(path)


def test_paths_of_any_kind(tmp_path):
    """Wherever a path is taken, an os.PathLike is."""
    create_keyfile(tmp_path / "key")
    (tmp_path / "source").write_bytes(PNG)
    with pixstorefs.open_store(tmp_path / "store", keyfile=tmp_path / "key") as images:
        record = images.save_image_from_file(tmp_path / "source")
        images.update_image_from_file(record.id, tmp_path / "source")
        assert images.read_image(record.id) == PNG


CREATING = """
import sys, pixstorefs
path, keyfile = sys.argv[1:]
sys.stdin.readline()
try:
    with pixstorefs.open_store(path, keyfile=keyfile) as images:
        images.save_image(bytes([255, 216, 255]))
except pixstorefs.StoreInUse as error:
    print("in use:", error)
"""


def test_processes_that_create_one_store_at_once(place):
    """One makes the store; the others find it finished, or are told that it is in use."""
    for turn in range(6):
        command = [sys.executable, "-c", CREATING, place.path, place.keyfile]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = [subprocess.Popen(command, **pipes) for _ in range(4)]
        for process in started:
            process.stdin.write(b"\n")
            process.stdin.flush()
        ends = [(process.communicate(), process.returncode) for process in started]
        assert [(code, complaints) for (_, complaints), code in ends] == [(0, b"")] * 4
        saved = sum(not said for (said, _), _ in ends)
        assert saved > 0
        with place.open() as images:
            assert len(list(images.images())) == saved
        assert check_store(place, place.path) == []
        place.path.rename(place.path.with_name(f"store {turn}"))


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks of directories"])
def test_store_that_is_made_meanwhile(place, monkeypatch, locks):
    """Whoever meets another's creation, at any of its steps, is told so, and on NFS, too."""
    if not locks:
        monkeypatch.setattr(FileLock, "take", take_no_folder)
    steps: list[str] = []
    changed = Folder.replace

    def replace(folder: Folder, name: str, content: bytes, *, temporary: str | None = None) -> None:
        changed(folder, name, content, temporary=temporary)
        if not steps or steps[-1] != "inside":
            steps.append("inside")
            with pytest.raises(StoreInUse):
                place.open()
            steps.append(name)

    monkeypatch.setattr(Folder, "replace", replace)
    create_store(str(place.path), lambda _: secret_from_keyfile(place.keyfile))
    assert steps == ["inside", "keys.json"] * 2 + ["inside", "store.json"] * 2
    place.open().close()


def take_no_folder(lock: FileLock) -> bool:
    if stat.S_ISDIR(os.fstat(lock.fd).st_mode):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return TAKE(lock)


TAKE = FileLock.take


def test_foreign_directories_are_left_alone(tmp_path, place):
    """A directory with somebody's files, a file, a missing path with create=False: NotAStore, untouched."""
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "picture.jpg").write_bytes(PNG)
    file = tmp_path / "file"
    file.write_bytes(b"content")
    before = digests(tmp_path)
    for path in (foreign, file):
        for create in (True, False):
            with pytest.raises(NotAStore):
                pixstorefs.open_store(str(path), keyfile=str(place.keyfile), create=create)
    with pytest.raises(NotAStore):
        place.open(create=False)
    with pytest.raises(NotAStore):
        place.open(read_only=True)
    assert digests(tmp_path) == before
    assert not place.path.exists()


def test_empty_directory_becomes_a_store(place):
    """An empty directory is as good as a missing one."""
    place.path.mkdir()
    with place.open() as images:
        images.save_image(PNG)


def test_a_creation_that_fails_leaves_nothing(place):
    """Where the disk fails, at whatever file, the directory is empty afterwards, and can become a store."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size_bytes in (0, 100, 512, 4096, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
        try:
            with pytest.raises((CorruptStore, StoreNotWritable, OSError)):
                place.open()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(place.path) == []
    place.open().close()


def test_private_modes(place, images):
    """Nobody else may read any file of a store."""
    images.save_image(image(300_000))
    images.sync()
    paths = [place.path, *place.path.rglob("*")]
    assert len(paths) > 7
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("name", ["store.json", "keys.json"])
def test_newer_format(place, images, name):
    """A store of a later format is refused with its number, untouched."""
    images.close()
    path = place.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    before = digests(place.path)
    with pytest.raises(NewerFormat, match="format 2"):
        place.open()
    assert digests(place.path) == before


@pytest.mark.parametrize("name", ["store.json", "keys.json"])
def test_every_byte_of_the_header_and_the_keys_counts(place, images, name):
    """Whichever byte of store.json or keys.json is changed, or how much cut off: no way in, no write.

    That is without its copy, which would be read instead wherever the file does not even parse.
    """
    images.close()
    (place.path / "copies" / name).unlink()
    path = place.path / name
    original = path.read_bytes()
    damages = [original[:length] for length in range(0, len(original), 9)]
    for position in range(len(original)):
        for bit in (0x01, 0x80) if name == "store.json" else (0x04,):
            damages.append(original[:position] + bytes([original[position] ^ bit]) + original[position + 1 :])
    before = digests(place.path)
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises((CorruptStore, WrongKey, NewerFormat)):
            place.open()
    path.write_bytes(original)
    assert digests(place.path) == before
    place.open().close()
    assert (place.path / "copies" / name).read_bytes() == original


@pytest.mark.parametrize("name", ["keys.json", "index.db", "objects"])
def test_missing_parts(place, images, name):
    """A store that lost its keys, its index or the folder of its objects says so and is not changed."""
    record = images.save_image(image(1000))
    images.close()
    (place.path / name).rename(place.path.parent / "away")
    (place.path / "copies" / name).unlink(missing_ok=True)
    if name == "objects":
        with place.open(read_only=True) as again, pytest.raises(CorruptImage):
            again.read_image(record.id)
    with pytest.raises(CorruptStore, match=name):
        place.open()
    assert not (place.path / name).exists()


def test_damaged_index(place, images):
    """A bit flipped anywhere in the index gives CorruptStore, at opening or when the page is needed."""
    expected = {
        images.save_image(image(100 + seed, seed), directory=f"directory {seed % 7}").id: image(
            100 + seed, seed
        )
        for seed in range(150)
    }
    images.close()
    path = place.path / "index.db"
    original = path.read_bytes()
    whole = place.path.with_name("whole")
    shutil.copytree(place.path, whole)
    detected = 0
    positions = random.Random(1).sample(range(24, len(original)), 60)
    for position in positions:
        shutil.rmtree(place.path)
        shutil.copytree(whole, place.path)
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            with contextlib.closing(place.open()) as damaged_images:
                for image_id, content in expected.items():
                    assert damaged_images.read_image(image_id) == content
                for number in range(7):
                    assert len(list(damaged_images.images(f"directory {number}"))) in (21, 22)
        except CorruptStore:
            detected += 1
    # Pages of xattrs, of free space and of indexes that nothing asked for are not read.
    assert detected > len(positions) // 2
    shutil.rmtree(place.path)
    shutil.copytree(whole, place.path)
    with place.open() as again:
        assert all(again.read_image(image_id) == content for image_id, content in expected.items())


def test_index_of_another_store(place, images, tmp_path):
    """An index does not open in another store."""
    images.close()
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.open().close()
    shutil.copy(other.path / "index.db", place.path / "index.db")
    with pytest.raises(CorruptStore):
        place.open()


def test_close_twice(place, images):
    """A store can be closed again, and by its context manager too, without harm to whoever has it next."""
    images.close()
    with place.open() as other:
        images.close()
        other.save_image(PNG)


# Read-only


def change_everything(images: ImageStore, image_id: str) -> None:
    """Every call that changes a store is refused."""
    for call in (
        lambda: images.save_image(image(3 * SEGMENT)),
        lambda: images.update_image(image_id, image(3 * SEGMENT)),
        lambda: images.delete_image(image_id),
    ):
        with pytest.raises(ReadOnlyStore):
            call()


def test_read_only(place, images):
    """A store opened read-only is read like any other, and every change is refused without a trace."""
    record = images.save_image(PNG)
    images.close()
    with place.open(read_only=True) as again:
        change_everything(again, record.id)
        assert again.read_image(record.id) == PNG
        assert len(place.objects()) == 1


@contextlib.contextmanager
def mounted_tmpfs(path: Path, size: str) -> Iterator[None]:
    """A small file system of our own."""
    path.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False)
    if result.returncode != 0:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_read_only_media(place, tmp_path):
    """A store on a read-only file system is read in place, and so is one that was not closed cleanly."""
    disk = tmp_path / "disk"
    with mounted_tmpfs(disk, "32m"):
        place.path = disk / "store"
        images = place.open()
        record = images.save_image(PNG)
        images.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = digests(place.path)
        with place.open(read_only=True) as again:
            change_everything(again, record.id)
            assert again.read_image(record.id) == PNG
            assert [found.id for found in again.images()] == [record.id]
            again.sync()
        assert digests(place.path) == before
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        images = place.open()
        images.update_image(record.id, image(1000))
        images.sync()
        shutil.copytree(place.path, disk / "killed")
        images.close()
        place.path = disk / "killed"
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = digests(place.path)
        with place.open(read_only=True) as again:
            assert again.read_image(record.id) == image(1000)
        assert digests(place.path) == before
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        with place.open() as again:
            assert again.read_image(record.id) == image(1000)


# A full disk


def test_full_disk(place, tmp_path):
    """On a full disk saving fails with NoSpace, every saved image is intact, and room makes it work again."""
    disk = tmp_path / "disk"
    with mounted_tmpfs(disk, "8m"):
        place.path = disk / "store"
        with place.open() as images:
            saved = {images.save_image(image(600_000, seed)).id: image(600_000, seed) for seed in range(3)}
            victim = next(iter(saved))
            for size_bytes in (16 << 20, 9 << 20):
                with pytest.raises(NoSpace):
                    images.update_image(victim, image(size_bytes))
                with pytest.raises(NoSpace):
                    images.save_image(image(size_bytes), directory="new")
            assert len(place.objects()) == len(saved)
            # To the last byte: now even a transaction may find no room.
            (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
            for number in range(400):
                try:
                    record = images.save_image(image(20, number))
                except NoSpace:
                    break
                saved[record.id] = image(20, number)
            else:
                pytest.fail("the disk never got full")
            with contextlib.suppress(NoSpace):
                images._store.sync()
            assert {found: images.read_image(found) for found in saved} == saved
            (disk / "ballast").unlink()
            images._store.sync()
            assert images.delete_image(victim)
            del saved[victim]
            record = images.save_image(image(700_000, "after"))
            saved[record.id] = image(700_000, "after")
            assert {found: images.read_image(found) for found in saved} == saved
        with place.open() as images:
            assert {found: images.read_image(found) for found in saved} == saved
            assert len(place.objects()) == len(saved)


# Many at once


def test_threads(images):
    """Threads that save, update, read, list and delete at once get in nobody's way."""
    failures: list[BaseException] = []
    results: list[tuple[dict[str, bytes], list[int]]] = []
    rounds = 25

    def work(number: int) -> None:
        own: dict[str, bytes] = {}
        tokens: list[int] = []
        source = random.Random(number)
        try:
            for turn in range(rounds):
                content = image(source.choice([10, 50_000, 300_000]), (number, turn))
                record = images.save_image(content, directory=f"thread {number % 2}")
                own[record.id] = content
                tokens.append(record.token)
                victim = source.choice(list(own))
                own[victim] = image(1000 + turn, (number, turn, "new"))
                tokens.append(images.update_image(victim, own[victim]).token)
                assert images.read_image(victim) == own[victim]
                if turn % 3 == 0:
                    victim = source.choice(list(own))
                    assert images.delete_image(victim)
                    del own[victim]
                for listed in images.images(f"thread {number % 2}"):
                    assert listed.size_bytes > 0
                if turn % 10 == number:
                    images.sync()
                    images._store.sync()
        except BaseException as error:
            failures.append(error)
        results.append((own, tokens))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    everything = {image_id: content for own, _ in results for image_id, content in own.items()}
    assert {image_id: images.read_image(image_id) for image_id in everything} == everything
    listed = [record.id for number in range(2) for record in images.images(f"thread {number}")]
    assert sorted(listed) == sorted(everything)
    tokens = [token for _, own_tokens in results for token in own_tokens]
    assert len(set(tokens)) == len(tokens) == 4 * 2 * rounds


def test_two_updates_of_one_image(images):
    """Many threads update one image: it is always one of their contents, at last that with the last token."""
    record = images.save_image(image(200_000, 0))
    legal = {image(200_000 + seed, seed): seed for seed in range(40)}
    legal[image(200_000, 0)] = 0
    tokens: dict[int, int] = {}
    failures: list[BaseException] = []

    def update(first: int) -> None:
        try:
            for seed in range(first, 40, 4):
                tokens[images.update_image(record.id, image(200_000 + seed, seed)).token] = seed
                assert images.read_image(record.id) in legal
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=update, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert legal[images.read_image(record.id)] == tokens[max(tokens)]
    assert images.get_image_record(record.id).token == max(tokens)


STREAMING = """
import sys, pixstorefs

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

store, keyfile, source = sys.argv[1:]
with pixstorefs.open_store(store, keyfile=keyfile) as images:
    small = images.save_image(bytes([255, 216, 255]) + bytes(4 << 20))
    b"".join(images.read_image_chunks(small.id))
    before = peak_kib()
    record = images.save_image_from_file(source)
    images.update_image_from_file(record.id, source)
    size_bytes = 0
    for chunk in images.read_image_chunks(record.id):
        size_bytes += len(chunk)
    images.sync()
    print(size_bytes, peak_kib() - before)
"""


def test_streaming_needs_little_memory(place, tmp_path):
    """64 MiB go in and out through a few megabytes of memory."""
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.write(image(1 << 20))
        file.truncate(64 << 20)
    command = [sys.executable, "-c", STREAMING, str(place.path), str(place.keyfile), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    size_bytes, grown_kib = map(int, result.stdout.split())
    assert size_bytes == 64 << 20
    assert grown_kib < 8 << 10


# Slow sources


@contextlib.contextmanager
def slow_upload(tmp_path: Path, upload: Callable[[str], object]) -> Iterator[tuple[BinaryIO, list[object]]]:
    """An upload out of a pipe, which waits for more when the block begins; what it returned or raised."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    results: list[object] = []

    def run() -> None:
        try:
            results.append(upload(str(pipe)))
        except BaseException as error:
            results.append(error)

    uploading = threading.Thread(target=run)
    uploading.start()
    with open(pipe, "wb", buffering=0) as source:
        # A pipe holds 64 KiB: the rest is in the draft, or at least with the call that fills it.
        source.write(image(3 << 20))
        yield source, results
    uploading.join()


def in_time(call: Callable[[], object]) -> object:
    """What a call returns. It fails where that waits for something that does not come."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    assert results, "it waits for somebody else's upload"
    return results[0]


def test_slow_upload_keeps_nobody_waiting(images, tmp_path):
    """While one image comes slowly, every other call goes on; what came is saved whole in the end."""
    record = images.save_image(PNG)
    other = images.save_image(PNG, directory="a")
    with slow_upload(tmp_path, images.save_image_from_file) as (source, results):
        assert in_time(lambda: images.read_image(record.id)) == PNG
        assert in_time(lambda: images.get_image_record(record.id)) == record
        assert in_time(lambda: [found.id for found in images.images()]) == [record.id]
        in_time(lambda: images.update_image(record.id, image(1000)))
        in_time(lambda: images.save_image(image(300_000), directory="a/b"))
        assert in_time(lambda: images.delete_image(other.id))
        in_time(images.sync)
        in_time(images._store.sync)
        assert not results
        source.write(b"the end")
    assert images.read_image(results[0].id) == image(3 << 20) + b"the end"
    assert images.read_image(record.id) == image(1000)


@pytest.mark.parametrize("meanwhile", ["updated", "deleted"])
def test_image_that_changes_during_a_slow_update(images, place, tmp_path, meanwhile):
    """The update that ends last is the newest version; an image that was deleted meanwhile stays so."""
    record = images.save_image(PNG)

    def update(path: str) -> object:
        return images.update_image_from_file(record.id, path)

    with slow_upload(tmp_path, update) as (_, results):
        if meanwhile == "updated":
            newer = in_time(lambda: images.update_image(record.id, image(1000)))
        else:
            assert in_time(lambda: images.delete_image(record.id))
    if meanwhile == "updated":
        assert results[0].token > newer.token
        assert images.read_image(record.id) == image(3 << 20)
    else:
        assert isinstance(results[0], ImageNotFound)
        assert not images.image_exists(record.id)
    images._store.sync()
    assert len(place.objects()) == (meanwhile == "updated")


def test_measuring_keeps_nobody_waiting(images, monkeypatch):
    """A header that takes long to read holds up no other thread, whichever call asks for its record."""
    record = images.save_image(PNG)
    measured = measure.measure

    def slowly(read: object, size_bytes: int, image_format: str) -> object:
        assert in_time(lambda: images.read_image(record.id))
        return measured(read, size_bytes, image_format)

    monkeypatch.setattr(measure, "measure", slowly)
    assert images.get_image_record(record.id) == record
    assert list(images.images()) == [record]
    assert images.update_image(record.id, PNG).width == 3
    assert images.save_image(PNG).width == 3


# Closed


def test_every_call_after_close(place, images, tmp_path, caplog):
    """Each call says that the store is closed, whatever it is given; nothing reaches the log or the disk."""
    record = images.save_image(image(300_000), directory="a")
    images.save_image(PNG, directory="a")
    source = tmp_path / "source"
    source.write_bytes(PNG)
    chunks, listed = images.read_image_chunks(record.id), images.images("a")
    next(chunks)
    next(listed)
    late_chunks, late_list = images.read_image_chunks(record.id), images.images()
    images.close()
    before = digests(place.path)
    caplog.clear()
    calls = [
        lambda: images.save_image(PNG),
        lambda: images.save_image("no image", directory="../no directory"),
        lambda: images.save_image_from_file(str(source)),
        lambda: images.save_image_from_file(str(tmp_path / "missing")),
        lambda: images.update_image(record.id, PNG),
        lambda: images.update_image_from_file(record.id, str(source)),
        lambda: images.update_image_from_file(record.id, str(tmp_path / "missing")),
        lambda: images.delete_image(record.id),
        lambda: images.delete_image("no id"),
        lambda: images.image_exists(record.id),
        lambda: images.image_exists("no id"),
        lambda: images.get_image_record(record.id),
        lambda: images.read_image(record.id),
        lambda: images.read_image("no id"),
        lambda: images.sync(),
        lambda: images.__enter__(),
        *(lambda iterator=iterator: next(iterator) for iterator in (chunks, listed, late_chunks, late_list)),
    ]
    called = {name for call in calls for name in call.__code__.co_names}
    assert {name for name in dir(images) if not name.startswith("_")} - called == {
        "close",
        "images",
        "read_image_chunks",
    }
    for call in calls:
        with pytest.raises(StoreClosed, match="is closed"):
            call()
    assert caplog.records == []
    assert digests(place.path) == before
    with place.open() as again:
        assert again.read_image(record.id) == image(300_000)


def test_close_during_slow_uploads(place, tmp_path, caplog):
    """A close waits for no source: the upload is told, nothing is left of it, and the store is clean."""
    images = place.open()
    record = images.save_image(PNG)
    (tmp_path / "update").mkdir()

    def update(path: str) -> object:
        return images.update_image_from_file(record.id, path)

    with (
        slow_upload(tmp_path, images.save_image_from_file) as (_, saved),
        slow_upload(tmp_path / "update", update) as (_, updated),
    ):
        in_time(images.close)
        before = digests(place.path)
        assert len(place.objects()) == 1
    assert isinstance(saved[0], StoreClosed)
    assert isinstance(updated[0], StoreClosed)
    assert caplog.records == []
    assert digests(place.path) == before
    assert check_store(place, place.path) == []
    with place.open() as again:
        assert again._store.report == []
        assert again.read_image(record.id) == PNG


def test_close_among_threads(place, caplog):
    """Threads that are at work when the store is closed are told so, and what they were told is saved, is."""
    images = place.open()
    record = images.save_image(PNG)
    begun = threading.Barrier(5)
    saved: list[str] = []
    ends: list[BaseException] = []

    def work(number: int) -> None:
        begun.wait()
        try:
            while True:
                saved.append(images.save_image(image(1000 + number), directory=f"{number}").id)
                images.read_image(record.id)
                list(images.images(f"{number}"))
                images.sync()
        except BaseException as error:
            ends.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    while len(saved) < 8:
        time.sleep(0.001)
    images.close()
    for thread in threads:
        thread.join()
    assert [type(end) for end in ends] == [StoreClosed] * 4
    assert caplog.records == []
    assert check_store(place, place.path) == []
    with place.open() as again:
        assert again._store.report == []
        assert all(again.image_exists(image_id) for image_id in saved)


# Killed at any moment


def version_content(number: int) -> bytes:
    """Content that tells which version it is; sizes go up and down across segments."""
    size_bytes = random.Random(number).choice([40, 5000, SEGMENT, 2 * SEGMENT + 1, 5 * SEGMENT])
    return b"\xff\xd8\xff" + number.to_bytes(8) + image(size_bytes, number)


def update_until_killed(place: Place, image_id: str, number: int, acknowledgements: int) -> None:
    with place.open() as images:
        while True:
            number += 1
            images.update_image(image_id, version_content(number))
            os.write(acknowledgements, b"%d\n" % number)


def run_until_killed(place: Place, image_id: str, number: int, delay_s: float) -> int:
    """A child that updates the image until it is killed; the last update it told of."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            update_until_killed(place, image_id, number, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as told:
        lines = [told.readline()]
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        lines += told.readlines()
    assert lines[0], "the child never got to an update"
    return int(lines[-1])


@pytest.mark.parametrize(
    "kills", [60, pytest.param(3000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_update_survives_kill(place, kills):
    """Killed at any moment, an image is one of its versions bit for bit, and none older than was told."""
    with place.open() as images:
        record = images.save_image(version_content(0))
        bystander = images.save_image(image(500_000))
    source = random.Random(kills)
    number = in_the_middle = untold = 0
    for _ in range(kills):
        told = run_until_killed(place, record.id, number, source.uniform(0, 0.008))
        with place.open() as images:
            content = images.read_image(record.id)
            number = int.from_bytes(content[3:11])
            assert content == version_content(number)
            assert told <= number <= told + 1
            assert images.read_image(bystander.id) == image(500_000)
            untold += number > told
            in_the_middle += any("never saved" in line for line in images._store.report)
        assert len(place.objects()) == 2
    # Otherwise the kills hit nothing, and the test proved nothing.
    assert in_the_middle >= kills // 20
    assert number > kills
    print(f"{kills} kills: {in_the_middle} within an update, {untold} before it could be told")
