"""What the rounds of damage rest on: the truth about a store, damages that damage, a tree that tells."""

import os
import random
import shutil
from pathlib import Path

import canary
import damages
import pytest
from damaging import Before
from prepared import KINDS, Prepared, prepare
from stores import digests

_DAMAGES = 60


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A store that was killed after fsyncs, with a small log."""
    folder = tmp_path_factory.mktemp("held")
    (kind,) = (kind for kind in KINDS if kind.name == "killed, small log")
    (folder / "site").mkdir()
    return prepare(kind, folder / "site", folder / "kept")


def _openable(held: Prepared, store: Path) -> set[str]:
    before = Before.look(held, store)
    return {each.path for each in held.images if before.has(each)}


def test_all_of_an_undamaged_store_can_be_opened(held: Prepared, tmp_path: Path) -> None:
    """The independent reader and the bytes of the pages agree on every image."""
    store = held.write_out(tmp_path).path
    assert _openable(held, store) == {each.path for each in held.images}
    assert len(held.images) > 20


def test_a_key_is_gone_with_all_its_pages(held: Prepared, tmp_path: Path) -> None:
    """What was saved since the last close stands in the log alone; the rest in three files."""
    store = held.write_out(tmp_path).path
    late = {each.path for each in held.images if each.path.startswith("late-")}
    (store / "index.db-wal").unlink()
    without_log = _openable(held, store)
    assert not late & without_log
    assert "2025/image-1.jpg" in without_log
    for name in ("copies/index-2.db", "index.db"):
        (store / name).write_bytes(b"")
        assert _openable(held, store) == without_log
    (store / "copies" / "index-1.db").write_bytes(b"")
    assert not _openable(held, store)


def test_a_torn_log_excuses_what_no_sync_followed(held: Prepared, tmp_path: Path) -> None:
    """Frames behind a damaged one still hold keys; only what was acknowledged as durable has to come back."""
    store = held.write_out(tmp_path).path
    with open(store / "index.db-wal", "r+b") as file:
        file.seek(32 + 24 + 5)
        file.write(b"damaged")
    before = Before.look(held, store)
    assert before.keys > before.keys_without_torn_log


def test_an_object_is_whole_or_not(held: Prepared, tmp_path: Path) -> None:
    """One bit is enough."""
    store = held.write_out(tmp_path).path
    path = next(path for path in (store / "objects" / "0").iterdir() if path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(_openable(held, store)) in range(len(held.images) - 3, len(held.images))


def test_every_damage_changes_the_store_and_nothing_else(held: Prepared, tmp_path: Path) -> None:
    """Of each kind, and none of them reaches the tree beside the store."""
    done = set()
    for number in range(_DAMAGES):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = held.write_out(folder).path
        canary.build(folder / "canary")
        untouched = canary.look(folder / "canary")
        listed, before = sorted(store.rglob("*")), digests(store)
        chance = random.Random(f"test {number}")
        done.add(damages.damage(chance, damages.Scene(store, held.history, folder / "canary")).action)
        assert _seen(store) != (listed, before)
        assert [*canary.differences(untouched, canary.look(folder / "canary"))] == []
        shutil.rmtree(folder)
    assert done == set(damages.ACTIONS)


def _seen(store: Path) -> object:
    if any(path.is_file() and path.stat().st_size > 1 << 30 for path in store.rglob("*")):
        return None  # a sparse terabyte
    if any(path.is_char_device() for path in store.rglob("*")):
        return None
    return sorted(store.rglob("*")), digests(store)


def test_the_tree_beside_a_store_tells_every_change(tmp_path: Path) -> None:
    """Names, contents, modes and times."""
    tree = tmp_path / "canary"
    canary.build(tree)
    before = canary.look(tree)
    assert [*canary.differences(before, canary.look(tree))] == []
    (tree / "notes.txt").chmod(0o600)
    os.utime(tree / "folder" / "a", (1, 1))
    (tree / "folder" / "objects" / "8").unlink()
    (tree / "folder" / "0" / "9").touch()
    told = "; ".join(canary.differences(before, canary.look(tree)))
    assert "canary/notes.txt: mode changed" in told
    assert "canary/folder/a: mtime changed" in told
    assert "canary/folder/objects/8 is gone" in told
    assert "canary/folder/0/9 is new" in told
