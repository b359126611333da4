"""A damaged index comes back from its pages and its copies: all whose object is there, under its name."""

import os
import random
import resource
import shutil
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import SEGMENT, Place, content_of, image, objects_of, replace_file, save_file

from pixstorefs.check.restore import Restored, restore_index
from pixstorefs.disk.lock_file import Ownership
from pixstorefs.errors import CorruptStore
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.records import Inode
from pixstorefs.store.store import Store
from pixstorefs.trust.header import INDEX_PURPOSE, keys_json, read_header

PAGE = 4096
FOLDERS = 3
BEFORE, AFTER = 60, 30  # images saved before and after the copy


def restore(place: Place, path: Path) -> Restored:
    """What `pixstorefs check --repair` does, for the store at `path`."""
    header = read_header(str(path))
    master_key = keyring.unlock(keys_json(str(path)), secret_from_keyfile(place.keyfile), header.raw)
    owner = Ownership(str(path), None)
    try:
        return restore_index(
            str(path), keyring.derive(master_key, header.store_id, INDEX_PURPOSE), header.store_id
        )
    finally:
        owner.release()


def make_folder(store: Store, name: str) -> int:
    ino = store.numbers.ino()
    store.tree.add(Inode(ino, stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 1, 1, 1), ROOT_INO, name.encode())
    return ino


def tree(store: Store, parent: int = ROOT_INO, path: str = "") -> dict[str, bytes]:
    """Every file by its path, links by where they point, folders by their slash."""
    found: dict[str, bytes] = {}
    for _, name, inode in store.tree.entries(parent, 0, 10_000):
        here = path + os.fsdecode(name)
        if stat.S_ISDIR(inode.mode):
            found |= {here + "/": b""} | tree(store, inode.ino, here + "/")
        elif stat.S_ISLNK(inode.mode):
            found[here] = store.tree.link_target(inode.ino) or b""
        else:
            found[here] = content_of(store, inode)
    return found


def images_in(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path.endswith(".jpg")}


@dataclass
class Used:
    """A closed store that was used after its copies were made: what it held then, and what it holds now."""

    place: Place
    copied: dict[str, bytes]
    now: dict[str, bytes]

    def damaged(self, name: str, damage: Callable[[Path], None]) -> Path:
        """A copy of the store with damage done to it."""
        path = self.place.path.with_name(name)
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.place.path, path)
        damage(path)
        return path

    def reopened(self, path: Path) -> tuple[dict[str, bytes], list[str]]:
        """What a store holds now, all of it verified, and what recovery said."""
        store = self.place.open_store(path)
        try:
            return tree(store), store.report
        finally:
            store.close()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Used:
    """Folders, images, links and attributes, changed in every way since the copy."""
    place = Place(tmp_path_factory.mktemp("used"))
    place.open().close()
    store = place.open_store()
    folders = [make_folder(store, f"folder {number}") for number in range(FOLDERS)]
    for number in range(BEFORE):
        content = image(500 + number, number)
        name = f"before {number:03}.jpg"
        inode = save_file(
            store, name, lambda draft, data=content: draft.write(0, data), parent=folders[number % FOLDERS]
        )
        store.tree.put_xattr(inode.ino, b"user.note", b"note" * number, 1)
    link = Inode(store.numbers.ino(), stat.S_IFLNK | 0o777, 0, 0, 1, 5, 0, 0, 1, 1, 1)
    store.tree.add(link, ROOT_INO, b"link", b"there")
    make_folder(store, "deleted folder")
    for name in ("replaced.jpg", "renamed.jpg", "deleted.jpg", "linked.jpg"):
        save_file(store, name, lambda draft, name=name: draft.write(0, image(SEGMENT + 9, name)))
    store.close()
    store = place.open_store()
    copied = tree(store)
    store.tree.put_xattr(ROOT_INO, b"user.second", b"copy", 3)
    store.close()
    kept = place.path.with_name("kept")
    shutil.copytree(place.path / "copies", kept)

    store = place.open_store()
    for number in range(AFTER):
        content = image(700 + number, -number)
        name = f"after {number:03}.jpg"
        save_file(
            store, name, lambda draft, data=content: draft.write(0, data), parent=folders[number % FOLDERS]
        )
    replace_file(store, "replaced.jpg", image(77, "replaced again"))
    store.tree.rename(ROOT_INO, b"renamed.jpg", folders[0], b"has another name.jpg", 5)
    store.tree.remove(ROOT_INO, b"deleted.jpg", 6)
    store.tree.remove(ROOT_INO, b"deleted folder", 6)
    linked = store.tree.lookup(ROOT_INO, b"linked.jpg")
    assert linked is not None
    store.tree.link(linked.ino, folders[1], b"second name.jpg", 7)
    now = tree(store)
    store.close()
    shutil.rmtree(place.path / "copies")
    shutil.copytree(kept, place.path / "copies")
    return Used(place, copied, now)


