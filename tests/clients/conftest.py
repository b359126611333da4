"""Tests of this folder drive other people's programs on real mounts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pictures
import pytest
from programs import run
from support import Mount, watched
from trees import Tree

_CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


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
    inside.mkdir()
    return inside, tmp_path


@pytest.fixture(scope="session")
def made_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree with every kind of name, time, link and attribute, on the disk. Not to be changed."""
    tree = tmp_path_factory.mktemp("made") / "tree"
    pictures.make_tree(tree)
    return Tree(tree)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A folder of real photos, good, bad and odd. They are nobody's to redistribute: without them we skip."""
    folder = Path(os.environ.get("PIXSTOREFS_CORPUS", _CORPUS))
    if not folder.is_dir():
        pytest.skip("no folder of real photos: name one in PIXSTOREFS_CORPUS")
    if not pictures.IS_ROOT:
        # They may be somebody else's, and only root can make copies that are so too.
        owned = tmp_path_factory.mktemp("corpus") / "copy"
        run("cp", "-a", folder, owned)
        folder = owned
    return Tree(folder)
