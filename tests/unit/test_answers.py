"""What listings tell the kernel is kept from one to the next, and never older than what there is."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyfuse3 import EntryAttributes
from stores import Place, image, save_file

from pixstorefs.fs.files import Files
from pixstorefs.fs.owners import Owners
from pixstorefs.fs.pending import PendingNames
from pixstorefs.fuse import replies
from pixstorefs.fuse.replies import Answers
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.store import tree
from pixstorefs.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    place = Place(tmp_path)
    place.open().close()
    store = place.open_store()
    for name in ("a", "b"):
        save_file(store, name, lambda draft: draft.write(0, image(100)))
    yield store
    store.close()


def _listed(store: Store, answers: Answers) -> list[EntryAttributes]:
    return [answers.listed(inode) for _, _, inode in store.tree.entries(ROOT_INO, 0, 64)]


def test_a_listing_is_answered_from_the_one_before(store: Store) -> None:
    answers = Answers(Files(store, PendingNames()), Owners())
    first = _listed(store, answers)
    assert [entry.st_size for entry in first] == [100, 100]
    assert all(one is other for one, other in zip(first, _listed(store, answers), strict=True))


def test_a_change_is_listed(store: Store) -> None:
    answers = Answers(Files(store, PendingNames()), Owners())
    _listed(store, answers)
    inode = store.tree.lookup(ROOT_INO, b"a")
    assert inode is not None
    store.tree.update_inode(replace(inode, mode=inode.mode ^ 0o7))
    assert [entry.st_mode & 0o7 for entry in _listed(store, answers)] == [
        inode.mode & 0o7 ^ 0o7,
        inode.mode & 0o7,
    ]


def test_what_is_open_is_listed_as_it_is(store: Store) -> None:
    """An emptied file that is not saved has no size; given up it has the old one, of another generation."""
    files = Files(store, PendingNames())
    answers = Answers(files, Owners())
    generation = _listed(store, answers)[0].generation
    inode = store.tree.lookup(ROOT_INO, b"a")
    assert inode is not None
    emptied = files.release(files.open(inode.ino, os.O_TRUNC))
    assert emptied is not None
    assert [entry.st_size for entry in _listed(store, answers)] == [0, 100]
    files.close(emptied)
    given_up = _listed(store, answers)[0]
    assert (given_up.st_size, given_up.generation) == (100, generation + 1)


def test_no_more_is_kept_than_the_store_keeps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (replies, tree):
        monkeypatch.setattr(module, "LISTED_ENTRIES", 3)
    answers = Answers(Files(store, PendingNames()), Owners())
    first = _listed(store, answers)
    store.tree.entries(ROOT_INO, 1, 64)  # the store forgets the first page for this one
    again = _listed(store, answers)
    assert all(one is not other for one, other in zip(first, again, strict=True))
    assert [entry.st_size for entry in again] == [100, 100]
