"""A store on a disk, or with rights, that allow reading only: told in one sentence, and read all the same."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import LoopDisk
from support import Mount, cannot_run

NOT_WRITABLE, KEYS_NOT_WRITTEN = 17, 14


def _remount(disk: LoopDisk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)


def _fail(disk: LoopDisk) -> None:
    disk.refuse_writes()


def _is_mounted_for_reading(mount: Mount) -> None:
    mount.mount("--read-only")
    assert (mount.mountpoint / "a.jpg").read_bytes() == b"a" * 300_000
    with pytest.raises(OSError, match="Read-only file system"):
        (mount.mountpoint / "b.jpg").write_bytes(b"b")
    mount.unmount()


def _is_only_read(mount: Mount) -> None:
    """Every command says what it can do, and does the rest."""
    for words in (
        ("mount", mount.store, mount.mountpoint),
        ("check", "--repair", mount.store),
    ):
        refused = mount.run(*words)
        assert refused.returncode == NOT_WRITABLE, (words, refused.stderr)
        assert "cannot be written" in refused.stderr
        assert f"pixstorefs mount --read-only {mount.store}" in refused.stderr
        assert "should not happen" not in refused.stderr
    assert mount.run("key", "remove", mount.store, "x").returncode == KEYS_NOT_WRITTEN
    assert mount.run("key", "list", mount.store).returncode == 0
    checked = mount.run("check", mount.store)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    taken = mount.run("snapshot", mount.store, mount.directory / "taken")
    assert taken.returncode == 0, taken.stderr


@pytest.mark.parametrize("refuse", [_remount, _fail])
def test_a_disk_that_is_read_only(unmounted: Mount, refuse: Callable[[LoopDisk], None]) -> None:
    """It may have been mounted so, or be so since an error: access(2) need not know of that."""
    mount = unmounted
    disk = LoopDisk(mount.directory, "ext4", 200)
    with disk.mounted(mount):
        mount.store = disk.path / "store"
        mount.mount()
        (mount.mountpoint / "a.jpg").write_bytes(b"a" * 300_000)
        mount.unmount()
        refuse(disk)
        _is_only_read(mount)
        _is_mounted_for_reading(mount)


def test_a_store_of_another_owner(mounted: Mount) -> None:
    """Who may only read a store is told so, and may check and copy it."""
    if os.geteuid() != 0:
        cannot_run("giving a store to another user needs root")
    (mounted.mountpoint / "a.jpg").write_bytes(b"a" * 300_000)
    mounted.unmount()
    for path in (mounted.store, *mounted.store.rglob("*")):
        os.chown(path, 12345, 12345)
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = _names(mounted.store)
    mounted.without_privileges()
    _is_only_read(mounted)  # a mount would need fusermount3, which has its rights outside only
    assert _names(mounted.store) == before


def _names(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
