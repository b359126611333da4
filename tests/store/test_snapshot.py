"""Snapshots: complete stores, of one moment, whatever happens to the store meanwhile; and what is refused."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from disks import LoopDisk
from stores import (
    SEGMENT,
    Place,
    check_store,
    digests,
    image,
    objects_of,
    replace_file,
    save_file,
    take_snapshot,
    tree,
    writing,
)
from support import cannot_run

from pixstorefs.check.check import Progress
from pixstorefs.check.view import StoreView
from pixstorefs.disk.folder import Folder
from pixstorefs.errors import (
    CorruptImage,
    CorruptStore,
    InvalidInput,
    NoSpace,
    NotAStore,
    SnapshotFailed,
    StoreInUse,
)
from pixstorefs.index.digest import digest_of
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.snapshot.snapshot import Snapshot
from pixstorefs.store.store import Store
from pixstorefs.trust.snapshot_record import is_unfinished


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """An open store with images of several sizes."""
    place.open().close()
    with closing(place.open_store()) as opened:
        for name, size_bytes in (("a", 1000), ("b", SEGMENT), ("c", 3 * SEGMENT + 7)):
            save_file(opened, name, lambda draft, n=name, s=size_bytes: draft.write(0, image(s, n)))
        save_file(opened, "empty", lambda draft: draft.write(0, b""))
        opened.sync()
        yield opened


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A small file system of another kind: nothing can be linked to it."""
    with small_disk(tmp_path / "elsewhere", "16m") as disk:
        yield disk


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        cannot_run("mounting a small file system of our own needs root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def shown(place: Place, path: Path) -> dict[str, bytes]:
    """What a snapshot shows, opened as on read-only media; nothing in it is touched, and nothing is wrong."""
    assert check_store(place, path) == []
    before = digests(path)
    with StoreView(str(path), secret_from_keyfile(place.keyfile)) as view:
        key = view.index_key
    opened = Store(str(path), view.store_id, key, ownership=None, padding=True, read_only=True)
    with closing(opened):
        content = tree(opened)
    assert {name: digest for name, digest in digests(path).items() if "index.db-" not in name} == {
        name: digest for name, digest in before.items() if "index.db-" not in name
    }
    return content


# What a snapshot is


def test_is_a_store_of_its_own(place: Place, store: Store, tmp_path: Path) -> None:
    """Everything is in it, nothing is wrong with it, and it goes on when the store is gone."""
    outcome = take_snapshot(place, tmp_path / "taken", verify=True)
    assert (outcome.images, outcome.added, outcome.ways) == (4, 3, {"linked": 3})
    expected = tree(store)
    assert shown(place, tmp_path / "taken") == expected
    store.close()
    shutil.rmtree(place.path)
    with closing(place.open_store(tmp_path / "taken")) as taken:
        assert taken.report == []
        assert tree(taken) == expected
        replace_file(taken, "a", image(5, "new"))
        save_file(taken, "d", lambda draft: draft.write(0, image(9)))
    with closing(place.open_store(tmp_path / "taken")) as taken:
        assert tree(taken) == expected | {"a": image(5, "new"), "d": image(9)}
    assert check_store(place, tmp_path / "taken") == []


def test_second_run_brings_only_what_is_new(place: Place, store: Store, tmp_path: Path) -> None:
    """Objects that are there stay the very same files; those of no image go."""
    taken = tmp_path / "taken"
    take_snapshot(place, taken)
    before = {version_id: path.stat().st_ino for version_id, path in objects_of(taken).items()}
    replace_file(store, "a", image(2000, "a2"))
    store.tree.remove(ROOT_INO, b"b", 3)
    save_file(store, "d", lambda draft: draft.write(0, image(10, "d")))
    outcome = take_snapshot(place, taken)
    assert (outcome.images, outcome.added, outcome.removed) == (4, 2, 2)
    assert outcome.added_bytes < 3000
    after = {version_id: path.stat().st_ino for version_id, path in objects_of(taken).items()}
    assert before.items() & after.items() == {max(before): before[max(before)]}.items()
    assert shown(place, taken) == tree(store)
    again = take_snapshot(place, taken)
    assert (again.added, again.removed) == (0, 0)


def test_key_slots_follow_the_store(place: Place, store: Store, tmp_path: Path) -> None:
    """Who can open the store can open its snapshot, and nobody else: slots are brought up to date, too."""
    taken = tmp_path / "taken"
    take_snapshot(place, taken)
    for folder in (taken, taken / "copies"):
        (folder / "keys.json").write_bytes(b"older slots")
    take_snapshot(place, taken)
    for name in ("keys.json", "store.json"):
        for folder in (taken, taken / "copies"):
            assert (folder / name).read_bytes() == (place.path / name).read_bytes()
    modes = {path.stat().st_mode & 0o777 for path in [taken, *taken.rglob("*")] if path.is_dir()}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in taken.rglob("*") if path.is_file()} == {0o600}


