"""Copies of the index, the header and the key slots: made when they should be, and whole whatever happens."""

import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
from stores import Place, image, replace_file, save_file, tree
from support import Mount, cannot_run

from pixstorefs.disk.lock_file import Ownership
from pixstorefs.disk.page_lock import PageLock
from pixstorefs.errors import CorruptStore, NewerFormat, NoSpace, WrongKey
from pixstorefs.index import copy as index_copy
from pixstorefs.index import database as index_database
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.store.store import Store
from pixstorefs.trust.copies import Schedule, good_copies
from pixstorefs.trust.header import INDEX_PURPOSE, is_store, keys_json, read_header

NEVER_S = 1e6
_MANY = 2500  # images, for an index of a few steps
TIMEOUT_S = 20.0


def key_of(place: Place) -> tuple[bytes, bytes]:
    """Index key and store id."""
    header = read_header(str(place.path))
    slots = keys_json(str(place.path))
    master_key = keyring.unlock(slots, secret_from_keyfile(place.keyfile), header.raw)
    return keyring.derive(master_key, header.store_id, INDEX_PURPOSE), header.store_id


@contextmanager
def opened(place: Place, **schedule: float) -> Iterator[Store]:
    """A store that makes copies by its own schedule; never, unless told."""
    key, store_id = key_of(place)
    wanted = Schedule(**{"first_after_s": NEVER_S, "every_s": NEVER_S, "every_tokens": 10**9} | schedule)
    path = str(place.path)
    store = Store(path, store_id, key, ownership=Ownership(path, None), padding=True, copies=wanted)
    try:
        yield store
    finally:
        store.close()


def tokens(place: Place) -> list[int]:
    """What the good copies hold, newest first."""
    return [copy.state.durable_token for copy in good_copies(str(place.path), *key_of(place))]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def add(store: Store, name: str) -> None:
    save_file(store, name, lambda draft: draft.write(0, image(100, name)))


def files_of(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place.path / "copies").glob("index*")}


@pytest.fixture
def fresh(place: Place) -> Place:
    """A store that was closed once: it has one copy."""
    place.open().close()
    return place


# When copies are made


def test_every_clean_close_with_changes_makes_one(fresh: Place) -> None:
    """The copies take turns; a close without changes makes none."""
    assert list(files_of(fresh)) == ["index-1.db"]
    before = files_of(fresh)
    for number in range(4):
        with opened(fresh) as store:
            add(store, str(number))
        after = files_of(fresh)
        assert set(after) == {"index-1.db", "index-2.db"}
        turn = {"index-1.db": number % 2 == 1, "index-2.db": number % 2 == 0}
        assert {name: after[name] != before.get(name) for name in after} == turn
        before = after
        with opened(fresh):
            pass
        assert files_of(fresh) == before
    assert tokens(fresh) == [4, 3]


def test_attributes_count_as_changes(fresh: Place) -> None:
    """A change that is no save, too, is in the copy made at the close."""
    with opened(fresh) as store:
        store.tree.put_xattr(ROOT_INO, b"user.note", b"1", 1)
    assert set(files_of(fresh)) == {"index-1.db", "index-2.db"}


def test_store_without_a_copy_gets_one_soon(fresh: Place) -> None:
    """The first changes of a store that has no copy are copied without waiting for a close."""
    shutil.rmtree(fresh.path / "copies")
    with opened(fresh, first_after_s=0.2) as store:
        add(store, "a")
        store.sync()
        wait_for(lambda: tokens(fresh) == [1])


@pytest.mark.parametrize("schedule", [{"every_s": 0.3}, {"every_tokens": 3}])
def test_copies_of_a_long_mount(fresh: Place, schedule: dict[str, float]) -> None:
    """By time and by number of saves, again and again."""
    with opened(fresh, **schedule) as store:
        for number in range(9):
            add(store, str(number))
            store.sync()
            if number % 3 == 2:
                wait_for(lambda expected=number + 1: tokens(fresh)[0] == expected)


def test_nothing_changed_nothing_copied(fresh: Place) -> None:
    """However often a copy is due: without a change there is none."""
    before = files_of(fresh)
    with opened(fresh, every_s=0.01) as store:
        store.sync()
        time.sleep(0.3)
        assert files_of(fresh) == before


