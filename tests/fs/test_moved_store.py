"""A store that is moved while it is mounted stays the store that was opened."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from disks import LoopDisk
from stores import digests
from support import Mount, program, wait_until_gone


def _snapshot_of_files(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every name below a folder, with what lstat(2) tells of it."""
    return {
        str(path): (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
        for path in sorted(folder.rglob("*"))
        if (status := path.lstat())
    }


def _fill(mount: Mount) -> None:
    for number in range(8):
        (mount.mountpoint / f"{number}.jpg").write_bytes(b"%d" % number * 200_000)


def _change(mount: Mount) -> None:
    """Save, replace, rename and delete, each with an object that goes; then wait for the whole barrier."""
    (mount.mountpoint / "0.jpg").unlink()
    (mount.mountpoint / "1.jpg").write_bytes(b"changed" * 1000)
    (mount.mountpoint / "2.jpg").rename(mount.mountpoint / "3.jpg")
    (mount.mountpoint / "new.jpg").write_bytes(b"new" * 100_000)
    for number in range(250):  # enough for the log to go into the database
        (mount.mountpoint / f"many-{number}.jpg").write_bytes(b"x" * 1000)
    descriptor = os.open(mount.mountpoint, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _expected(folder: Path) -> None:
    assert not (folder / "0.jpg").exists()
    assert (folder / "1.jpg").read_bytes() == b"changed" * 1000
    assert not (folder / "2.jpg").exists()
    assert (folder / "3.jpg").read_bytes() == b"2" * 200_000
    assert (folder / "new.jpg").read_bytes() == b"new" * 100_000
    assert len(list(folder.glob("many-*.jpg"))) == 250


@pytest.mark.parametrize("other", ["a backup", "nothing"])
def test_another_store_lies_at_the_old_path(mounted: Mount, other: str) -> None:
    """What is saved and deleted goes to the store that was mounted; what lies in its place is not touched."""
    _fill(mounted)
    mounted.unmount()
    backup = mounted.directory / "backup"
    shutil.copytree(mounted.store, backup)
    mounted.mount()
    pid = mounted.pid
    moved = mounted.directory / "store.old"
    mounted.store.rename(moved)
    if other == "a backup":
        backup.rename(mounted.store)
    before, content = _snapshot_of_files(mounted.store), digests(mounted.store)
    _change(mounted)
    unmounted = mounted.run("umount", mounted.mountpoint)
    assert unmounted.returncode == 0, unmounted.stderr
    wait_until_gone(pid)
    assert digests(mounted.store) == content
    assert _snapshot_of_files(mounted.store) == before
    assert (moved / "lock").read_bytes() == b""
    assert mounted.run("check", moved).returncode == 0
    mounted.mount() if other == "a backup" else None
    if other == "a backup":
        assert (mounted.mountpoint / "0.jpg").read_bytes() == b"0" * 200_000
        mounted.unmount()
    result = mounted.run("mount", moved, mounted.mountpoint)
    assert result.returncode == 0, result.stderr
    _expected(mounted.mountpoint)
    assert mounted.run("umount", mounted.mountpoint).returncode == 0


def test_its_disk_is_unmounted_lazily(unmounted: Mount) -> None:
    """The store goes on working on its disk, and nothing is written to what is mounted there then."""
    mount = unmounted
    disk = LoopDisk(mount.directory, "ext4", 200)
    with disk.mounted(mount):
        mount.store = disk.path / "store"
        mount.mount()
        _fill(mount)
        mount.remount()
        pid = mount.pid
        subprocess.run([program("umount"), "--lazy", disk.path], check=True)
        other = disk.path / "store"
        other.mkdir()
        (other / "index.db").write_bytes(b"somebody else's")
        before = _snapshot_of_files(disk.path)
        _change(mount)
        assert mount.run("umount", mount.mountpoint).returncode == 0
        wait_until_gone(pid)
        assert _snapshot_of_files(disk.path) == before
        shutil.rmtree(other)
        disk.remount()
        assert mount.run("check", mount.store).returncode == 0
        mount.mount()
        _expected(mount.mountpoint)
        mount.unmount()