def test_nothing_retired_is_left(place: Place, store: Store, tmp_path: Path) -> None:
    """Replaced and deleted images, and displaced ones, are not in it, nor are the keys they had."""
    with store.lock:  # no barrier comes in between
        key = store.version(store.tree.lookup(ROOT_INO, b"a")).key  # type: ignore[arg-type]
        replace_file(store, "a", image(20, "a2"))
        save_file(store, "tmp", lambda draft: draft.write(0, image(30, "tmp")))
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"b", 5)
        store.tree.remove(ROOT_INO, b"c", 5)
        assert store.index.displaced(store.numbers.last_token)
        take_snapshot(place, tmp_path / "taken")
    with StoreView(str(tmp_path / "taken"), secret_from_keyfile(place.keyfile)) as view:
        assert view.index.execute(
            "SELECT count(*) FROM version WHERE retired_by NOT NULL OR key IS NULL"
        ) == [(0,)]
        assert view.index.execute("SELECT count(*) FROM displaced") == [(0,)]
        assert view.index.execute("SELECT count(*) FROM version") == [(3,)]
        assert view.index.execute("SELECT count(*) FROM version WHERE key=?", (key,)) == [(0,)]
        assert view.index.state().clean
    assert len(objects_of(tmp_path / "taken")) == 2
    assert set(shown(place, tmp_path / "taken")) == {"a", "b", "empty"}


def test_writing_to_a_linked_snapshot_leaves_the_store_alone(
    place: Place, store: Store, tmp_path: Path
) -> None:
    """They share files; whatever is done to images in the one, nothing happens to those of the other."""
    taken = tmp_path / "taken"
    take_snapshot(place, taken)
    expected, before = tree(store), digests(place.path / "objects")
    with closing(place.open_store(taken)) as other:
        for name in ("a", "b"):
            replace_file(other, name, image(50, "other"))
        other.tree.remove(ROOT_INO, b"c", 3)
        save_file(other, "d", lambda draft: draft.write(0, image(SEGMENT, "d")))
        other.sync()
    assert set(objects_of(taken)).isdisjoint(place.objects())
    assert digests(place.path / "objects") == before
    assert tree(store) == expected
    assert check_store(place, place.path) == []
    # And the other way round.
    kept = digests(taken / "objects")
    replace_file(store, "a", image(60, "store"))
    store.tree.remove(ROOT_INO, b"c", 3)
    store.sync()
    assert digests(taken / "objects") == kept


def test_mounting_it_changes_nothing_for_the_next_run(place: Place, store: Store, tmp_path: Path) -> None:
    """Opening it for writing, also if the process dies, is not changing it."""
    taken = tmp_path / "taken"
    take_snapshot(place, taken)
    place.open_store(taken).close()
    assert take_snapshot(place, taken).added == 0
    pid = os.fork()
    if pid == 0:
        place.open_store(taken)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (taken / "index.db-wal").stat().st_size > 0
    replace_file(store, "a", image(70))
    assert take_snapshot(place, taken).added == 1
    assert shown(place, taken) == tree(store)


def _saved(store: Store) -> None:
    save_file(store, "d", lambda draft: draft.write(0, image(9)))


def _renamed(store: Store) -> None:
    store.tree.rename(ROOT_INO, b"a", ROOT_INO, b"z", 4)


