"""The owner note keeps a second machine out, and a first one that lost the store from writing to it."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from stores import Place, check_store, content_of, digests, image, save_file, tree

from pixstorefs.check.repair import Repair, prepare
from pixstorefs.disk import owner_note
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.lock_file import Ownership
from pixstorefs.disk.owner_note import OwnerNote
from pixstorefs.errors import ReadOnlyStore, StoreInUse
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.store import barrier
from pixstorefs.store.opening import open_unlocked
from pixstorefs.trust import fence


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which nobody knows whom a flock(2) reaches."""
    monkeypatch.setattr(owner_note, "flock_is_true", lambda store: False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited for, without the waiting."""
    waited: list[float] = []
    monkeypatch.setattr(owner_note, "_sleep", waited.append)
    return waited


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder in the place of a store."""
    (tmp_path / "store").mkdir()
    return Folder.at(str(tmp_path / "store"))


def _elsewhere(folder: Folder) -> OwnerNote:
    """A note of an owner on another machine."""
    ours = OwnerNote.of_us(folder)
    return replace(ours, machine="0" * 32, boot="another", host="tower", user="anna")


def _leave(folder: Folder, note: OwnerNote) -> None:
    Path(folder.path, owner_note.OWNER_FILE).write_bytes(note.to_json())


def _take_elsewhere(path: Path) -> None:
    """Leave a note of an owner on another machine in a store."""
    folder = Folder.at(str(path))
    _leave(folder, _elsewhere(folder))


def test_a_store_given_free_has_no_note(folder: Folder) -> None:
    """The note is there for as long as the store is owned, and shows no machine id as it is."""
    owner = Ownership(folder, None)
    note = owner_note.read(folder)
    assert note.pid == os.getpid()
    assert Path("/etc/machine-id").read_text().strip() not in Path(folder.path, "owner").read_text()
    owner.release()
    assert not (Path(folder.path) / "owner").exists()


@pytest.mark.usefixtures("network")
def test_what_another_mount_wrote_is_waited_for(folder: Folder, pauses: list[float]) -> None:
    """A network file system may show an older index for a while; what we wrote ourselves it shows at once."""
    for _ in range(2):
        Ownership(folder, None).release()
    assert not pauses
    [was] = Path(folder.path).glob("owner-was-*")
    was.rename(was.with_name("owner-was-somebody"))
    owner = Ownership(folder, None)
    assert sum(pauses) >= 20
    owner.release()
    pauses.clear()
    Ownership(folder, None).release()
    assert not pauses
    assert len(os.listdir(folder.path)) == 2


@pytest.mark.usefixtures("network")
def test_an_owner_on_another_machine(folder: Folder, pauses: list[float]) -> None:
    """It is refused with who and since when, until a person says that it is gone."""
    _leave(folder, _elsewhere(folder))
    for _ in range(2):
        with pytest.raises(StoreInUse, match=r"in use by anna on tower .* --break-lock"):
            Ownership(folder, None)
    assert owner_note.read(folder).host == "tower"
    assert not pauses
    owner = Ownership(folder, None, break_lock=True)
    # Longer than an owner that lives may write without looking.
    assert sum(pauses) >= 2 * owner_note.LOOK_AGAIN_S
    owner.release()
    # The fence stands until the store itself was opened.
    assert "fence" in os.listdir(folder.path)


@pytest.mark.usefixtures("network")
def test_an_owner_that_died_on_this_machine(folder: Folder, pauses: list[float]) -> None:
    """The kernel knows that its process is gone, or that another one has its number: nobody is asked."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    ours = OwnerNote.of_us(folder)
    for note in (replace(ours, pid=process.pid), replace(ours, started=ours.started - 1)):
        _leave(folder, note)
        Ownership(folder, None).release()
    assert not pauses


@pytest.mark.usefixtures("network")
def test_an_owner_from_before_the_last_boot(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone, unless a clone of this machine has its id: then there is a sign of life."""
    note = replace(OwnerNote.of_us(folder), boot="another", host="clone")
    _leave(folder, note)
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            _leave(folder, replace(note, alive_s=note.alive_s + 10))

    monkeypatch.setattr(owner_note, "_sleep", pause)
    with pytest.raises(StoreInUse, match="on clone"):
        Ownership(folder, None)
    Ownership(folder, None).release()
    assert sum(waited) >= 2 * owner_note.HEARTBEAT_S


@pytest.mark.usefixtures("network", "pauses")
@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 9000, b'{"token": 1}', b"\xff" * 99])
def test_a_damaged_note(folder: Folder, content: bytes) -> None:
    """Somebody may be writing it: only a person can say that nobody is."""
    Path(folder.path, "owner").write_bytes(content)
    with pytest.raises(StoreInUse, match="one died while it did so"):
        Ownership(folder, None)
    Ownership(folder, None, break_lock=True).release()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 9000])