# The page of the state row: the first that the schema makes behind its own.
STATE_PAGE = 1


def destroy_page(number: int) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        with open(store / "index.db", "r+b") as file:
            file.seek(number * PAGE)
            file.write(random.Random(number).randbytes(PAGE))

    return damage


def numbers_of(store: Store) -> tuple[int, int, int, int]:
    numbers = store.numbers
    return numbers.ino(), numbers.cookie(), numbers.version_id(), numbers.token()


def kill_at(step: int, place: Place, path: Path) -> bool:
    """Restore in a child that is killed before its n-th rename, unlink or fsync; whether it was not."""
    pid = os.fork()
    if pid == 0:
        left = step

        def counting(call: Callable[..., None]) -> Callable[..., None]:
            def counted(*arguments: object, **named: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                call(*arguments, **named)

            return counted

        os.rename, os.unlink, os.fsync = counting(os.rename), counting(os.unlink), counting(os.fsync)
        try:
            restore(place, path)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return not os.WIFSIGNALED(status)


def test_killed_at_any_step(used: Used) -> None:
    """A restoring that is killed anywhere is finished by the next one, which finds as much."""
    expected, _ = used.reopened(_restored(used, used.damaged("expected", _two_pages)))
    step = 1
    while True:
        path = used.damaged("killed", _two_pages)
        ended = kill_at(step, used.place, path)
        restore(used.place, path)
        found, report = used.reopened(path)
        assert (found, report) == (expected, []), step
        kept = list((path / "lost+found").glob("index-*/index.db"))
        assert any(file.read_bytes()[: 4 * PAGE] == _first_pages(used) for file in kept), step
        if ended:
            break
        step += 1
    assert step > 15


def _two_pages(store: Path) -> None:
    destroy_page(5)(store)
    destroy_page(9)(store)


def _first_pages(used: Used) -> bytes:
    return (used.place.path / "index.db").read_bytes()[: 4 * PAGE]


def _restored(used: Used, path: Path) -> Path:
    restore(used.place, path)
    return path


def test_any_page_of_the_index(used: Used) -> None:
    """Whichever page of the index is destroyed: all that the copy held is there as it is now, and of what
    came later at most what was on that page is missing, and said to be."""
    pages = (used.place.path / "index.db").stat().st_size // PAGE
    missing_at_all = 0
    for number in range(pages):
        path = used.damaged("damaged", destroy_page(number))
        restored = restore(used.place, path)
        assert (restored.pages_lost, restored.copy_path is not None) == (1, True), number
        found, report = used.reopened(path)
        assert report == []
        missing = images_in(used.now).keys() - found.keys()
        assert not missing & used.copied.keys() - {"replaced.jpg"}, (number, missing)
        assert missing <= set(restored.lost), (number, missing, restored.lost)
        wrong = {name for name in images_in(found) if name in used.now and found[name] != used.now[name]}
        assert wrong == set(), (number, wrong)
        more = {name for name in found.keys() - used.now.keys() if "restored-" not in name}
        # Without the state row nothing says how new the other pages are: what was deleted may come back.
        assert more <= ({"deleted folder/"} if number == STATE_PAGE else set()), (number, more)
        assert restored.images == len(set(images_in(found)) - {"folder 1/second name.jpg"})
        missing_at_all += bool(missing)
        aside = Path(restored.index_aside or "")
        assert (aside / "index.db").stat().st_size == pages * PAGE
    assert 0 < missing_at_all < pages / 2


def _half(store: Path) -> None:
    os.truncate(store / "index.db", (store / "index.db").stat().st_size // 2)


def _many_pages(seed: int) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        pages = (store / "index.db").stat().st_size // PAGE
        for number in random.Random(seed).sample(range(pages), pages // 4):
            destroy_page(number)(store)

    return damage


@pytest.mark.parametrize("damage", [_half, *map(_many_pages, range(12))])
def test_much_of_the_index(used: Used, damage: Callable[[Path], None]) -> None:
    """With a quarter or half of the index gone no image of the copy is: each is there at least once, as it
    is now or under the name it had, and names, links and folders agree."""
    path = used.damaged("much", damage)
    restored = restore(used.place, path)
    assert restored.pages_lost > 1
    found, report = used.reopened(path)
    assert report == []
    kept = {content for name, content in images_in(used.copied).items() if name in used.now}
    kept |= {used.now["folder 0/has another name.jpg"]}
    kept -= {used.copied["replaced.jpg"]}
    assert kept <= set(found.values())
    assert set(images_in(found).values()) <= set(used.now.values()) | set(used.copied.values())
    store = used.place.open_store(path)
    for ino, links in store.index.execute("SELECT ino, nlink FROM inode WHERE image_id IS NOT NULL"):
        names = store.tree.names(ino)
        assert len(names) == links, ino
        for entry in names:
            inode = store.tree.lookup(entry.parent, entry.name)
            assert inode is not None
            assert inode.ino == ino
    assert store.index.execute("PRAGMA integrity_check") == [("ok",)]
    store.close()


def test_nothing_is_damaged(used: Used) -> None:
    """Restoring an index that is whole changes nothing that can be seen."""
    path = used.damaged("whole", lambda _: None)
    restored = restore(used.place, path)
    assert (restored.lost, restored.older, restored.objects_aside, restored.pages_lost) == ([], [], [], 0)
    assert used.reopened(path) == (used.now, [])


def test_terabyte_of_nothing_at_its_end(used: Used) -> None:
    """An index that was made long is restored, and kept, in the room that is written of it."""

    def damage(store: Path) -> None:
        destroy_page(0)(store)
        os.truncate(store / "index.db", 1 << 40)

    path = used.damaged("long", damage)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, limits[1]))
    try:
        restored = restore(used.place, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert used.reopened(path) == (used.now, [])
    aside = Path(restored.index_aside or "") / "index.db"
    assert aside.stat().st_size == 1 << 40
    assert sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file()) < 64 << 20


def test_nobody_else_may_look_at_what_was_kept(used: Used) -> None:
    """Whatever the umask, the folders and files that a restoring makes are private."""
    path = used.damaged("private", lambda store: (store / "index.db").write_bytes(b"damaged" * PAGE))
    (path / "objects" / "0" / "4000").write_bytes(b"belongs to nobody")
    (path / "objects" / "0" / "4000").chmod(0o600)
    before = os.umask(0)
    try:
        restored = restore(used.place, path)
    finally:
        os.umask(before)
    assert Path(restored.index_aside or "").is_dir()
    assert restored.objects_aside
    assert [found for found in path.rglob("*") if found.stat().st_mode & 0o077] == []


def test_index_deleted(used: Used) -> None:
    """From the copy alone: what it held and is still there comes back; the rest is named or set aside."""
    path = used.damaged("deleted", lambda store: (store / "index.db").unlink())
    for leftover in ("index.db-wal", "index.db-shm"):
        (path / leftover).unlink(missing_ok=True)
    objects = set(objects_of(path))
    restored = restore(used.place, path)
    found, report = used.reopened(path)
    assert report == []
    gone = {"replaced.jpg", "deleted.jpg"}
    assert found == {name: content for name, content in used.copied.items() if name not in gone}
    assert set(restored.lost) == gone
    assert restored.pages_read == 0
    assert len(restored.objects_aside) == AFTER + 1  # and the new content of replaced.jpg
    for name in restored.objects_aside:
        assert Path(name).parent == path / "lost+found" / "objects"
        assert int(Path(name).name) in objects
    assert {int(Path(name).name) for name in restored.objects_aside} | set(objects_of(path)) == objects


@pytest.mark.parametrize("damaged_copy", ["index-1.db", "index-2.db"])
def test_index_and_one_copy_damaged(used: Used, damaged_copy: str) -> None:
    """One copy of two is enough, whichever it is."""

    def damage(store: Path) -> None:
        copy = store / "copies" / damaged_copy
        copy.write_bytes(copy.read_bytes()[: 6 * PAGE] + bytes(PAGE) + copy.read_bytes()[7 * PAGE :])
        (store / "index.db").write_bytes(random.Random(5).randbytes(20 * PAGE))

    path = used.damaged("both", damage)
    restored = restore(used.place, path)
    assert restored.copy_path is not None
    assert not restored.copy_path.endswith(damaged_copy)
    found, _ = used.reopened(path)
    assert found == {name: used.copied[name] for name in used.copied.keys() - {"replaced.jpg", "deleted.jpg"}}


def test_no_copy_but_pages(used: Used) -> None:
    """Without any copy a lost page costs what was on it, and nothing else."""

    def damage(store: Path) -> None:
        shutil.rmtree(store / "copies")
        destroy_page(11)(store)

    path = used.damaged("no copy", damage)
    restored = restore(used.place, path)
    assert restored.copy_path is None
    found, _ = used.reopened(path)
    assert len(images_in(used.now).keys() - found.keys()) < 40
    assert all(used.now[name] == content for name, content in images_in(found).items() if name in used.now)


def test_nothing_to_restore_from(used: Used) -> None:
    """Without index and copies it says what to do, and touches nothing."""

    def damage(store: Path) -> None:
        shutil.rmtree(store / "copies")
        (store / "index.db").write_bytes(b"")

    path = used.damaged("nothing", damage)
    before = sorted(str(file) for file in path.rglob("*") if file.is_file())
    with pytest.raises(CorruptStore, match="from a backup"):
        restore(used.place, path)
    assert sorted(str(file) for file in path.rglob("*") if file.is_file()) == before


def test_no_number_is_used_twice(used: Used) -> None:
    """After a restoring new images get numbers above all that ever were."""
    store = used.place.open_store(used.damaged("whole", lambda _: None))
    before = numbers_of(store)
    store.close()
    for damage in (destroy_page(1), destroy_page(2), lambda path: (path / "index.db").unlink()):
        path = used.damaged("numbers", damage)
        restore(used.place, path)
        store = used.place.open_store(path)
        assert all(new > old for new, old in zip(numbers_of(store), before, strict=True))
        save_file(store, "new", lambda draft: draft.write(0, image(10)))
        store.close()


def test_log_counts(place: Place) -> None:
    """What only the log holds is there again, also where the first page of the index is destroyed."""
    place.open().close()
    store = place.open_store()
    for number in range(20):
        save_file(store, f"{number}.jpg", lambda draft: draft.write(0, image(100)))
    store.sync()
    with store.lock:
        path = place.path.with_name("crashed")
        shutil.copytree(place.path, path)
        expected = tree(store)
    store.close()
    assert (path / "index.db-wal").stat().st_size > 0
    shutil.rmtree(path / "copies")
    (path / "index.db").write_bytes(bytes((path / "index.db").stat().st_size))

    restored = restore(place, path)
    used = Used(place, {}, expected)
    assert used.reopened(path) == (expected, [])
    assert restored.lost == []


def test_displaced_image_comes_back(place: Place) -> None:
    """An image whose replacement did not reach the disk has its name again after a restoring."""
    place.open().close()
    store = place.open_store()
    save_file(store, "photo.jpg", lambda draft: draft.write(0, image(100, "old")))
    store.sync()
    with store.lock:
        before = objects_of(place.path)
        save_file(store, "tmp", lambda draft: draft.write(0, image(200, "new")))
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"photo.jpg", 5)
        path = place.path.with_name("crashed")
        shutil.copytree(place.path, path)
    store.close()
    for version_id, file in objects_of(path).items():
        if version_id not in before:
            file.unlink()
    restore(place, path)
    found, _ = Used(place, {}, {}).reopened(path)
    assert found == {"photo.jpg": image(100, "old")}


def test_restored_store_can_be_changed(used: Used) -> None:
    """Names, links and counts of a restored store agree: its folders can be emptied and removed."""
    path = used.damaged("changed", destroy_page(4))
    restore(used.place, path)
    store = used.place.open_store(path)
    parent = store.tree.lookup(ROOT_INO, b"folder 0")
    assert parent is not None
    for _, name, inode in store.tree.entries(parent.ino, 0, 1000):
        assert [(entry.parent, entry.name) for entry in store.tree.names(inode.ino)] == [(parent.ino, name)]
        store.tree.rename(parent.ino, name, ROOT_INO, name, 9)
    assert not store.tree.entries(parent.ino, 0, 1)
    assert store.tree.remove(ROOT_INO, b"folder 0", 9) is not None
    store.close()