def _annotated(store: Store) -> None:
    store.tree.put_xattr(ROOT_INO, b"user.note", b"mine", 4)


@pytest.mark.parametrize("change", [_saved, _renamed, _annotated])
def test_changes_in_it_are_not_undone(
    place: Place, store: Store, tmp_path: Path, change: Callable[[Store], None]
) -> None:
    """A snapshot that somebody went on with is no snapshot any more."""
    taken = tmp_path / "taken"
    take_snapshot(place, taken)
    with closing(place.open_store(taken)) as other:
        change(other)
        expected = tree(other)
    with pytest.raises(InvalidInput, match="mounted and changed"):
        take_snapshot(place, taken)
    assert shown(place, taken) == expected


# A store in use


def test_is_of_one_moment(place: Place, store: Store, tmp_path: Path) -> None:
    """Everything is replaced or deleted, and every barrier passed, while the first object is brought."""
    expected = tree(store)
    with Snapshot(str(place.path), str(tmp_path / "taken"), secret_from_keyfile(place.keyfile)) as snapshot:
        progress = Progress()

        def change() -> None:
            for name in ("a", "b"):
                replace_file(store, name, image(77, progress.images))
            if store.tree.lookup(ROOT_INO, b"c"):
                store.tree.remove(ROOT_INO, b"c", 3)
            store.sync()

        progress.moved = change
        snapshot.bring(progress)
        assert snapshot.finish().added == 3
    assert shown(place, tmp_path / "taken") == expected


def test_store_on_a_full_disk_gives_objects_away(place: Place, store: Store, tmp_path: Path) -> None:
    """Then a newer index is taken, and what was brought already is not brought again."""
    taken = tmp_path / "taken"
    secret = secret_from_keyfile(place.keyfile)
    with Snapshot(str(place.path), str(taken), secret) as snapshot:
        progress = Progress()

        def change() -> None:
            progress.moved = lambda: None
            for name in ("a", "b"):
                replace_file(store, name, image(77, name))
            store.make_room()

        progress.moved = change
        snapshot.bring(progress)
        assert snapshot.finish().added == 4  # a, which is removed again, c, and the new a and b
    expected = tree(store)
    assert shown(place, taken) == expected
    with Snapshot(str(place.path), str(taken), secret) as snapshot:

        def change_always() -> None:
            for name in ("a", "b"):
                replace_file(store, name, image(77, os.urandom(4)))
            store.make_room()

        change_always()
        progress = Progress(moved=change_always)
        with pytest.raises(NoSpace, match="disk under the store"):
            snapshot.bring(progress)
    assert check_store(place, taken)[0].kind == "snapshot-unfinished"
    take_snapshot(place, taken)
    assert shown(place, taken) == tree(store)


_WRITER = """
import sys
from pathlib import Path
from stores import Place, image, replace_file, save_file
from test_snapshot import numbered
from pixstorefs.index.rows import ROOT_INO
place = Place.__new__(Place)
place.path, place.keyfile = map(Path, sys.argv[1:])
store = place.open_store()
for name in ("first", "second", "moved"):
    save_file(store, name, lambda draft: draft.write(0, numbered(0)))
number = 0
print("ready", flush=True)
while True:
    number += 1
    replace_file(store, "first", numbered(number))
    replace_file(store, "second", numbered(number))
    save_file(store, "tmp", lambda draft: draft.write(0, numbered(number)))
    store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"moved", number)
    save_file(store, f"{number}", lambda draft: draft.write(0, numbered(number)))
    if number > 20:
        store.tree.remove(ROOT_INO, b"%d" % (number - 20), number)
    if number % 3 == 0:
        store.sync()
"""


def numbered(number: int) -> bytes:
    """Content that tells its number, of a size that varies."""
    return b"%d " % number + image(100 + number * 7919 % (2 * SEGMENT), number)


def number_of(content: bytes) -> int:
    """The number of whole content; a mix of two fails."""
    number = int(re.match(rb"\d+", content)[0])  # type: ignore[index]
    assert content == numbered(number)
    return number


