"""Tests of this folder drive other people's programs on real mounts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pictures
import pytest
from programs import run
from support import Mount, watched
from trees import Tree


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of a module, each in a directory of its own. A test may remount it."""
    with watched(tmp_path_factory.mktemp("shared")) as mount:
        mount.mount()
        yield mount


@pytest.fixture
def places(shared: Mount, tmp_path: Path) -> tuple[Path, Path]:
    """A directory on the shared mount and one on the disk, both empty."""
    inside = shared.mountpoint / tmp_path.name
    inside.mkdir(mode=0o700)
    return inside, tmp_path


@pytest.fixture
def albums(places: tuple[Path, Path]) -> tuple[Path, Path]:
    """The same pictures on the mount and on the disk, last changed long ago."""
    on_mount, on_disk = (place / "album" for place in places)
    on_disk.mkdir()
    for name, content in pictures.every_format().items():
        (on_disk / name).write_bytes(content)
    for seed, name in enumerate(("with two  spaces.jpg", "Größe — 写真.jpg", "-dash.jpg")):
        (on_disk / name).write_bytes(pictures.jpeg(seed, (900, 1300)))
    os.link(on_disk / "baseline.jpg", on_disk / "linked.jpg")
    os.setxattr(on_disk / "baseline.jpg", "user.rating", b"5")
    for path in [*on_disk.iterdir(), on_disk]:
        os.utime(path, ns=(10**18, 10**18 + 123_456_789))
    run("cp", "-a", on_disk, on_mount)
    for place in places:
        os.utime(place, ns=(10**18, 10**18))
    return on_mount, on_disk


@pytest.fixture(scope="session")
def made_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree with every kind of name, time, link and attribute, on the disk. Not to be changed."""
    tree = tmp_path_factory.mktemp("made") / "tree"
    pictures.make_tree(tree)
    return Tree(tree)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A folder of real photos, good, bad and odd."""
    folder = pictures.CORPUS
    if not folder.is_dir():
        pytest.skip("no folder of real photos: name one in PIXSTOREFS_CORPUS")
    if not pictures.IS_ROOT:
        # They may be somebody else's, and only root can make copies that are so too.
        owned = tmp_path_factory.mktemp("corpus") / "copy"
        run("cp", "-a", folder, owned)
        folder = owned
    return Tree(folder)
