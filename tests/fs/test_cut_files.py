"""The log of the index, cut by somebody under a mount: the daemon lives, and no loss goes untold."""

import contextlib
import os
from pathlib import Path

import pytest
from disks import LoopDisk, fill
from support import Mount

_DIRECTORIES = 200
_CORRUPT_STORE = 8


def _save(directory: Path, prefix: str, *, may_fail: bool = False) -> dict[str, bytes]:
    """Save images and sync the directory; what is said of a log that was cut is an error of the sync."""
    content = {f"{prefix}-{number}.jpg": os.urandom(20_000) for number in range(20)}
    for name, data in content.items():
        (directory / name).write_bytes(data)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if may_fail else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return content


def _read(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def _serves(mount: Mount, pid: int) -> bool:
    """Whether the same daemon still answers; a listing may need a page that is gone."""
    return mount.pid == pid and os.statvfs(mount.mountpoint).f_blocks > 0


def _expect_it_is_told(mount: Mount) -> None:
    for expected in ("could not be made durable", "could not be saved", "Nothing more is written"):
        mount.expect_log(expected)
    for expected in ("getattr: the disk failed under", "another program cut or deleted", "recovery: removed"):
        mount.expect_log(expected)


def _mount_after_repair(mount: Mount) -> None:
    """What an fsync vouched for is lost: a mount is refused that says so, and a repair makes one again."""
    refused = mount.run("mount", mount.store, mount.mountpoint)
    assert refused.returncode == _CORRUPT_STORE
    assert "check --repair" in refused.stderr
    repaired = mount.run("check", "--repair", mount.store)
    assert repaired.returncode == 0, repaired.stdout
    mount.mount()


@pytest.mark.parametrize("size_bytes", [0, 5000, 100_000])
def test_cut_log_whose_pages_are_all_written_again(mounted: Mount, size_bytes: int) -> None:
    """Every page of a small index is in the log anew when the next images are saved: nothing is lost."""
    content = _save(mounted.mountpoint, "before")
    pid = mounted.pid
    _expect_it_is_told(mounted)
    os.truncate(mounted.store / "index.db-wal", size_bytes)
    content |= _save(mounted.mountpoint, "after", may_fail=True)
    assert _serves(mounted, pid)
    assert "cut or deleted" in mounted.run("umount", mounted.mountpoint).stderr
    if size_bytes:
        mounted.mount()
    else:
        _mount_after_repair(mounted)  # without its header a log says nothing of how far it reaches
    assert _read(mounted.mountpoint) == content


@pytest.mark.parametrize("size_bytes", [0, 5000, 1_000_000])
def test_cut_log_with_pages_that_are_nowhere_else(mounted: Mount, size_bytes: int) -> None:
    """The daemon goes on serving, umount tells of the loss, and the index is not damaged on top of it."""
    _save(mounted.mountpoint, "before")
    for number in range(_DIRECTORIES):
        os.mkdir(mounted.mountpoint / f"{number}-{'x' * 100}")
    pid = mounted.pid
    _expect_it_is_told(mounted)
    os.truncate(mounted.store / "index.db-wal", size_bytes)
    (mounted.mountpoint / "after.jpg").write_bytes(b"after")
    assert _serves(mounted, pid)

    result = mounted.run("umount", mounted.mountpoint)

    assert result.returncode != 0
    assert "cut or deleted" in result.stderr
    _mount_after_repair(mounted)


def test_log_that_is_deleted(mounted: Mount) -> None:
    """The next fsync fails, and every one behind it: what it would sync has no name any more."""
    _expect_it_is_told(mounted)
    _save(mounted.mountpoint, "before")
    (mounted.store / "index.db-wal").unlink()
    for name in ("first.jpg", "second.jpg"):
        descriptor = os.open(mounted.mountpoint / name, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"content")
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(descriptor)
        os.close(descriptor)
    assert "cut or deleted" in mounted.run("umount", mounted.mountpoint).stderr


@pytest.mark.parametrize("kind", ["btrfs", "ext4-1k"])
def test_cut_log_on_a_disk_that_is_full(unmounted: Mount, kind: str) -> None:
    """Cut, and no room to write it anew: changes fail, the daemon lives, and umount tells of it."""
    with LoopDisk(unmounted.directory, kind, 160).mounted(unmounted) as disk:
        unmounted.store = disk.path / "store"
        unmounted.mount()
        _save(unmounted.mountpoint, "before")
        pid = unmounted.pid
        _expect_it_is_told(unmounted)
        os.truncate(unmounted.store / "index.db-wal", 0)
        fill(disk.path)
        with contextlib.suppress(OSError):
            os.mkdir(unmounted.mountpoint / "new")
        assert _serves(unmounted, pid)
        assert unmounted.run("status", unmounted.mountpoint).returncode == 0
        (disk.path / "filler").unlink()

        result = unmounted.run("umount", unmounted.mountpoint)

        assert result.returncode != 0
        assert "could not be saved" in result.stderr
        _mount_after_repair(unmounted)