def test_a_damaged_note_where_the_kernel_tells(folder: Folder, content: bytes) -> None:
    """On a disk of this machine the lock is enough, and damage locks nobody out."""
    Path(folder.path, "owner").write_bytes(content)
    Ownership(folder, None).release()


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_something_odd_in_place_of_the_note(folder: Folder, put: Callable[[str], None]) -> None:
    """On a disk of this machine it is left as it is, and the lock is enough."""
    note = os.path.join(folder.path, "owner")
    for before in (True, False):
        if before:
            put(note)
        owner = Ownership(folder, None)
        if not before:
            os.unlink(note)
            put(note)
        owner.require(now=True)
        owner.release()
        assert os.path.lexists(note)
        shutil.rmtree(note) if os.path.isdir(note) and not os.path.islink(note) else os.unlink(note)


@pytest.mark.usefixtures("network", "pauses")
def test_an_owner_that_lost_the_store_writes_nothing_more(place: Place) -> None:
    """It says who has it, and neither a change nor its end touches what is the other one's by now."""
    place.open().close()
    store = place.open_store()
    save_file(store, "first", lambda draft: draft.write(0, image(1000)))
    store.sync()
    note = Path(place.path, "owner")
    other = replace(OwnerNote.from_json(note.read_bytes()), token="f" * 32, host="tower")
    note.write_bytes(other.to_json())
    before = digests(place.path)
    store._ownership._looked_s -= owner_note.LOOK_AGAIN_S  # type: ignore[union-attr]
    with pytest.raises(ReadOnlyStore, match=r"taken over by .* on tower"):
        save_file(store, "second", lambda draft: draft.write(0, image(1000)))
    with pytest.raises(ReadOnlyStore, match="taken over"):
        store.tree.remove(ROOT_INO, b"first", 3)
    with pytest.raises(ReadOnlyStore, match="taken over"):
        store.close()
    after = digests(place.path)
    # An object that a draft began is nobody's.
    assert {name: digest for name, digest in after.items() if name in before} == before
    note.unlink()
    with closing(place.open_store()) as again:
        assert set(tree(again)) == {"first"}


@pytest.mark.usefixtures("network", "pauses")
def test_an_idle_owner_that_lost_the_store(place: Place) -> None:
    """With nothing to save it still ends with an error, and leaves lock and note to the other one."""
    place.open().close()
    store = place.open_store()
    note = Path(place.path, "owner")
    note.write_bytes(replace(OwnerNote.from_json(note.read_bytes()), token="f" * 32).to_json())
    before = digests(place.path)
    with pytest.raises(ReadOnlyStore, match="taken over"):
        store.close()
    assert digests(place.path) == before


def test_a_note_that_somebody_removed_comes_back(place: Place) -> None:
    """As long as nobody else took the store it is still ours."""
    place.open().close()
    with closing(place.open_store()) as store:
        Path(place.path, "owner").unlink()
        store._ownership.require(now=True)  # type: ignore[union-attr]
        assert Path(place.path, "owner").exists()
        save_file(store, "image", lambda draft: draft.write(0, image(1000)))


def test_a_lock_file_that_was_replaced_lets_nobody_in(place: Place) -> None:
    """A sync tool put another file in its place, and the kernel locks that one: the note tells."""
    place.open().close()
    with closing(place.open_store()) as store:
        (place.path / "lock").unlink()
        (place.path / "lock").touch()
        with pytest.raises(StoreInUse, match=f"process {os.getpid()}"):
            place.open_store()
        save_file(store, "image", lambda draft: draft.write(0, image(1000)))


def test_a_copy_of_a_store_in_use_opens(place: Place) -> None:
    """It has the note of the original, which owns another folder."""
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "image", lambda draft: draft.write(0, image(1000)))
        store.sync()
        copy = place.path.with_name("copy")
        shutil.copytree(place.path, copy)
        with closing(place.open_store(copy)) as opened:
            assert set(tree(opened)) == {"image"}


