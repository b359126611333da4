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
def source(places: tuple[Path, Path]) -> Path:
    """Photos on the disk, for changing."""
    folder = places[1] / "source"
    (folder / "album").mkdir(parents=True)
    for name, content in pictures.every_format().items():
        (folder / "album" / name).write_bytes(content)
    (folder / "large.tiff").write_bytes(random.Random(1).randbytes(3_000_000))
    (folder / "log").write_bytes(b"line\n" * 100_000)
    # rsync takes times in the same second for equal, and so would miss changes that follow at once.
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (10**9, 10**9))
    return folder


def test_second_run_has_nothing_to_do(shared: Mount, places: tuple[Path, Path], made_tree: Tree) -> None:
    inside = places[0] / "copied"
    assert len(rsync(source=made_tree.path, target=inside)) > 300
    assert rsync(source=made_tree.path, target=inside) == []
    shared.remount()
    assert rsync(source=made_tree.path, target=inside) == []
    assert rsync("--checksum", source=made_tree.path, target=inside) == []
    # The other way round: the mount as the source.
    outside = places[1] / "outside"
    rsync(source=inside, target=outside)
    shared.remount()
    assert rsync(source=inside, target=outside) == []
    assert_same(outside, made_tree.nodes)


def test_real_photos_second_run(shared: Mount, places: tuple[Path, Path], corpus: Tree) -> None:
    inside = places[0] / "copied"
    rsync(source=corpus.path, target=inside)
    shared.remount()
    assert rsync(source=corpus.path, target=inside) == []


def test_only_what_changed_is_transferred(shared: Mount, places: tuple[Path, Path], source: Path) -> None:
    inside = places[0] / "copied"
    rsync(source=source, target=inside)
    (source / "album" / "baseline.jpg").write_bytes(pictures.jpeg(77))
    shared.remount()
    changes = rsync(source=source, target=inside)
    assert [line.split(" ", 1)[1] for line in changes if line.startswith(">f")] == ["album/baseline.jpg"]
    assert_same(inside, source)


def test_inplace(shared: Mount, places: tuple[Path, Path], source: Path) -> None:
    """Changed blocks are written into the existing file; its inode and links stay."""
    inside = places[0] / "copied"
    rsync(source=source, target=inside)
    ino = (inside / "large.tiff").stat().st_ino
    changed = bytearray((source / "large.tiff").read_bytes())
    for offset in (0, 131_071, 1_000_000, 2_999_990):
        changed[offset : offset + 10] = b"0123456789"
    (source / "large.tiff").write_bytes(changed[:-5])
    (source / "log").write_bytes(b"other\n" * 10)
    rsync("--inplace", "--no-whole-file", source=source, target=inside)
    assert_same(inside, source)
    shared.remount()
    assert_same(inside, source)
    assert (inside / "large.tiff").stat().st_ino == ino


@pytest.mark.parametrize("option", ["--append", "--append-verify"])
def test_append(shared: Mount, places: tuple[Path, Path], source: Path, option: str) -> None:
    inside = places[0] / "copied"
    rsync(source=source, target=inside)
    with open(source / "log", "ab") as file:
        file.write(b"one more line\n" * 50_000)
    with open(source / "large.tiff", "ab") as file:
        file.write(random.Random(2).randbytes(400_001))
    shared.remount()
    rsync(option, source=source, target=inside)
    assert_same(inside, source)
    shared.remount()
    assert_same(inside, source)


@pytest.mark.parametrize("option", ["--delete-before", "--delete-during", "--delete-delay"])
def test_delete(shared: Mount, places: tuple[Path, Path], source: Path, option: str) -> None:
    inside = places[0] / "copied"
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
    shared.remount()
    assert_same(inside, source)


def test_backup_and_links_to_the_last_run(shared: Mount, places: tuple[Path, Path], source: Path) -> None:
    """`--link-dest`, the way snapshots are made: what did not change is a link."""
    first, second = places[0] / "monday", places[0] / "tuesday"
    rsync(source=source, target=first)
    (source / "log").write_bytes(b"new\n")
    shared.remount()
    rsync(f"--link-dest={first}", source=source, target=second)
    shared.remount()
    assert (second / "large.tiff").stat().st_ino == (first / "large.tiff").stat().st_ino
    assert (second / "log").read_bytes() == b"new\n"
    assert (first / "log").read_bytes() == b"line\n" * 100_000
    for name in os.listdir(source / "album"):
        assert (second / "album" / name).read_bytes() == (source / "album" / name).read_bytes()


def test_partial_and_delayed_updates(shared: Mount, places: tuple[Path, Path], source: Path) -> None:
    """Temporary names in hidden directories, renamed into place at the end; none of them stays."""
    inside = places[0] / "copied"
    rsync("--delay-updates", "--partial-dir=.partial", source=source, target=inside)
    (source / "large.tiff").write_bytes(random.Random(3).randbytes(2_000_000))
    rsync("--delay-updates", "--partial-dir=.partial", source=source, target=inside)
    shared.remount()
    assert_same(inside, source)
