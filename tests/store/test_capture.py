"""An index that another process has open is read from a copy of its files, and they are of one moment."""

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stores import Place, digests, image, replace_file, save_file, writing
from support import cannot_run
from test_copies import key_of, opened

from pixstorefs.check.check import Check, Progress
from pixstorefs.check.view import StoreView
from pixstorefs.disk import temporary as temporary_folders
from pixstorefs.disk.files import copy_content
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.hold import held, unless_held
from pixstorefs.errors import CorruptStore, NoSpace
from pixstorefs.index import capture
from pixstorefs.index.database import LOG_HOLD_FILE, log_size_bytes
from pixstorefs.index.rows import ROOT_INO, Index
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.store.store import Store

_VALUE = b"user.value"
_TIMEOUT_S = 20.0


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """An open store with a few images, of which no copies are made behind the test's back."""
    place.open().close()
    with opened(place) as store:
        for number in range(20):
            save_file(store, f"photo-{number}", lambda draft: draft.write(0, image(500)))
        store.sync()
        yield store


def put(store: Store, value: int) -> None:
    """Change rows that stand on several pages."""
    store.tree.put_xattr(ROOT_INO, _VALUE, b"%d" % value * 9000, value)


def value_of(index: Index) -> int:
    """What `put` wrote last; a mix of two fails."""
    [(content,)] = index.execute("SELECT value FROM xattr WHERE name=?", (_VALUE,))
    digit = bytes(content)[:1]
    assert bytes(content) == digit * 9000
    return int(digit)


def captured(place: Place) -> Index:
    """The index as another process reads it."""
    key, store_id = key_of(place)
    index, _ = capture.open_captured(str(place.path / "index.db"), key, store_id)
    return index


def test_what_is_in_the_log_alone_is_seen(place: Place, store: Store) -> None:
    """A copy holds what was committed a moment ago, is sound, and leaves the store as it was."""
    put(store, 1)
    assert log_size_bytes(store.index.path) > 0
    before = digests(place.path)
    with closing(captured(place)) as index:
        assert value_of(index) == 1
        assert index.execute("PRAGMA integrity_check") == [("ok",)]
        put(store, 2)
        assert value_of(index) == 1
    unchanged = {path: digest for path, digest in before.items() if not path.endswith(("-wal", "hold-log"))}
    assert unchanged.items() <= digests(place.path).items()


