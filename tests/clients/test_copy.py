"""Copying whole trees in and out with cp, rsync and tar: nothing may be lost, also not over a remount."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pictures
import pytest
from programs import TIMEOUT_S, require, run
from support import Mount
from trees import Tree, assert_same, describe

Copier = Callable[[Path, Path], None]


def cp(source: Path, target: Path) -> None:
    """`cp -a`, into a directory that does not exist yet."""
    run("cp", "-a", source, target)


def rsync(source: Path, target: Path) -> None:
    """`rsync` with hard links, xattrs and holes; the trailing slash means the directory itself."""
    run("rsync", "-aHXS", f"{source}/", f"{target}/")


def tar(source: Path, target: Path) -> None:
    """Two tars and a pipe."""
    require("tar")
    target.mkdir()
    pack = ["tar", "-C", source, "--xattrs", "--xattrs-include=*", "--sparse", "-cf", "-", "."]
    unpack = ["tar", "-C", target, "--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "-xpf", "-"]
    line = f"set -o pipefail; {shlex.join(map(str, pack))} | {shlex.join(map(str, unpack))}"
    result = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


copiers = pytest.mark.parametrize("copy", [cp, rsync, tar])


def copy_there_and_back(mount: Mount, places: tuple[Path, Path], copy: Copier, source: Tree) -> None:
    inside = places[0] / "copied"
    copy(source.path, inside)
    assert_same(inside, source.nodes)
    mount.remount()
    assert_same(inside, source.nodes)
    back = places[1] / "back"
    copy(inside, back)
    assert_same(back, source.nodes)


@copiers
def test_made_tree(shared: Mount, places: tuple[Path, Path], made_tree: Tree, copy: Copier) -> None:
    copy_there_and_back(shared, places, copy, made_tree)


@copiers
def test_real_photos(shared: Mount, places: tuple[Path, Path], corpus: Tree, copy: Copier) -> None:
    copy_there_and_back(shared, places, copy, corpus)


def test_a_copy_inside_the_mount(shared: Mount, places: tuple[Path, Path], made_tree: Tree) -> None:
    cp(made_tree.path, places[0] / "first")
    cp(places[0] / "first", places[0] / "second")
    shared.remount()
    assert_same(places[0] / "second", made_tree.nodes)


def test_moving_a_tree_in_and_out(shared: Mount, places: tuple[Path, Path]) -> None:
    """`mv` over file systems copies, then deletes: both sides have to be right."""
    outside = places[1] / "outside"
    pictures.make_album(outside)
    before = describe(outside)
    run("mv", outside, places[0] / "moved")
    assert not outside.exists()
    shared.remount()
    run("mv", places[0] / "moved", outside)
    assert_same(outside, before)
    assert list(places[0].iterdir()) == []


def test_removing_a_copied_tree_leaves_nothing(mounted: Mount, made_tree: Tree) -> None:
    objects = mounted.store / "objects"
    cp(made_tree.path, mounted.mountpoint / "copied")
    run("chmod", "-R", "u+w", mounted.mountpoint / "copied")
    run("rm", "-r", "--", mounted.mountpoint / "copied")
    assert list(mounted.mountpoint.iterdir()) == []
    mounted.unmount()
    assert [path for path in objects.rglob("*") if path.is_file()] == []


@copiers
def test_holes_take_no_room(shared: Mount, places: tuple[Path, Path], copy: Copier) -> None:
    source = places[1] / "source"
    source.mkdir()
    pictures.sparse(source / "sparse", 100_000_000, {0: b"begin", 50_000_000: b"middle"})
    copy(source, places[0] / "copied")
    shared.remount()
    status = (places[0] / "copied" / "sparse").stat()
    assert status.st_size == 100_000_000
    assert status.st_blocks * 512 < 1_000_000
    run("cmp", source / "sparse", places[0] / "copied" / "sparse")


def test_find_sees_the_same(shared: Mount, places: tuple[Path, Path], made_tree: Tree) -> None:
    """`find` tells the same of both trees."""
    cp(made_tree.path, places[0] / "copied")
    shared.remount()
    command = r"find . -printf '%P %y %m %U %G %n %T@ %l\0' | LC_ALL=C sort -z"
    seen, expected = (
        subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=True).stdout
        for folder in (places[0] / "copied", made_tree.path)
    )
    assert seen == expected


def test_du_counts_hard_links_once(shared: Mount, places: tuple[Path, Path]) -> None:
    first = places[0] / "a.jpg"
    first.write_bytes(pictures.jpeg(1, (1600, 1200)))
    os.link(first, places[0] / "b.jpg")
    size = int(run("du", "-s", "--apparent-size", "-B1", "a.jpg", "b.jpg", cwd=places[0]).split()[0])
    assert size == first.stat().st_size
