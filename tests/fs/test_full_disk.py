"""A full disk: the error reaches the writer, what was saved stays, and the mount goes on."""

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import fill
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


def _fill_and_sync(descriptor: int) -> None:
    for _ in range(2 * _DISK_SIZE_BYTES >> 20):
        os.write(descriptor, os.urandom(1 << 20))
    os.fsync(descriptor)


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
    small_disk.expect_log("was not saved")

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
    small_disk.expect_log("was not saved")

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


def test_deleting_works_when_the_disk_has_not_one_byte_left(small_disk: Mount) -> None:
    """Others filled the disk to the last byte: nothing can be made, all can be deleted, even so."""
    images = [small_disk.mountpoint / f"{number}.jpg" for number in range(40)]
    for image in images:
        _write(image, os.urandom(100_000))
    os.mkdir(small_disk.mountpoint / "empty")
    _sync(small_disk.mountpoint)
    fill(small_disk.store.parent)
    # The log of the index may still have room from before: use it up.
    with pytest.raises(OSError) as failure:
        _make_directories(small_disk.mountpoint, 10_000)
    assert failure.value.errno == errno.ENOSPC
    filler = fill(small_disk.store.parent)

    os.rmdir(small_disk.mountpoint / "empty")
    for image in images:
        image.unlink()

    _write(small_disk.mountpoint / "new.jpg", b"saved in the room they had")
    filler.unlink()
    small_disk.remount()
    assert (small_disk.mountpoint / "new.jpg").read_bytes() == b"saved in the room they had"
    assert not any(image.exists() for image in images)


def _make_directories(parent: Path, count: int) -> None:
    for number in range(count):
        os.mkdir(parent / f"directory-{number}")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_image_whose_replacement_was_not_saved_is_an_ordinary_one_again(small_disk: Mount) -> None:
    """Also while a program has it open all the time: what is written into it then is saved."""
    image, temporary = small_disk.mountpoint / "image.jpg", small_disk.mountpoint / "tmp"
    _write(image, b"old")
    small_disk.expect_log("was not saved")
    with open(image, "rb") as reader:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT)
        temporary.rename(image)
        with pytest.raises(OSError) as failure:
            _fill_and_sync(descriptor)
        assert failure.value.errno == errno.ENOSPC
        with contextlib.suppress(OSError):  # told at the write already
            os.close(descriptor)
        _wait(lambda: image.stat().st_size == len(b"old"))

        _write(image, b"newer")

        assert os.fstat(reader.fileno()).st_nlink == 1
    small_disk.remount()
    assert image.read_bytes() == b"newer"


def test_every_image_whose_name_was_taken_is_back_when_the_new_one_was_not_saved(small_disk: Mount) -> None:
    """A new file that was renamed over one image and on over another, and then found the disk full."""
    images = [small_disk.mountpoint / name for name in ("first.jpg", "second.jpg")]
    for image in images:
        _write(image, image.name.encode())
    small_disk.expect_log("was not saved")
    descriptor = os.open(small_disk.mountpoint / "tmp", os.O_WRONLY | os.O_CREAT)
    (small_disk.mountpoint / "tmp").rename(images[0])
    images[0].rename(images[1])
    assert os.listdir(small_disk.mountpoint) == ["second.jpg"]
    with pytest.raises(OSError) as failure:
        _fill_and_sync(descriptor)
    assert failure.value.errno == errno.ENOSPC
    with contextlib.suppress(OSError):
        os.close(descriptor)

    _wait(lambda: sorted(os.listdir(small_disk.mountpoint)) == ["first.jpg", "second.jpg"])
    _wait(images[0].exists)
    for _ in range(2):
        assert [image.read_bytes() for image in images] == [b"first.jpg", b"second.jpg"]
        small_disk.remount()


def test_times_of_directories_that_find_no_room_cost_nothing_else(small_disk: Mount) -> None:
    """Names that come and go on a full disk change their directories: that at most is not saved."""
    directories = [small_disk.mountpoint / str(number) for number in range(1000)]
    for directory in directories:
        directory.mkdir()
    _write(small_disk.mountpoint / "image.jpg", b"saved")
    small_disk.remount()
    filler = fill(small_disk.store.parent)
    with pytest.raises(OSError) as failure:
        _make_directories(directories[0], 20_000)
    assert failure.value.errno == errno.ENOSPC
    for directory in directories:
        descriptor = os.open(directory / "temporary", os.O_WRONLY | os.O_CREAT)
        os.unlink(directory / "temporary")
        os.close(descriptor)
    fill(small_disk.store.parent)
    small_disk.expect_log("the last changes of directories are not in their times")

    ended = small_disk.run("umount", small_disk.mountpoint)

    assert (ended.returncode, ended.stderr) == (0, "")
    filler.unlink()
    small_disk.mount()
    assert (small_disk.mountpoint / "image.jpg").read_bytes() == b"saved"
