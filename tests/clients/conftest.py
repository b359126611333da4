"""Tests of this folder drive other people's programs on real mounts."""

import os
from pathlib import Path

import pictures
import pytest
from trees import Tree

_CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


@pytest.fixture(scope="session")
def made_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree with every kind of name, time, link and attribute, on the disk. Not to be changed."""
    tree = tmp_path_factory.mktemp("made") / "tree"
    pictures.make_tree(tree)
    return Tree(tree)


@pytest.fixture(scope="session")
def corpus() -> Tree:
    """A folder of real photos, good, bad and odd. They are nobody's to redistribute: without them we skip."""
    folder = Path(os.environ.get("PIXSTOREFS_CORPUS", _CORPUS))
    if not folder.is_dir():
        pytest.skip("no folder of real photos: name one in PIXSTOREFS_CORPUS")
    return Tree(folder)