def test_read_only_opening_makes_no_copy(fresh: Place) -> None:
    """Who asked for nothing to be changed gets no copies and no repairs."""
    shutil.rmtree(fresh.path / "copies")
    fresh.open(read_only=True).close()
    assert not (fresh.path / "copies").exists()


# What a copy is


def test_copy_is_encrypted_and_whole(fresh: Place) -> None:
    """A copy opens with the index key alone, holds all rows, and no name or key in the clear."""
    with opened(fresh) as store:
        inodes = [
            save_file(store, f"secret name {n}", lambda draft: draft.write(0, image(9))) for n in range(300)
        ]
        keys = [store.version(inode).key for inode in inodes]
        rows = store.index.execute("SELECT * FROM version ORDER BY version_id")
    key, store_id = key_of(fresh)
    newest = good_copies(str(fresh.path), key, store_id)[0]
    content = Path(newest.path).read_bytes()
    assert b"secret name" not in content
    assert not any(key in content for key in keys)
    assert b"SQLite format" not in content
    with pytest.raises(CorruptStore):
        index_copy.state_of(newest.path, bytes(32), store_id)
    copy = index_copy.Index(newest.path, key, store_id, read_only=True)
    assert copy.execute("SELECT * FROM version ORDER BY version_id") == rows
    assert copy.state().clean
    copy.close()
    with pytest.raises(apsw.NotADBError):
        apsw.Connection(newest.path).execute("SELECT * FROM version")


def test_writers_go_on_while_a_copy_is_made(fresh: Place) -> None:
    """Saves and barriers in the middle of a copy neither wait for it, nor are in it, nor start it anew."""
    with opened(fresh) as store:
        for number in range(_MANY):
            add(store, f"before {number}")
        key, store_id = key_of(fresh)
        steps = 0

        def change() -> None:
            nonlocal steps
            steps += 1
            add(store, f"meanwhile {steps}")
            replace_file(store, "before 7", image(50, steps))
            store.sync()

        target = str(fresh.path / "taken")
        with store.index.log_at_rest(wait=True):
            index_copy.take_copy(store.index.path, key, target, change)
        pages = os.path.getsize(target) // 4096
        assert 2 <= steps <= pages // 64 + 1
        index_copy.verify(target, key, store_id)
        copy = index_copy.Index(target, key, store_id, read_only=True)
        assert copy.execute("SELECT count(*) FROM entry") == [(_MANY,)]
        copy.close()
        os.unlink(target)


def test_log_is_left_alone_under_a_copy(fresh: Place) -> None:
    """A barrier during a copy leaves the log alone instead of waiting; behind the next it begins anew."""
    _require_locking()
    with opened(fresh) as store:
        log = fresh.path / "index.db-wal"
        with store.index.log_at_rest(wait=True):
            for _ in range(100):
                store.tree.put_xattr(ROOT_INO, b"user.large", os.urandom(60_000), 1)
            assert store.index.checkpoint_is_due()
            began_s = time.monotonic()
            store.sync()
            assert time.monotonic() - began_s < 5
            store.tree.put_xattr(ROOT_INO, b"user.small", b"value", 2)
            assert store.index.checkpoint_is_due()  # it went behind all of that, not to the beginning
            size_bytes = log.stat().st_size
            beginning = log.read_bytes()[:4096]
        store.sync()
        store.tree.put_xattr(ROOT_INO, b"user.small", b"another", 3)
        assert log.read_bytes()[:4096] != beginning
        assert log.stat().st_size == size_bytes
        assert _is_cached_for_good(log)


def _require_locking() -> None:
    """Debian lets everybody lock 8 MB; a container may not."""
    lock = PageLock()
    with tempfile.TemporaryFile() as file:
        file.truncate(7 << 20)
        if not lock.hold(file.fileno(), 7 << 20):
            cannot_run("no memory may be locked here (RLIMIT_MEMLOCK)")
    lock.release()


