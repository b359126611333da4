"""Full disks of all kinds, and quotas: the daemon lives, the store can be mounted, all can be deleted."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import LoopDisk, fill
from support import Mount

from pixstorefs.daemon import linux

_QUOTA_MIB = 96
# Btrfs takes no smaller disk; mkfs.ext4 gives disks below 512 MiB blocks of 1 KiB by itself.
_SIZE_MIB = {"btrfs": 160, "ext4-1k": 64, "ext4": 64, "xfs": 320}
_IMAGES = 30
_MORE_THAN_ANY_MIB = 400


@pytest.fixture(params=["btrfs", "btrfs-quota", "ext4-1k", "ext4", "xfs"])
def disk(request: pytest.FixtureRequest, unmounted: Mount) -> Iterator[Path]:
    """A folder that can be filled; the store of `unmounted` will be in it."""
    kind, quota = request.param.removesuffix("-quota"), request.param.endswith("-quota")
    size_mib = 512 if quota else _SIZE_MIB[kind]
    with LoopDisk(unmounted.directory, kind, size_mib).mounted(unmounted) as loop:
        folder = loop.with_quota(_QUOTA_MIB) if quota else loop.path
        unmounted.store = folder / "store"
        yield folder


def _save(directory: Path) -> dict[str, bytes]:
    content = {f"{number}.jpg": os.urandom(100_000) for number in range(_IMAGES)}
    for name, data in content.items():
        (directory / name).write_bytes(data)
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return content


def _read(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _fill_to_the_last_byte(folder: Path) -> Path:
    # What the file system had not written yet may have taken less room in the end.
    for _ in range(3):
        filler = fill(folder)
        linux.syncfs(str(folder))  # sync(2) would wait for the other disks of the machine, too
    return filler


def _make_directories(parent: Path) -> None:
    for number in range(20_000):
        os.mkdir(parent / f"directory-{number}")


def _write_and_sync(path: Path, size_mib: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(size_mib):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())


def test_disk_that_others_fill_while_it_is_mounted(disk: Path, unmounted: Mount) -> None:
    """Nothing can be made, and the error says why; all can be read, and then deleted; then there is room."""
    unmounted.mount()
    content = _save(unmounted.mountpoint)
    pid = unmounted.pid
    _fill_to_the_last_byte(disk)
    with pytest.raises(OSError) as failure:
        _make_directories(unmounted.mountpoint)
    assert failure.value.errno == errno.ENOSPC
    filler = _fill_to_the_last_byte(disk)
    for name in content:
        assert (unmounted.mountpoint / name).read_bytes() == content[name]

    for name in content:
        (unmounted.mountpoint / name).unlink()
    for path in list(unmounted.mountpoint.iterdir()):
        path.rmdir()

    assert unmounted.pid == pid
    filler.unlink()
    (unmounted.mountpoint / "new.jpg").write_bytes(b"saved")
    unmounted.remount()
    assert _read(unmounted.mountpoint) == {"new.jpg": b"saved"}


def test_disk_that_others_fill_while_nothing_is_mounted(disk: Path, unmounted: Mount) -> None:
    """A check finds nothing wrong, and a mount shows all; what is deleted there makes room again."""
    unmounted.mount()
    content = _save(unmounted.mountpoint)
    unmounted.unmount()
    filler = _fill_to_the_last_byte(disk)

    checked = unmounted.run("check", unmounted.store)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    unmounted.mount()
    assert _read(unmounted.mountpoint) == content
    for name in content:
        (unmounted.mountpoint / name).unlink()
    assert _read(unmounted.mountpoint) == {}

    filler.unlink()
    unmounted.remount()
    assert _read(unmounted.mountpoint) == {}


def test_image_that_finds_no_room(disk: Path, unmounted: Mount) -> None:
    """The program that writes it is told that there is no room, of a quota, too; what it replaces stays."""
    unmounted.mount()
    image = unmounted.mountpoint / "image.jpg"
    image.write_bytes(b"old")
    unmounted.expect_log("was not saved")

    with pytest.raises(OSError) as failure:
        _write_and_sync(image, _MORE_THAN_ANY_MIB)

    assert failure.value.errno == errno.ENOSPC
    unmounted.remount()
    assert image.read_bytes() == b"old"