def test_snapshots_beside_a_writing_process(place: Place, elsewhere: Path, tmp_path: Path) -> None:
    """Each is whole, and of one moment: what was saved first is never older than what was saved after it."""
    place.open().close()
    seen = 0
    with writing(place, _WRITER):
        for number in range(24):
            target = (tmp_path if number % 2 else elsewhere) / "taken"
            outcome = take_snapshot(place, target, verify=number % 3 == 0)
            assert outcome.ways.keys() <= ({"linked"} if number % 2 else {"copied"})
            found = {name: number_of(content) for name, content in shown(place, target).items()}
            assert found["second"] <= found["first"] <= found["second"] + 1
            assert found["moved"] <= found["second"]
            newest = max(found["first"], seen)
            assert found["first"] == newest
            for name in found.keys() & {f"{n}" for n in range(newest - 18, newest)}:
                assert found[name] == int(name)
            assert {f"{n}" for n in range(max(1, newest - 18), newest)} <= found.keys()
            assert objects_of(target).keys() == _known(place, target)
            seen = newest
    assert seen > 24
    with closing(place.open_store()) as opened:
        assert number_of(tree(opened)["first"]) >= seen


def _known(place: Place, target: Path) -> set[int]:
    with StoreView(str(target), secret_from_keyfile(place.keyfile)) as view:
        return view.index.known_objects(0)


# How objects come


def test_copies_to_another_file_system(place: Place, store: Store, elsewhere: Path) -> None:
    """Where nothing can be linked the bytes are copied."""
    outcome = take_snapshot(place, elsewhere / "taken", verify=True)
    assert outcome.ways == {"copied": 3}
    assert shown(place, elsewhere / "taken") == tree(store)
    replace_file(store, "a", image(10, "a2"))
    assert take_snapshot(place, elsewhere / "taken").ways == {"copied": 1}
    assert not list((elsewhere / "taken").rglob("*.new"))


def test_clones_where_links_are_impossible(tmp_path: Path) -> None:
    """Between two mounts of one XFS the blocks are shared."""
    with LoopDisk(tmp_path, "xfs", 512).mounted() as disk:
        for name in ("one", "other"):
            (disk.path / name).mkdir()
        bound = tmp_path / "bound"
        bound.mkdir()
        subprocess.run(["mount", "--bind", disk.path / "other", bound], check=True)
        try:
            place = Place(disk.path / "one")
            with place.open() as images:
                record = images.save_image(image(3 * SEGMENT))
            assert take_snapshot(place, bound / "taken", verify=True).ways == {"cloned": 1}
            with place.open() as images:
                images.update_image(record.id, image(10))
            assert take_snapshot(place, bound / "taken", verify=True).ways == {"cloned": 1}
            assert list(shown(place, bound / "taken").values()) == [image(10)]
        finally:
            subprocess.run(["umount", bound], check=True)


def test_leftovers_of_an_interrupted_run_are_not_trusted(place: Place, store: Store, elsewhere: Path) -> None:
    """An object without a row may be what power loss left; of the right size or not, it is brought anew."""
    taken = elsewhere / "taken"
    with Snapshot(str(place.path), str(taken), secret_from_keyfile(place.keyfile)) as snapshot:
        snapshot.bring(Progress())
    assert is_unfinished(Folder.at(str(taken)))
    first, second, third = (objects_of(taken)[version_id] for version_id in sorted(objects_of(taken)))
    first.write_bytes(bytes(first.stat().st_size))
    second.write_bytes(b"")
    whole = third.stat().st_ino
    outcome = take_snapshot(place, taken)
    assert outcome.added == 2
    assert third.stat().st_ino == whole
    assert shown(place, taken) == tree(store)


def test_verify_mends_what_is_damaged_in_the_snapshot_alone(
    place: Place, store: Store, elsewhere: Path
) -> None:
    """A flipped bit in a copy is noticed by --verify only, and brought anew from the store."""
    taken = elsewhere / "taken"
    take_snapshot(place, taken)
    path = objects_of(taken)[max(objects_of(taken))]
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    assert take_snapshot(place, taken).added == 0
    assert take_snapshot(place, taken, verify=True).added == 1
    assert shown(place, taken) == tree(store)
    path.unlink()
    assert take_snapshot(place, taken).added == 1
    assert shown(place, taken) == tree(store)