def _is_cached_for_good(log: Path) -> bool:
    """Whether the page cache has every page of a synced file that it was told to forget."""
    descriptor = os.open(log, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        pages = range(0, log.stat().st_size, mmap.PAGESIZE)
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) == 1 for at in pages)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_log_has_its_blocks_ahead(fresh: Place) -> None:
    """And keeps them in memory, whatever the page cache forgets: overwriting a part of a page reads none."""
    _require_locking()
    with opened(fresh) as store:
        log = fresh.path / "index.db-wal"
        blocks = log.stat().st_blocks
        assert log.stat().st_size == 8 << 20 <= blocks * 512
        assert _is_cached_for_good(log)
        add(store, "new")
        assert log.stat().st_blocks == blocks
    assert log.stat().st_size == 0


def test_long_log_is_given_back(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a burst of changes made of the log does not stay on the disk."""
    monkeypatch.setattr(index_database, "_LOG_KEPT_BYTES", 1 << 20)
    with opened(fresh) as store:
        log = fresh.path / "index.db-wal"
        while log.stat().st_size < 5 << 20:
            store.tree.put_xattr(ROOT_INO, b"user.large", os.urandom(60_000), 1)
        store.sync()
        assert log.stat().st_size == 1 << 20


# Damage and death


@pytest.mark.parametrize("name", ["index-1.db", "index-2.db"])
def test_damaged_copy_is_the_one_replaced(fresh: Place, name: str) -> None:
    """Of a good and a damaged copy the damaged one is replaced, whichever is older."""
    with opened(fresh) as store:
        add(store, "a")
    other = {"index-1.db": "index-2.db", "index-2.db": "index-1.db"}[name]
    (fresh.path / "copies" / name).write_bytes(b"damaged" * 1000)
    before = files_of(fresh)
    with opened(fresh) as store:
        add(store, "b")
    assert files_of(fresh)[other] == before[other]
    assert tokens(fresh)[0] == 2


def test_damaged_index_does_not_reach_the_copies(fresh: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A page of the index that does not open any more is told, and the good copies stay."""
    with opened(fresh) as store:
        for number in range(500):
            add(store, str(number))
    good = tokens(fresh)
    with opened(fresh) as store, (fresh.path / "index.db").open("r+b") as file:
        add(store, "later")
        store.sync()
        file.seek(15 * 4096)
        file.write(os.urandom(4096))
        file.flush()
        store._copies._make()
        assert "no copy of the index could be made" in caplog.text
        assert "is damaged" in caplog.text
        assert tokens(fresh) == good
    assert tokens(fresh) == good


_COPY_FOREVER = """
import sys
from test_copies import add, key_of, opened
from stores import Place
place = Place.__new__(Place)
place.path, place.keyfile = map(__import__("pathlib").Path, sys.argv[1:])
with opened(place) as store:
    number = 0
    while True:
        add(store, f"{store.numbers.ino()}")
        store.sync()
        store._copies._make()
        print(flush=True)
"""


def test_killed_while_copying(fresh: Place) -> None:
    """kill -9 at random moments of a process that makes copies all the time: a good one is always there."""
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    newest = 0
    for life in range(15):
        process = subprocess.Popen(
            [sys.executable, "-c", _COPY_FOREVER, fresh.path, fresh.keyfile],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(life * 0.0013)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        good = tokens(fresh)
        assert len(good) == 2
        assert good[0] > newest
        newest = good[0]
    with opened(fresh) as store:
        add(store, "after")
    assert set(files_of(fresh)) == {"index-1.db", "index-2.db"}


@pytest.mark.parametrize("room_bytes", [0, 30_000])
def test_full_disk(tmp_path: Path, room_bytes: int, caplog: pytest.LogCaptureFixture) -> None:
    """On a full disk there is a line in the log, no new copy and nothing left behind; the close succeeds."""
    if os.geteuid() != 0:
        cannot_run("mounting a small file system of our own needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        place = Place(disk)
        place.open().close()
        before = files_of(place)
        with opened(place) as store:
            add(store, "a")
            store.sync()
            expected = tree(store)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    file.truncate(max(0, file.tell() - room_bytes))
            store._copies._make()
            assert files_of(place) == before
            assert "no copy of the index could be made" in caplog.text
            with store.index.log_at_rest(wait=True), pytest.raises((NoSpace, OSError)) as failure:
                # Without asking first whether there is room.
                index_copy.take_copy(store.index.path, key_of(place)[0], f"{disk}/taken", lambda: None)
            assert failure.value.errno == errno.ENOSPC
            assert not (disk / "taken").exists()
        assert tokens(place)
        assert "index.new" not in files_of(place)
        filler.unlink()
        with opened(place) as store:
            assert tree(store) == expected
            add(store, "b")
        assert len(tokens(place)) == 2
    finally:
        subprocess.run(["umount", disk], check=True)


# Header and key slots


def _missing(path: Path) -> None:
    path.unlink()


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [_missing, _zeros, _cut])
@pytest.mark.parametrize("names", [("store.json",), ("keys.json",), ("store.json", "keys.json")])
def test_mount_puts_header_and_keys_back(
    mounted: Mount, names: tuple[str, ...], damage: Callable[[Path], None]
) -> None:
    """Whatever happened to the first ones, the mount works, says so, and they are as they were."""
    (mounted.mountpoint / "photo.jpg").write_bytes(image(1000))
    mounted.unmount()
    originals = {name: (mounted.store / name).read_bytes() for name in names}
    for name in names:
        damage(mounted.store / name)
        mounted.expect_log(f"{name} was missing or damaged")
    mounted.mount()
    assert (mounted.mountpoint / "photo.jpg").read_bytes() == image(1000)
    assert {name: (mounted.store / name).read_bytes() for name in names} == originals
    for name in names:
        assert f"{name} was missing or damaged" in mounted.log_text()


@pytest.mark.parametrize("name", ["store.json", "keys.json"])
def test_lost_copy_of_header_or_keys_comes_back(fresh: Place, name: str) -> None:
    """A writable opening makes the copies whole, too; a read-only one leaves everything alone."""
    copy = fresh.path / "copies" / name
    for damage in (_missing, _zeros):
        damage(copy)
        fresh.open(read_only=True).close()
        assert not copy.exists() or not any(copy.read_bytes())
        fresh.open().close()
        assert copy.read_bytes() == (fresh.path / name).read_bytes()


def test_read_only_opening_uses_the_copy(fresh: Place) -> None:
    """Without the first header a read-only opening works, and puts nothing back."""
    (fresh.path / "store.json").unlink()
    assert is_store(str(fresh.path))
    fresh.open(read_only=True).close()
    assert not (fresh.path / "store.json").exists()


def test_contradicting_header_is_not_overruled(fresh: Place) -> None:
    """A first header that parses counts, even if it opens nothing; the message says which file differs."""
    path = fresh.path / "store.json"
    original = path.read_bytes()
    path.write_bytes(original.replace(b'"padding": "padme"', b'"padding": "none" '))
    with pytest.raises(WrongKey, match=r"store.json .* differs from its copy"):
        fresh.open()
    path.unlink()
    fresh.open().close()
    assert path.read_bytes() == original


def test_damaged_slot_is_told_with_its_copy(fresh: Place) -> None:
    """Where the secret fits a slot whose key is damaged, the message names the copy; moved away, it opens."""
    path = fresh.path / "keys.json"
    original = path.read_bytes()
    (slot,) = json.loads(original)["slots"]
    changed = slot["wrapped"].translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    path.write_bytes(original.replace(slot["wrapped"].encode(), changed.encode()))
    with pytest.raises(CorruptStore, match=r"is damaged.*keys.json .* differs from its copy"):
        fresh.open()
    path.unlink()
    fresh.open().close()
    assert path.read_bytes() == original


def test_newer_header_is_not_overruled(fresh: Place) -> None:
    """A header of a later format is no damaged one: its copy is not used."""
    path = fresh.path / "store.json"
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(NewerFormat):
        fresh.open()


# Through the mount


def test_umount_makes_a_copy_of_everything(mounted: Mount) -> None:
    """After umount the newest copy holds every image of the mount."""
    for number in range(5):
        (mounted.mountpoint / f"{number}.jpg").write_bytes(image(1000, number))
    mounted.unmount()
    place = Place.__new__(Place)
    place.path = mounted.store
    [place.keyfile] = Path(mounted.env["XDG_DATA_HOME"]).rglob("*.key")
    key, store_id = key_of(place)
    newest = good_copies(str(place.path), key, store_id)[0]
    copy = index_copy.Index(newest.path, key, store_id, read_only=True)
    names = {name for (name,) in copy.execute("SELECT name FROM entry")}
    copy.close()
    assert names == {b"%d.jpg" % number for number in range(5)}
