"""A full disk: the error reaches the writer, what was saved stays, and the mount goes on."""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Mount

_DISK_SIZE_BYTES = 24 << 20


@pytest.fixture
def small_disk(unmounted: Mount) -> Iterator[Mount]:
    """A mount whose store lies on a file system of 24 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system of our own needs root")
    disk = unmounted.directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_SIZE_BYTES}", "tmpfs", disk], check=True)
    try:
        unmounted.store = disk / "store"
        unmounted.mount()
        yield unmounted
        unmounted.close()
    finally:
        unmounted.close()
        subprocess.run(["umount", disk], check=True)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view[: 1 << 20]) :]
    finally:
        os.close(descriptor)


def _wait(condition: Callable[[], bool]) -> None:
    """A failed draft is given up at the last close, of which the kernel tells after close(2) has returned."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_old_version_survives_an_update_that_finds_no_room(small_disk: Mount) -> None:
    """An update larger than the disk fails with ENOSPC and changes nothing, for readers now and later."""
    image = small_disk.mountpoint / "image.jpg"
    old = os.urandom(3 << 20)
    _write(image, old)
    small_disk.expect_log("image.jpg was not saved")

    with pytest.raises(OSError) as failure:
        _write(image, os.urandom(2 * _DISK_SIZE_BYTES))

    assert failure.value.errno == errno.ENOSPC
    _wait(lambda: image.stat().st_size == len(old))
    assert image.read_bytes() == old
    small_disk.remount()
    assert image.read_bytes() == old


def test_new_file_that_finds_no_room_is_not_there(small_disk: Mount) -> None:
    """A new file that could not be saved leaves neither a name nor an object, and room for others."""
    too_large = small_disk.mountpoint / "too-large.jpg"
    small_disk.expect_log("too-large.jpg was not saved")

    with pytest.raises(OSError) as failure:
        _write(too_large, os.urandom(2 * _DISK_SIZE_BYTES))

    assert failure.value.errno == errno.ENOSPC
    _wait(lambda: not too_large.exists())
    assert os.listdir(small_disk.mountpoint) == []
    fitting = os.urandom(_DISK_SIZE_BYTES // 2)
    _write(small_disk.mountpoint / "fits.jpg", fitting)
    assert (small_disk.mountpoint / "fits.jpg").read_bytes() == fitting


def test_deleting_makes_room_at_once(small_disk: Mount) -> None:
    """What was deleted a moment ago is room for the next image, ten times over, without a remount."""
    image = small_disk.mountpoint / "image.jpg"
    for _ in range(10):
        data = os.urandom(_DISK_SIZE_BYTES * 2 // 3)
        _write(image, data)
        assert image.read_bytes() == data
        image.unlink()