# Stores that are damaged, unclean, or cannot be written


def test_damaged_store_does_not_replace_a_good_snapshot(place: Place, store: Store, elsewhere: Path) -> None:
    """What a store has lost is refused, and named; the snapshot keeps what it has."""
    taken = elsewhere / "taken"
    expected = tree(store)
    take_snapshot(place, taken)
    replace_file(store, "a", image(30, "a2"))
    lost = place.objects()[max(place.objects())]
    store.sync()
    lost.unlink()
    with pytest.raises(CorruptImage, match=r"a: its object \d+ is missing"):
        take_snapshot(place, taken)
    assert [found.kind for found in check_store(place, taken)] == ["snapshot-unfinished"]
    with closing(place.open_store(taken)) as other:
        assert tree(other) == expected
    with pytest.raises(CorruptImage):
        take_snapshot(place, taken.with_name("first"))
    assert not (taken.with_name("first") / "store.json").exists()
    store.tree.remove(ROOT_INO, b"a", 4)
    take_snapshot(place, taken)
    assert shown(place, taken) == tree(store)


def test_what_the_store_lost_later_is_kept(place: Place, store: Store, elsewhere: Path) -> None:
    """An object that the snapshot has is not looked for in the store."""
    take_snapshot(place, elsewhere / "taken")
    expected = tree(store)
    place.objects()[max(place.objects())].unlink()
    assert take_snapshot(place, elsewhere / "taken", verify=True).added == 0
    assert shown(place, elsewhere / "taken") == expected


def test_damage_that_verify_finds_in_the_store(place: Place, store: Store, tmp_path: Path) -> None:
    """A flipped bit of a shared file is the store's: nothing is put in place."""
    path = place.objects()[max(place.objects())]
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptImage, match="does not match its tag"):
        take_snapshot(place, tmp_path / "taken", verify=True)
    assert not (tmp_path / "taken" / "store.json").exists()


def test_damaged_index_is_refused(place: Place, store: Store, tmp_path: Path) -> None:
    """The same for rows that contradict each other."""
    take_snapshot(place, tmp_path / "taken")
    store.index.execute("UPDATE inode SET nlink=7 WHERE version_id=1")
    with pytest.raises(CorruptStore, match="link count"):
        take_snapshot(place, tmp_path / "taken")
    assert [found.kind for found in check_store(place, tmp_path / "taken")] == ["snapshot-unfinished"]


def test_unclean_store_recovers_first(place: Place, store: Store, tmp_path: Path) -> None:
    """A store that nobody has open and that was not closed cleanly is recovered as by a mount."""
    with store.lock:
        replace_file(store, "a", image(40, "a2"))
        shutil.copytree(place.path, tmp_path / "copy" / "store")
    lost = objects_of(tmp_path / "copy" / "store")
    lost[max(lost)].write_bytes(b"")
    expected = tree(store) | {"a": image(1000, "a")}
    copy = Place.__new__(Place)
    copy.path, copy.keyfile = tmp_path / "copy" / "store", place.keyfile
    outcome = take_snapshot(copy, tmp_path / "taken")
    assert [line for line in outcome.recovered if line.startswith("a: the last save")]
    assert shown(place, tmp_path / "taken") == expected


def test_read_only_store(tmp_path: Path) -> None:
    """A store on media that cannot be written is read as it is; not one that had to recover."""
    with small_disk(tmp_path / "disk", "32m") as disk:
        place = Place(disk)
        with place.open() as images:
            images.save_image(image(1000))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        if os.access(place.path, os.W_OK):
            cannot_run("a read-only file system is not one here")
        before = digests(place.path)
        assert take_snapshot(place, tmp_path / "taken").added == 1
        assert check_store(place, tmp_path / "taken") == []
        assert digests(place.path) == before


