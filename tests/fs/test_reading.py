"""Reading from the disk: what is not in the page cache comes whole; the next images are asked for ahead."""

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pictures
import pytest
from support import Mount

from pixstorefs.disk.files import read_ahead

_PATIENCE_S = 20.0


def _objects(store: Path) -> list[Path]:
    return sorted(
        (path for path in (store / "objects").rglob("*") if path.is_file()), key=lambda p: int(p.name)
    )


def _forget(path: Path) -> None:
    """Drop a synced file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _is_cached(path: Path, at: int = 0) -> bool:
    """Whether the page cache has a page of a file: only then it can be read without waiting."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(mmap.PAGESIZE)], at, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _wait_until_cached(path: Path, at: int = 0) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not _is_cached(path, at):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _cold(mount: Mount, contents: list[bytes]) -> list[Path]:
    """Images with these contents, saved in this order; neither they nor their objects are cached."""
    images = [mount.mountpoint / f"{number}.jpg" for number in range(len(contents))]
    for image, content in zip(images, contents, strict=True):
        image.write_bytes(content)
    mount.remount()
    objects = _objects(mount.store)
    for path in objects:
        _forget(path)
    assert not any(_is_cached(path) for path in objects)
    return images


def test_images_on_the_disk_are_read_whole(mounted: Mount) -> None:
    """Small and large images that the page cache does not hold, in blocks of several sizes."""
    contents = [pictures.jpeg(1), os.urandom(3_000_001), os.urandom(131_072), os.urandom(700_000)]
    images = _cold(mounted, contents)
    for image, content, block in zip(images, contents, (100, 65_536, 1 << 20, 4096), strict=True):
        with open(image, "rb", buffering=0) as file:
            got = b"".join(iter(lambda file=file, block=block: file.read(block), b""))
        assert got == content


def test_the_next_images_are_asked_for_ahead(mounted: Mount) -> None:
    """Three images read in a row bring the ones behind them into the page cache, before they are opened."""
    images = _cold(mounted, [os.urandom(100_000) for _ in range(12)])
    for image in images[:3]:
        image.read_bytes()
    _wait_until_cached(_objects(mounted.store)[-1])


def test_the_next_long_image_is_asked_for_whole(mounted: Mount) -> None:
    """Long images read in a row: the next one is on its way before the last one is through."""
    images = _cold(mounted, [os.urandom(3_000_000) for _ in range(4)])
    for image in images[:3]:
        image.read_bytes()
    for at in range(0, 3_000_000, 100_000):
        _wait_until_cached(_objects(mounted.store)[3], at)


def test_reading_ahead_is_not_cut_short(tmp_path: Path) -> None:
    """Linux reads no more for one call than the device takes at once: it takes several."""
    path = tmp_path / "long"
    path.write_bytes(bytes(32 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        _forget(path)
        assert not _is_cached(path)
        read_ahead(descriptor, 0, 64 << 20)
    finally:
        os.close(descriptor)
    for at in range(0, 32 << 20, 1 << 20):
        _wait_until_cached(path, at)


@pytest.mark.parametrize("option", [("--busy-poll", "0"), ("-o", "busy_poll=10000")])
def test_polling_or_not_is_the_same(unmounted: Mount, option: tuple[str, str]) -> None:
    """Requests are answered one after the other and several at once, and the mount ends, however it waits."""
    unmounted.mount(*option)
    contents = {f"{number}.jpg": os.urandom(200_000) for number in range(20)}

    def copy(name: str) -> bytes:
        image = unmounted.mountpoint / name
        with open(image, "wb") as file:
            file.write(contents[name])
            file.flush()
            os.fsync(file.fileno())
        return image.read_bytes()

    with ThreadPoolExecutor(8) as clients:
        assert dict(zip(contents, clients.map(copy, contents), strict=True)) == contents
    unmounted.remount(*option)
    assert {path.name: path.read_bytes() for path in unmounted.mountpoint.iterdir()} == contents
