"""What an unclean stop leaves becomes a consistent store: every image old or new, and a word about each loss.

A crash is the copy of a store that is open: what a killed process leaves is what the page cache holds.
Power loss is such a copy from which things written after the last barrier are taken away. The store's lock is
held from the barrier to the copy, so that the next one cannot come between.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import SEGMENT, Place, content_of, image, objects_of, replace_file, save_file, tree

from pixstorefs.errors import CorruptImage
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.store.draft import Draft
from pixstorefs.store.store import Store

OLD = {
    name: image(size, name) for name, size in (("a", 10), ("b", SEGMENT + 1), ("c", 3 * SEGMENT), ("d", 99))
}


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """A store with four images behind a barrier."""
    place.open().close()
    opened = place.open_store()
    for name, content in OLD.items():
        _create(opened, name, content)
    opened.sync()
    yield opened
    opened.close()


def _create(store: Store, name: str, content: bytes) -> None:
    save_file(store, name, lambda draft: draft.write(0, content))


def _crash(store: Store, place: Place, name: str = "crashed") -> Path:
    copy = place.path.with_name(name)
    shutil.copytree(store.path, copy)
    return copy


@contextmanager
def _reopened(place: Place, path: Path) -> Iterator[Store]:
    store = place.open_store(path)
    try:
        yield store
    finally:
        store.close()


def _newer_than(objects: dict[int, Path], copy: Path) -> list[Path]:
    """Objects of a copy that were not there at the barrier."""
    return [path for version_id, path in objects_of(copy).items() if version_id not in objects]


def test_everything_saved_survives_a_crash(store: Store, place: Place) -> None:
    """New, updated, renamed and deleted images are as they were when the process died, without a report."""
    with store.lock:
        _create(store, "new", image(SEGMENT, "new"))
        replace_file(store, "a", image(5 * SEGMENT, "a2"))
        store.tree.rename(ROOT_INO, b"b", ROOT_INO, b"renamed", 7)
        store.tree.rename(ROOT_INO, b"d", ROOT_INO, b"c", 8)
        copy = _crash(store, place)
        expected = tree(store)

    with _reopened(place, copy) as recovered:
        assert tree(recovered) == expected
        assert recovered.report == []
        recovered.sync()
        assert len(objects_of(copy)) == len(expected)


def _gone(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _last_page_lost(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-4096] + bytes(min(4096, len(data))))


@pytest.mark.parametrize("lose", [_gone, _empty, _short, _zeroed, _last_page_lost])
def test_update_whose_object_was_lost_falls_back(
    store: Store, place: Place, lose: Callable[[Path], None]
) -> None:
    """After power loss an update whose object did not reach the disk is undone, twice over, and reported."""
    with store.lock:
        before = objects_of(place.path)
        replace_file(store, "b", image(2 * SEGMENT, "b2"), mtime_ns=22)
        replace_file(store, "b", image(2 * SEGMENT, "b3"), mtime_ns=33)
        copy = _crash(store, place)
    for path in _newer_than(before, copy):
        lose(path)

    with _reopened(place, copy) as recovered:
        assert tree(recovered) == OLD
        inode = recovered.tree.lookup(ROOT_INO, b"b")
        assert inode is not None
        assert inode.mtime_ns == 1
        [line] = recovered.report
        assert line.startswith("b: ")
        recovered.sync()
        assert len(objects_of(copy)) == len(OLD)


def test_new_image_whose_object_was_lost_leaves_the_tree(store: Store, place: Place) -> None:
    """After power loss a new image without its object is gone, and said to be; its neighbours are whole."""
    with store.lock:
        before = objects_of(place.path)
        _create(store, "lost", image(SEGMENT, "lost"))
        copy = _crash(store, place)
    for path in _newer_than(before, copy):
        _gone(path)

    with _reopened(place, copy) as recovered:
        assert tree(recovered) == OLD
        [line] = recovered.report
        assert line.startswith("lost: ")


def test_only_what_is_newer_than_the_barrier_is_looked_at(store: Store, place: Place) -> None:
    """Recovery costs O(recent): damage to an old object is neither found nor made worse."""
    with store.lock:
        copy = _crash(store, place)
    damaged = min(objects_of(copy).values())
    _zeroed(damaged)

    with _reopened(place, copy) as recovered:
        assert recovered.report == []
        inode = recovered.tree.lookup(ROOT_INO, b"a")
        assert inode is not None
        with pytest.raises(CorruptImage):
            content_of(recovered, inode)


def test_drafts_that_were_never_saved_are_swept(store: Store, place: Place) -> None:
    """An object nobody finished is removed and counted."""
    with store.lock:
        draft = Draft(store.allocator, store.allocator.new_image_id(store.numbers.ino()))
        draft.write(0, image(3 * SEGMENT, "draft"))
        copy = _crash(store, place)
        draft.close()
    assert len(objects_of(copy)) == len(OLD) + 1

    with _reopened(place, copy) as recovered:
        assert tree(recovered) == OLD
        assert len(objects_of(copy)) == len(OLD)
        assert recovered.report == ["removed 1 objects of drafts that were never saved"]


def test_a_long_draft_is_swept_after_many_barriers(store: Store, place: Place) -> None:
    """The floor of the sweep waits for the oldest draft, however many barriers pass meanwhile."""
    draft = Draft(store.allocator, store.allocator.new_image_id(store.numbers.ino()))
    draft.write(0, image(3 * SEGMENT, "draft"))
    for number in range(3):
        _create(store, f"more-{number}", image(50, number))
        store.sync()
    with store.lock:
        copy = _crash(store, place)
        expected = tree(store)
        draft.close()

    with _reopened(place, copy) as recovered:
        assert tree(recovered) == expected
        assert len(objects_of(copy)) == len(expected)


def test_interrupted_delete(store: Store, place: Place) -> None:
    """Deleted and not yet unlinked when the process died: the name stays gone, the object goes."""
    with store.lock:
        store.tree.remove(ROOT_INO, b"a", 5)
        copy = _crash(store, place)
    assert len(objects_of(copy)) == len(OLD)

    with _reopened(place, copy) as recovered:
        assert "a" not in tree(recovered)
        assert len(objects_of(copy)) == len(OLD) - 1


def test_recovery_may_die_and_start_anew(store: Store, place: Place) -> None:
    """A store that is killed again right after recovery, three times, ends as after the first time."""
    with store.lock:
        before = objects_of(place.path)
        replace_file(store, "b", image(SEGMENT, "b2"))
        _create(store, "lost", image(SEGMENT, "lost"))
        copy = _crash(store, place)
    for path in _newer_than(before, copy):
        _gone(path)

    for again in range(3):
        with _reopened(place, copy) as recovered:
            assert tree(recovered) == OLD
            copy = _crash(recovered, place, f"crashed-{again}")


def test_barrier_unlinks_what_was_replaced(store: Store, place: Place) -> None:
    """Retired objects stay until the barrier, not longer."""
    with store.lock:
        replace_file(store, "a", image(20, "a2"))
        replace_file(store, "a", image(30, "a3"))
        assert len(objects_of(place.path)) == len(OLD) + 2
    store.sync()

    assert len(objects_of(place.path)) == len(OLD)


def _history(store: Store) -> list[dict[str, bytes]]:
    """A series of changes; returns the tree before it and after each."""
    steps: list[Callable[[], object]] = [
        lambda: replace_file(store, "a", image(2 * SEGMENT, "a2")),
        lambda: _create(store, "e", image(70, "e")),
        lambda: store.tree.rename(ROOT_INO, b"e", ROOT_INO, b"b", 5),
        lambda: store.tree.remove(ROOT_INO, b"c", 6),
        lambda: replace_file(store, "a", image(40, "a3")),
        lambda: store.tree.exchange(ROOT_INO, b"a", ROOT_INO, b"d", 7),
        lambda: _create(store, "f", b""),
        lambda: replace_file(store, "b", image(SEGMENT, "b2")),
    ]
    states = [tree(store)]
    for step in steps:
        step()
        states.append(tree(store))
    return states


def _end_of_log(path: Path) -> int:
    """Where the zeros begin that the log was prepared with: a frame may end with some of its own."""
    frames_bytes = len(path.read_bytes().rstrip(b"\0")) - 32
    return 32 + -(-frames_bytes // 4120) * 4120


def test_log_torn_anywhere_gives_a_state_that_was(store: Store, place: Place) -> None:
    """Power loss may keep any front part of the log: the tree is then exactly that after some change."""
    log_path = place.path / "index.db-wal"
    with store.lock:
        kept_bytes = _end_of_log(log_path)
        states = _history(store)
        copy = _crash(store, place)
    log = (copy / "index.db-wal").read_bytes()[: _end_of_log(copy / "index.db-wal")]
    assert len(log) > kept_bytes + 8 * 4120

    seen = []
    for number, cut in enumerate([*range(kept_bytes, len(log), 4120 * 2 + 1000), len(log)]):
        torn = place.path.with_name(f"torn-{number}")
        shutil.copytree(copy, torn)
        (torn / "index.db-wal").write_bytes(log[:cut])
        with _reopened(place, torn) as recovered:
            found = tree(recovered)
            assert found in states
            seen.append(states.index(found))
            recovered.sync()
            assert len(objects_of(torn)) == sum(1 for content in found.values() if content)
        shutil.rmtree(torn)
    assert seen == sorted(seen)
    assert len(set(seen)) >= len(states) // 2
    assert seen[-1] == len(states) - 1


def test_log_kept_and_all_new_objects_lost(store: Store, place: Place) -> None:
    """The worst order: rows durable, objects not. Every image is an old version of itself, or never was."""
    with store.lock:
        before = objects_of(place.path)
        _history(store)
        copy = _crash(store, place)
    for path in _newer_than(before, copy):
        _gone(path)

    with _reopened(place, copy) as recovered:
        # "b" was replaced by the new "e", which is lost. "a" and "d" were exchanged, which is not; then
        # what "d" names falls back to its content at the barrier. "c" was deleted, "f" is empty.
        assert tree(recovered) == {"a": OLD["d"], "b": OLD["b"], "d": OLD["a"], "f": b""}
        assert len(recovered.report) == 2


def test_fsync_holds_although_the_objects_are_lost(store: Store, place: Place) -> None:
    """What an fsync waited for is put back from the journal: new images, new versions, a replacement."""
    with store.lock:
        before = objects_of(place.path)
        replace_file(store, "a", image(2 * SEGMENT, "a2"))
        _create(store, "e", image(70, "e"))
        store.make_durable()
        _create(store, "tmp", image(SEGMENT + 1, "tmp"))
        store.make_durable()
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"b", 9)
        replace_file(store, "c", image(5, "c2"))  # nobody waited for this one
        assert store.index.state().durable_token < store.numbers.last_token
        copies = [_crash(store, place, name) for name in ("gone", "zeros")]
    for path in _newer_than(before, copies[0]):
        _gone(path)
    for path in _newer_than(before, copies[1]):
        path.write_bytes(bytes(path.stat().st_size))
    for copy in copies:
        with _reopened(place, copy) as recovered:
            assert tree(recovered) == OLD | {
                "a": image(2 * SEGMENT, "a2"),
                "b": image(SEGMENT + 1, "tmp"),
                "e": image(70, "e"),
            }
            assert len(recovered.report) == 1


def test_journal_is_written_from_its_beginning_after_a_barrier(store: Store, place: Place) -> None:
    """It holds what no barrier has synced; what is too long for it waits for its own file."""
    for round_ in range(3):
        for number in range(10):
            replace_file(store, "a", image(4 * SEGMENT, (round_, number)))
            store.make_durable()
        store.sync()
    replace_file(store, "b", image(20 * SEGMENT, "long"))
    store.make_durable()
    with store.lock:
        copy = _crash(store, place)
    with _reopened(place, copy) as recovered:
        found = tree(recovered)
    assert found == OLD | {"a": image(4 * SEGMENT, (2, 9)), "b": image(20 * SEGMENT, "long")}


def test_careful_save_without_fsync(store: Store, place: Place) -> None:
    """Write to a new name, rename over, twice: if the content is lost, what was replaced is back."""
    with store.lock:
        before = objects_of(place.path)
        for number in range(2):
            _create(store, f"tmp-{number}", image(SEGMENT, number))
            store.tree.rename(ROOT_INO, f"tmp-{number}".encode(), ROOT_INO, b"b", 9)
        whole = _crash(store, place, "whole")
        torn = _crash(store, place, "torn")
    for path in _newer_than(before, torn):
        _gone(path)

    with _reopened(place, whole) as recovered:
        assert tree(recovered) == OLD | {"b": image(SEGMENT, 1)}
        assert len(objects_of(whole)) == len(OLD)
    with _reopened(place, torn) as recovered:
        assert tree(recovered) == OLD
        assert any("the image before it is back" in line for line in recovered.report)
        assert len(objects_of(torn)) == len(OLD)


def test_a_lost_image_gives_back_every_name_it_took(store: Store, place: Place) -> None:
    """Renamed over one image and on over another, without fsync: if its content is lost, both are back."""
    with store.lock:
        before = objects_of(place.path)
        _create(store, "tmp", image(SEGMENT, "tmp"))
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"a", 9)
        store.tree.rename(ROOT_INO, b"a", ROOT_INO, b"b", 9)
        save_file(store, "d", lambda draft: draft.write(0, image(SEGMENT, "d2")), left=("c",))
        whole = _crash(store, place, "whole")
        torn = _crash(store, place, "torn")
    for path in _newer_than(before, torn):
        _gone(path)

    with _reopened(place, whole) as recovered:
        assert tree(recovered) == {"b": image(SEGMENT, "tmp"), "d": image(SEGMENT, "d2")}
    with _reopened(place, torn) as recovered:
        assert tree(recovered) == OLD
        _create(recovered, "new", image(10, "new"))
        assert tree(recovered) == OLD | {"new": image(10, "new")}
        assert len(recovered.report) == 2


def test_careful_save_over_an_update(store: Store, place: Place) -> None:
    """An update, and at once a rename over it: if both contents are lost, the durable version is back."""
    with store.lock:
        before = objects_of(place.path)
        replace_file(store, "b", image(SEGMENT, "b2"), mtime_ns=22)
        _create(store, "tmp", image(SEGMENT, "tmp"))
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"b", 9)
        copy = _crash(store, place)
    for path in _newer_than(before, copy):
        _gone(path)

    with _reopened(place, copy) as recovered:
        assert tree(recovered) == OLD
        inode = recovered.tree.lookup(ROOT_INO, b"b")
        assert inode is not None
        assert inode.mtime_ns == 1
        recovered.sync()
        assert len(objects_of(copy)) == len(OLD)


def test_displaced_image_is_deleted_at_the_barrier(store: Store, place: Place) -> None:
    """What a careful save replaced is gone for good one barrier later: object, key and inode."""
    with store.lock:
        _create(store, "tmp", image(SEGMENT, 1))
        old = store.tree.lookup(ROOT_INO, b"b")
        assert old is not None
        assert old.version_id is not None
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"b", 9)
        assert store.tree.inode(old.ino) is None
        assert store.index.version(old.version_id) is not None
    store.sync()

    assert store.index.version(old.version_id) is None
    assert store.index.inode(old.ino) is None
    assert len(objects_of(place.path)) == len(OLD)


def test_careful_save_with_fsync_keeps_nothing(store: Store) -> None:
    """Over content that is durable already the rename deletes at once: the key is gone before it returns."""
    _create(store, "tmp", image(SEGMENT, 1))
    store.sync()
    with store.lock:
        old = store.tree.lookup(ROOT_INO, b"b")
        assert old is not None
        assert old.version_id is not None
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"b", 9)
        assert store.index.version(old.version_id) is None


def test_clean_stop_needs_no_recovery(place: Place, store: Store) -> None:
    """A store that was closed is clean and its log empty; one that is open is not."""
    with store.lock:
        crashed = _crash(store, place)
    with _reopened(place, crashed) as recovered:
        state = recovered.index.state()
        assert not state.clean
    assert (crashed / "index.db-wal").stat().st_size == 0
    with _reopened(place, crashed) as recovered:
        assert recovered.report == []
        assert tree(recovered) == OLD


# What no power loss explains


def _objects_aside(store: Path) -> set[str]:
    return {path.name for path in (store / "lost+found" / "objects").glob("*")}


def _draft_on_disk(store: Store) -> int:
    """An object that is being written, and no row knows."""
    draft = store.allocator.begin_object(b"x" * 16)
    draft.append(0, memoryview(bytes(SEGMENT)))
    return draft.key.version_id


def test_draft_is_removed_if_the_index_is_proven(store: Store, place: Place) -> None:
    """The record vouches for the index: an object that it does not know was never saved."""
    with store.lock:
        version_id = _draft_on_disk(store)
        copy = _crash(store, place)
    with _reopened(place, copy) as recovered:
        assert any("never saved" in line for line in recovered.report)
    assert version_id not in objects_of(copy)
    assert _objects_aside(copy) == set()


def test_unknown_object_is_set_aside_if_nothing_vouches_for_the_index(store: Store, place: Place) -> None:
    """Without a record the index may be an older one, and the object an image whose key is elsewhere."""
    with store.lock:
        version_id = _draft_on_disk(store)
        copy = _crash(store, place)
    content = objects_of(copy)[version_id].read_bytes()
    (copy / "barrier").unlink()
    with _reopened(place, copy) as recovered:
        assert any("objects that the index does not know" in line for line in recovered.report)
        assert tree(recovered) == OLD
    assert (copy / "lost+found" / "objects" / str(version_id)).read_bytes() == content


def test_what_stands_behind_a_damaged_frame_is_kept_with_its_keys(store: Store, place: Place) -> None:
    """A save that was acknowledged and never synced: its object is set aside, and the log with its key."""
    with store.lock:
        before = objects_of(place.path)
        reach = store.index.log_position().frames
        _create(store, "later", image(SEGMENT, "later"))
        copy = _crash(store, place)
    [path] = _newer_than(before, copy)
    with open(copy / "index.db-wal", "r+b") as log:
        log.seek(32 + reach * (24 + 4096) + 500)
        byte = log.read(1)
        log.seek(-1, 1)
        log.write(bytes([byte[0] ^ 1]))
    damaged = (copy / "index.db-wal").read_bytes()
    with _reopened(place, copy) as recovered:
        assert tree(recovered) == OLD
    assert _objects_aside(copy) == {path.name}
    [kept] = (copy / "lost+found").glob("index-*/index.db-wal")
    assert kept.read_bytes() == damaged


@pytest.mark.parametrize("lose", [_gone, _short, _zeroed])
def test_image_that_was_called_durable_stays_in_the_tree(
    store: Store, place: Place, lose: Callable[[Path], None]
) -> None:
    """A power loss does not take what a sync vouched for: a damaged image is told of, and keeps its name."""
    with store.lock:
        before = objects_of(place.path)
        _create(store, "durable", image(SEGMENT, "durable"))
        store.make_durable()
        copy = _crash(store, place)
    (copy / "journal").write_bytes(b"")
    for path in _newer_than(before, copy):
        lose(path)
    with _reopened(place, copy) as recovered:
        inode = recovered.tree.lookup(ROOT_INO, b"durable")
        assert inode is not None
        with pytest.raises(CorruptImage):
            content_of(recovered, inode)
        assert any(line.startswith("durable: it is damaged") for line in recovered.report)
        assert _others(recovered) == OLD


def _others(store: Store) -> dict[str, bytes]:
    """The content of every image but the damaged one."""
    entries = store.tree.entries(ROOT_INO, 0, 100)
    return {name.decode(): content_of(store, inode) for _, name, inode in entries if name != b"durable"}