def test_a_full_disk_has_no_note(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is enough on a disk of this machine: a full one can still be emptied."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner_note, "write_fully", refuse)
    owner = Ownership(folder, None)
    owner.require(now=True)
    owner.release()
    assert os.listdir(folder.path) == ["lock"]
    monkeypatch.undo()
    owner = Ownership(folder, None)
    (Path(folder.path) / "owner").unlink()
    monkeypatch.setattr(owner_note, "write_fully", refuse)
    owner.require(now=True)
    owner.release()


@pytest.mark.usefixtures("network", "pauses")
def test_what_a_lost_owner_had_under_way_reaches_nothing(place: Place) -> None:
    """The network may bring its writes when another one has the store: they go to files that are gone."""
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "first", lambda draft: draft.write(0, image(1000)))
        store.sync()
        crashed = place.path.with_name("crashed")
        shutil.copytree(place.path, crashed)
    _take_elsewhere(crashed)
    names = ("index.db", "index.db-wal", "barrier", "journal")
    files = [os.open(crashed / name, os.O_RDWR) for name in names]
    secret = secret_from_keyfile(place.keyfile)
    with pytest.raises(StoreInUse):
        open_unlocked(str(crashed), secret)
    with closing(open_unlocked(str(crashed), secret, break_lock=True)) as store:
        for file in files:
            os.pwrite(file, b"late" * 4096, 0)
            os.close(file)
        save_file(store, "second", lambda draft: draft.write(0, image(1000)))
        assert set(tree(store)) == {"first", "second"}
    assert not (crashed / "fence").exists()
    assert check_store(place, crashed) == []


@pytest.mark.usefixtures("network", "pauses")
def test_a_breaking_that_was_interrupted_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence stands until the store was opened, whoever opens it, and with or without a word."""
    place.open().close()
    _take_elsewhere(place.path)
    before = (place.path / "index.db").stat().st_ino
    secret = secret_from_keyfile(place.keyfile)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(fence, "copy_file", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            open_unlocked(str(place.path), secret, break_lock=True)
    assert (place.path / "index.db").stat().st_ino == before
    open_unlocked(str(place.path), secret).close()
    assert (place.path / "index.db").stat().st_ino != before
    assert not (place.path / "fence").exists()


@pytest.mark.usefixtures("network", "pauses")
def test_what_a_lost_owner_had_saved_is_brought_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What went to files that are gone is set aside with its keys, told, and saved anew by a repair."""
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    place.open().close()
    store = place.open_store()
    save_file(store, "durable", lambda draft: draft.write(0, image(1000)))
    store.sync()
    # Another machine breaks the lock: the fence, and its note.
    for name in ("index.db", "index.db-wal", "barrier", "journal"):
        shutil.copy(place.path / name, place.path / f"{name}.new")
        (place.path / f"{name}.new").rename(place.path / name)
    note = Path(place.path, "owner")
    ours = OwnerNote.from_json(note.read_bytes())
    save_file(store, "late", lambda draft: draft.write(0, image(300_000, "late")))
    note.write_bytes(replace(ours, token="f" * 32, machine="").to_json())
    with pytest.raises(ReadOnlyStore, match="taken over"):
        store.close()
    note.unlink()
    (place.path / "fence").touch()

    secret = secret_from_keyfile(place.keyfile)
    with closing(place.open_store()) as other:
        assert set(tree(other)) == {"durable"}
        assert any("check --repair brings it back" in line for line in other.report)
        save_file(other, "later", lambda draft: draft.write(0, image(500)))
    found = check_store(place, place.path)
    assert "owner-aside" in {finding.kind for finding in found}
    done = prepare(str(place.path), secret)
    with closing(place.open_store()) as other:
        done = Repair(other).run(found, done)
        assert any("that an owner saved when it lost the store is lost+found/" in line for line in done)
        assert set(tree(other)) == {"durable", "later"}
        lost_and_found = other.index.lookup(ROOT_INO, b"lost+found")
        assert lost_and_found is not None
        [late] = [
            inode
            for _, name, inode in other.tree.entries(lost_and_found.ino, 0, 100)
            if name.endswith(b"-late")
        ]
        assert content_of(other, late) == image(300_000, "late")
    assert check_store(place, place.path) == []
    # Nothing is brought back twice.
    with closing(place.open_store()) as other:
        assert Repair(other).run([], []) == []


def test_what_is_left_of_a_lost_owner_is_damaged(place: Place) -> None:
    """A repair says so, keeps it for a person, and does not promise to bring it back again."""
    place.open().close()
    aside = place.path / "lost+found" / "owner-20260101T000000Z"
    aside.mkdir(parents=True)
    (aside / "index.db").write_bytes(b"damaged" * 4096)
    assert [finding.kind for finding in check_store(place, place.path)] == ["owner-aside"]
    with closing(place.open_store()) as store:
        [told, *_] = Repair(store).run([], [])
        assert f"what is in {aside} cannot be brought back" in told
    assert check_store(place, place.path) == []
    kept = place.path / "lost+found" / "index-20260101T000000Z" / "index.db"
    assert kept.read_bytes() == b"damaged" * 4096
