"""rsync as a backup program uses it: again and again over the same tree."""

import os
import random
from pathlib import Path

import pictures
import pytest
from programs import run
from support import Mount
from trees import Tree, assert_same


def rsync(*arguments: str, source: Path, target: Path) -> list[str]:
    """Run it; returns its list of changes, which is empty where everything is up to date."""
    options = ["-aHX", "--itemize-changes", *arguments]
    return run("rsync", *options, f"{source}/", f"{target}/").splitlines()


@pytest.fixture
def source(mounted: Mount) -> Path:
    """Photos on the disk, for changing."""
    folder = mounted.directory / "source"
    (folder / "album").mkdir(parents=True)
    for name, content in pictures.every_format().items():
        (folder / "album" / name).write_bytes(content)
    (folder / "large.tiff").write_bytes(random.Random(1).randbytes(3_000_000))
    (folder / "log").write_bytes(b"line\n" * 100_000)
    # rsync takes times in the same second for equal, and so would miss changes that follow at once.
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (10**9, 10**9))
    return folder


def test_second_run_has_nothing_to_do(mounted: Mount, made_tree: Tree) -> None:
    inside = mounted.mountpoint / "copied"
    assert len(rsync(source=made_tree.path, target=inside)) > 300
    assert rsync(source=made_tree.path, target=inside) == []
    mounted.remount()
    assert rsync(source=made_tree.path, target=inside) == []
    assert rsync("--checksum", source=made_tree.path, target=inside) == []
    # The other way round: the mount as the source.
    outside = mounted.directory / "outside"
    rsync(source=inside, target=outside)
    mounted.remount()
    assert rsync(source=inside, target=outside) == []
    assert_same(outside, made_tree.nodes)


def test_real_photos_second_run(mounted: Mount, corpus: Tree) -> None:
    inside = mounted.mountpoint / "copied"
    rsync(source=corpus.path, target=inside)
    mounted.remount()
    assert rsync(source=corpus.path, target=inside) == []


def test_only_what_changed_is_transferred(mounted: Mount, source: Path) -> None:
    inside = mounted.mountpoint / "copied"
    rsync(source=source, target=inside)
    (source / "album" / "baseline.jpg").write_bytes(pictures.jpeg(77))
    mounted.remount()
    changes = rsync(source=source, target=inside)
    assert [line.split(" ", 1)[1] for line in changes if line.startswith(">f")] == ["album/baseline.jpg"]
    assert_same(inside, source)


def test_inplace(mounted: Mount, source: Path) -> None:
    """Changed blocks are written into the existing file; its inode and links stay."""
    inside = mounted.mountpoint / "copied"
    rsync(source=source, target=inside)
    ino = (inside / "large.tiff").stat().st_ino
    changed = bytearray((source / "large.tiff").read_bytes())
    for offset in (0, 131_071, 1_000_000, 2_999_990):
        changed[offset : offset + 10] = b"0123456789"
    (source / "large.tiff").write_bytes(changed[:-5])
    (source / "log").write_bytes(b"other\n" * 10)
    rsync("--inplace", "--no-whole-file", source=source, target=inside)
    assert_same(inside, source)
    mounted.remount()
    assert_same(inside, source)
    assert (inside / "large.tiff").stat().st_ino == ino


@pytest.mark.parametrize("option", ["--append", "--append-verify"])
def test_append(mounted: Mount, source: Path, option: str) -> None:
    inside = mounted.mountpoint / "copied"
    rsync(source=source, target=inside)
    with open(source / "log", "ab") as file:
        file.write(b"one more line\n" * 50_000)
    with open(source / "large.tiff", "ab") as file:
        file.write(random.Random(2).randbytes(400_001))
    mounted.remount()
    rsync(option, source=source, target=inside)
    assert_same(inside, source)
    mounted.remount()
    assert_same(inside, source)


@pytest.mark.parametrize("option", ["--delete", "--delete-before", "--delete-after", "--delete-delay"])
def test_delete(mounted: Mount, source: Path, option: str) -> None:
    inside = mounted.mountpoint / "copied"
    rsync(source=source, target=inside)
    for path in (source / "album" / "animated.gif", source / "log"):
        path.unlink()
    (source / "album").rename(source / "renamed")
    (source / "log").mkdir()
    (source / "log" / "a file became a directory").touch()
    for path in (source / "log", source / "renamed", source):
        os.utime(path, (10**9 + 60, 10**9 + 60))
    rsync(option, source=source, target=inside)
    assert_same(inside, source)
    mounted.remount()
    assert_same(inside, source)


def test_backup_and_links_to_the_last_run(mounted: Mount, source: Path) -> None:
    """`--link-dest`, the way snapshots are made: what did not change is a link."""
    first, second = mounted.mountpoint / "monday", mounted.mountpoint / "tuesday"
    rsync(source=source, target=first)
    (source / "log").write_bytes(b"new\n")
    mounted.remount()
    rsync(f"--link-dest={first}", source=source, target=second)
    mounted.remount()
    assert (second / "large.tiff").stat().st_ino == (first / "large.tiff").stat().st_ino
    assert (second / "log").read_bytes() == b"new\n"
    assert (first / "log").read_bytes() == b"line\n" * 100_000
    for name in os.listdir(source / "album"):
        assert (second / "album" / name).read_bytes() == (source / "album" / name).read_bytes()


def test_partial_and_delayed_updates(mounted: Mount, source: Path) -> None:
    """Temporary names in hidden directories, renamed into place at the end; none of them stays."""
    inside = mounted.mountpoint / "copied"
    rsync("--delay-updates", "--partial-dir=.partial", source=source, target=inside)
    (source / "large.tiff").write_bytes(random.Random(3).randbytes(2_000_000))
    rsync("--delay-updates", "--partial-dir=.partial", source=source, target=inside)
    mounted.remount()
    assert_same(inside, source)