def test_store_in_use_that_cannot_be_written_from_here(place: Place, store: Store, tmp_path: Path) -> None:
    """As from a container that sees it read-only: what is copied is of one moment all the same."""
    bound = tmp_path / "bound"
    bound.mkdir()
    if os.geteuid() != 0:
        cannot_run("mounting needs root")
    store.sync()
    subprocess.run(["mount", "--bind", "-o", "ro", place.path, bound], check=True)
    try:
        elsewhere = Place.__new__(Place)
        elsewhere.path, elsewhere.keyfile = bound, place.keyfile
        expected = tree(store)
        take_snapshot(elsewhere, tmp_path / "taken")
        assert shown(place, tmp_path / "taken") == expected
        store.close()
        take_snapshot(elsewhere, tmp_path / "taken")
        assert shown(place, tmp_path / "taken") == expected
    finally:
        subprocess.run(["umount", bound], check=True)


# What is refused


def test_record_tells_nothing_of_the_index_key(place: Place, store: Store, tmp_path: Path) -> None:
    """Its digest lies in the clear, and is keyed by a key of its own: none does two things."""
    take_snapshot(place, tmp_path / "taken")
    with StoreView(str(tmp_path / "taken"), secret_from_keyfile(place.keyfile)) as view:
        digest = digest_of(view.index, view.index_key)
    assert digest not in (tmp_path / "taken" / "snapshot.json").read_text()


def test_foreign_directories(place: Place, store: Store, tmp_path: Path) -> None:
    """Somebody's files, another store, another store's snapshot, a file: none is touched."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "letter").write_text("dear")
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.open().close()
    take_snapshot(other, tmp_path / "taken-of-other")
    for target, error, message in (
        (files, NotAStore, "not empty"),
        (other.path, NotAStore, "not empty"),
        (tmp_path / "taken-of-other", InvalidInput, "another store"),
        (files / "letter", NotAStore, "not a directory"),
    ):
        before = digests(target if target.is_dir() else files)
        with pytest.raises(error, match=message):
            take_snapshot(place, target)
        assert digests(target if target.is_dir() else files) == before


def test_places_in_each_other(place: Place, store: Store) -> None:
    """The store, what lies in it, and what it lies in."""
    for target in (place.path, place.path / "taken", place.path.parent):
        with pytest.raises(InvalidInput, match="lie in each other"):
            take_snapshot(place, target)


def test_snapshot_in_use(place: Place, store: Store, tmp_path: Path) -> None:
    """Who has it open keeps it."""
    take_snapshot(place, tmp_path / "taken")
    with closing(place.open_store(tmp_path / "taken")), pytest.raises(StoreInUse):
        take_snapshot(place, tmp_path / "taken")


def test_damaged_record(place: Place, store: Store, tmp_path: Path) -> None:
    """Without its record nobody can tell what a snapshot holds; it goes on as a store."""
    take_snapshot(place, tmp_path / "taken")
    (tmp_path / "taken" / "snapshot.json").write_bytes(b"{")
    with pytest.raises(CorruptStore, match=r"snapshot\.json is damaged"):
        take_snapshot(place, tmp_path / "taken")
    assert shown(place, tmp_path / "taken") == tree(store)


def test_full_disk(place: Place, store: Store, tmp_path: Path) -> None:
    """A snapshot that finds no room leaves the one before it whole; with room it is completed."""
    with small_disk(tmp_path / "full", "2m") as disk:
        take_snapshot(place, disk / "taken")
        expected = tree(store)
        save_file(store, "large", lambda draft: draft.write(0, image(3 << 20)))
        with pytest.raises(NoSpace, match="What it held before is whole"):
            take_snapshot(place, disk / "taken")
        assert {found.kind for found in check_store(place, disk / "taken")} <= {
            "snapshot-unfinished",
            "stray-object",
        }
        with closing(place.open_store(disk / "taken")) as taken:
            assert tree(taken) == expected
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        take_snapshot(place, disk / "taken")
        assert shown(place, disk / "taken") == tree(store)


def test_target_that_cannot_be_written(place: Place, store: Store, tmp_path: Path) -> None:
    """The disk's error is told with its place."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        take_snapshot(place, disk / "taken")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(SnapshotFailed, match="Read-only file system"):
            take_snapshot(place, disk / "taken")

        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert shown(place, disk / "taken") == tree(store)
