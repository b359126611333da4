"""Backup programs carry a snapshot of a mounted store away, and bring back the store of that moment."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pictures
import pytest
from programs import require, run
from support import Mount
from trees import Node, Tree, assert_same, describe


class Restic:
    """A repository of restic's in a folder."""

    def __init__(self, folder: Path) -> None:
        require("restic")
        (folder / "password").write_text("the repository's own")
        self._restic = ("restic", "--no-cache", "-q", "-r", folder / "repository", "-p", folder / "password")
        run(*self._restic, "init")

    def back_up(self, snapshot: Path) -> None:
        """As it is now."""
        run(*self._restic, "backup", snapshot)

    def restore(self, snapshot: Path, target: Path) -> Path:
        """The newest backup of `snapshot`; returns where it is."""
        run(*self._restic, "check", "--read-data")
        run(*self._restic, "restore", "latest", "--target", target)
        return target / snapshot.relative_to("/")


class Rclone:
    """A remote of rclone's that is another folder: what a cloud would hold."""

    def __init__(self, folder: Path) -> None:
        require("rclone")
        self._remote = folder / "remote"
        self._rclone = ("rclone", "--config", "/dev/null", "-q")

    def back_up(self, snapshot: Path) -> None:
        """Make the remote what the snapshot is."""
        run(*self._rclone, "sync", snapshot, self._remote)
        run(*self._rclone, "check", snapshot, self._remote)

    def restore(self, _: Path, target: Path) -> Path:
        """Bring it back; returns where it is."""
        run(*self._rclone, "copy", self._remote, target)
        return target


@pytest.fixture
def restored(mounted: Mount) -> Iterator[Mount]:
    """Where a restored store is mounted, by the person who has the key."""
    mount = Mount(mounted.directory)
    mount.store = mounted.directory / "restored"
    mount.mountpoint = mounted.directory / "mount-of-restored"
    yield mount
    mount.close()


@pytest.mark.parametrize("program", [Restic, Rclone])
def test_snapshot_comes_back(
    mounted: Mount,
    restored: Mount,
    made_tree: Tree,
    tmp_path: Path,
    program: Callable[[Path], Restic | Rclone],
) -> None:
    """Two snapshots while the store is mounted and changed, two backups, one restore: the second snapshot."""
    backups, taken = program(tmp_path), tmp_path / "snapshot"
    run("cp", "-a", made_tree.path, mounted.mountpoint / "tree")
    take(mounted, taken)
    backups.back_up(taken)
    expected = _changed(mounted)
    take(mounted, taken)
    (mounted.mountpoint / "later").write_bytes(b"in no backup")
    backups.back_up(taken)
    restored.store = backups.restore(taken, tmp_path / "restored")
    result = restored.run("check", restored.store)
    assert (result.returncode, result.stderr) == (0, "")
    restored.mount("--read-only")
    assert_same(restored.mountpoint, expected)
    restored.unmount()
    restored.mount()
    assert_same(restored.mountpoint, expected)
    (restored.mountpoint / "goes on").write_bytes(b"as any store")
    restored.remount()
    assert (restored.mountpoint / "goes on").read_bytes() == b"as any store"
    restored.unmount()
    assert restored.run("check", restored.store).returncode == 0


def take(mount: Mount, taken: Path) -> None:
    """`pixstorefs snapshot` of a store in use."""
    result = mount.run("snapshot", mount.store, taken)
    assert (result.returncode, result.stderr) == (0, "")


def _changed(mount: Mount) -> dict[bytes, Node]:
    """What the mount shows after some changes."""
    (mount.mountpoint / "new.jpg").write_bytes(pictures.jpeg(1000))
    tree = os.fsencode(mount.mountpoint / "tree")
    names = sorted(name for name, node in describe(tree).items() if node.mode.startswith("-"))
    for number, name in enumerate(names):
        path = os.path.join(tree, name)
        if number % 7 == 0:
            os.unlink(path)
        elif number % 7 == 1:
            run("cp", "--remove-destination", mount.mountpoint / "new.jpg", os.fsdecode(path))
    return describe(mount.mountpoint)