def test_copy_has_no_name_that_could_be_left_behind(
    place: Place, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is gone while the copy is being read: no end of the process leaves anything."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    put(store, 1)
    with closing(captured(place)) as index:
        assert list(temporary.iterdir()) == []
        assert value_of(index) == 1
        assert any(str(temporary) in os.readlink(link) for link in Path("/proc/self/fd").iterdir())


def test_copy_is_removed_when_it_cannot_be_opened(
    place: Place, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a damaged index nothing stays in the temporary folder either, and the message names the store's."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    store.close()
    path = place.path / "index.db"
    path.write_bytes(os.urandom(path.stat().st_size))
    with pytest.raises(CorruptStore, match=str(path)):
        captured(place)
    assert list(temporary.iterdir()) == []


def test_no_room_for_a_copy(place: Place, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how much is needed, and how to name a disk that has it."""
    monkeypatch.setattr(temporary_folders, "_FOLDERS", ())
    monkeypatch.setenv("TMPDIR", "/proc")
    with pytest.raises(NoSpace, match=r"MB.*TMPDIR="):
        captured(place)


def test_owner_only_appends_while_the_log_is_held(store: Store) -> None:
    """Neither a barrier nor a burst changes the database under a reader; the next barrier goes on."""
    path = Path(store.index.path)
    with held(store.folder, LOG_HOLD_FILE):
        before = path.read_bytes()
        for number in range(100):
            store.tree.put_xattr(ROOT_INO, b"user.large", os.urandom(60_000), number)
        store.sync()
        assert store.index.checkpoint_is_due()
        assert path.read_bytes() == before
    put(store, 3)
    store.sync()
    assert path.read_bytes() != before
    put(store, 4)
    assert not store.index.checkpoint_is_due()


def test_close_leaves_the_log_to_a_reader(place: Place, store: Store) -> None:
    """A close does not wait for ever, and what is in the log is there at the next opening."""
    put(store, 4)
    with held(store.folder, LOG_HOLD_FILE):
        began_s = time.monotonic()
        store.close()
        assert time.monotonic() - began_s < _TIMEOUT_S
        assert log_size_bytes(store.index.path) > 0
    with opened(place) as again:
        assert value_of(again.index) == 4


@pytest.mark.parametrize("place_of_cut", [0, 32, 5000, 20_000])
def test_log_that_begins_anew_under_the_copy(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch, place_of_cut: int
) -> None:
    """Old frames in front of new ones never show pages that the database had replaced already."""
    for number in range(1, 5):
        put(store, number)
    with store.index.log_unread() as unread:
        assert unread
        assert store.index.checkpoint()
    logs = 0

    def interrupted(source: int, target: int, size_bytes: int) -> None:
        nonlocal logs
        if os.readlink(f"/proc/self/fd/{source}").endswith("-wal"):
            logs += 1
            if logs == 1:
                copy_content(source, target, place_of_cut)
                with store.index.log_unread() as unread:
                    assert not unread
                put(store, 5)
                size_bytes -= place_of_cut
        copy_content(source, target, size_bytes)

    monkeypatch.setattr(capture, "copy_content", interrupted)
    with closing(captured(place)) as index:
        assert value_of(index) == 5
        assert index.execute("PRAGMA integrity_check") == [("ok",)]
    assert logs == 2


_WRITER = """
import sys
from pathlib import Path
from stores import Place
from pixstorefs.index.rows import ROOT_INO
place = Place.__new__(Place)
place.path, place.keyfile = map(Path, sys.argv[1:])
store = place.open_store()
number = 0
while True:
    for name in (b"user.1", b"user.2"):
        store.tree.put_xattr(ROOT_INO, name, b"%d " % number * 4000, number)
    if number % 20 == 0:
        with store.index.log_unread() as unread:
            if unread and store.index.checkpoint() and number % 60 == 0:
                with store.lock:
                    store.index.empty_log(checkpointed=True)
    if number == 0:
        print("ready", flush=True)
    number += 1
"""


def test_copies_beside_a_process_that_writes_and_empties_the_log(place: Place) -> None:
    """Every copy is sound and of one moment, and a later one is never older."""
    place.open().close()
    seen = 0
    with writing(place, _WRITER):
        for _ in range(60):
            with closing(captured(place)) as index:
                assert index.execute("PRAGMA integrity_check") == [("ok",)]
                rows = index.execute("SELECT CAST(value AS TEXT) FROM xattr ORDER BY name")
            first, second = (int(content.split()[0]) for (content,) in rows)
            assert first - second in (0, 1)
            assert second >= seen
            seen = second


def test_view_looks_again(place: Place, store: Store) -> None:
    """What was replaced or deleted since the copy was made is not called damaged; what is damaged is."""
    lost = place.objects()[4]
    with StoreView(str(place.path), secret_from_keyfile(place.keyfile)) as view:
        copied = view.index.state().next_token
        replace_file(store, "photo-1", image(700, "newer"))
        store.tree.remove(ROOT_INO, b"photo-2", 5)
        store.sync()
        lost.unlink()
        told = [found for found in Check(view, Progress()).run() if found.reaction.value]
        assert [(found.kind, found.version_id) for found in told] == [("image-damaged", 4)]
        assert view.index.state().next_token == copied


def test_asking_when_no_descriptor_is_left(tmp_path: Path) -> None:
    """Who cannot even look whether somebody holds the log does not take it for free."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = Folder.at(str(tmp_path))
    with held(folder, LOG_HOLD_FILE):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            with unless_held(folder, LOG_HOLD_FILE) as free:
                assert not free
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with unless_held(folder, LOG_HOLD_FILE) as free:
        assert free


def test_nothing_of_a_store_is_mapped_to_be_used(place: Place, store: Store) -> None:
    """The index of the log is on the heap: no file of the store is mapped, but pages that nobody touches."""
    put(store, 1)
    store.sync()
    with open("/proc/self/maps") as maps:
        mapped = [line.split() for line in maps if str(place.path) in line]
    # Locked in the page cache, see `page_lock`.
    assert all(fields[5].endswith("index.db-wal") and fields[1] == "r--s" for fields in mapped)
    assert not (place.path / "index.db-shm").exists()


def test_disk_without_room_for_the_hold(tmp_path: Path) -> None:
    """Neither a reader nor the owner can make the file there: both go on without it."""
    if os.geteuid() != 0:
        cannot_run("a file system of the test's own needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", disk], check=True)
    try:
        (disk / "only").touch()
        with pytest.raises(OSError, match="No space left"):
            (disk / "another").touch()
        with closing(Folder.at(str(disk))) as folder:
            with held(folder, LOG_HOLD_FILE):
                pass
            with unless_held(folder, LOG_HOLD_FILE) as free:
                assert free
    finally:
        subprocess.run(["umount", disk], check=True)
