"""What somebody put into a store leads no command out of it, and no number in it stops one."""

import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from stores import (
    Place,
    content_of,
    digests,
    image,
    objects_of,
    replace_file,
    save_file,
    take_snapshot,
    tree,
)

from pixstorefs.check.check import Check, Progress
from pixstorefs.check.repair import Repair, prepare
from pixstorefs.check.view import StoreView
from pixstorefs.disk.folder import OddFile
from pixstorefs.errors import CorruptStore
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.objects import journal
from pixstorefs.objects.directory import ObjectDirectory, number_of
from pixstorefs.store import barrier


@pytest.fixture
def filled(place: Place) -> Place:
    """A store with three images, closed."""
    place.open().close()
    with closing(place.open_store()) as store:
        for number in range(3):
            save_file(store, f"{number}", lambda draft: draft.write(0, image(1000)))
    return place


@pytest.fixture
def other(tmp_path: Path) -> Place:
    """Another store, with images of its own."""
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.open().close()
    with closing(other.open_store()) as store:
        for number in range(20):
            save_file(store, f"{number}", lambda draft: draft.write(0, image(1000)))
    return other


def _replace_by_link(path: Path, target: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
    path.symlink_to(target)


def test_copies_of_another_store(filled: Place, other: Place) -> None:
    """A link in the place of `copies` does not let one store write its keys and its index into another."""
    before = digests(other.path)
    _replace_by_link(filled.path / "copies", other.path / "copies")
    for _ in range(2):
        with closing(filled.open_store()) as store:
            assert any("copies" in line for line in store.report)
            save_file(store, os.urandom(4).hex(), lambda draft: draft.write(0, image(1000)))
    _replace_by_link(filled.path / "copies", other.path)
    filled.open().close()
    assert digests(other.path) == before
    other.open().close()


def test_objects_of_another_store(filled: Place, other: Place) -> None:
    """A link in the place of `objects` does not let a recovery sweep the objects of another store."""
    store = filled.open_store()
    save_file(store, "unclean", lambda draft: draft.write(0, image(1000)))
    store.sync()
    crashed = Place.__new__(Place)
    crashed.path, crashed.keyfile = filled.path.parent / "crashed", filled.keyfile
    shutil.copytree(filled.path, crashed.path)
    store.close()
    before = digests(other.path)
    _replace_by_link(crashed.path / "objects", other.path / "objects")
    with pytest.raises(OddFile, match="symbolic link"):
        crashed.open_store()
    assert digests(other.path) == before


def test_a_folder_of_a_snapshot(filled: Place, tmp_path: Path) -> None:
    """A link among the folders of a snapshot does not let the next run remove what it leads to."""
    canary = tmp_path / "canary"
    canary.mkdir()
    for name in ("file", "405504", "1"):
        (canary / name).write_bytes(b"somebody else's")
    taken = tmp_path / "taken"
    take_snapshot(filled, taken)
    (taken / "objects" / "99").symlink_to(canary)
    (taken / "objects" / "link").symlink_to(canary / "file")
    (taken / "objects" / "0" / "77").symlink_to(canary / "file")
    before = digests(canary)
    assert take_snapshot(filled, taken).removed == 0
    _replace_by_link(taken / "copies", canary)
    with pytest.raises(OddFile):
        take_snapshot(filled, taken)
    (taken / "copies").unlink()
    take_snapshot(filled, taken)
    assert digests(canary) == before


def test_where_a_repair_puts_what_it_finds(filled: Place, tmp_path: Path) -> None:
    """A link in the place of lost+found does not let a repair move a file of the store elsewhere."""
    canary = tmp_path / "canary"
    canary.mkdir()
    secret = secret_from_keyfile(filled.keyfile)
    (filled.path / "objects" / "0" / "4000").write_bytes(b"what the attacker wrote")
    (filled.path / "lost+found").mkdir()
    (filled.path / "lost+found" / "objects").symlink_to(canary)
    with pytest.raises(OddFile):
        prepare(str(filled.path), secret)
    with (
        closing(filled.open_store()) as store,
        StoreView(str(filled.path), secret) as view,
        pytest.raises(OddFile),
    ):
        Repair(store).run(list(Check(view, Progress(), idle=True).run()), [])
    assert os.listdir(canary) == []
    assert (filled.path / "objects" / "0" / "4000").exists()


@pytest.mark.parametrize("name", ["lost+found", "lost+found/objects"])
def test_where_a_restoring_puts_the_damaged_index(filled: Place, tmp_path: Path, name: str) -> None:
    """A link there does not let it remove, take or leave files in what the link leads to."""
    canary = tmp_path / "canary"
    for path in ("salvage/file", "objects/1", "index-20200101T000000Z/index.db", "1"):
        (canary / path).parent.mkdir(parents=True, exist_ok=True)
        (canary / path).write_bytes(b"somebody else's")
    (filled.path / name).parent.mkdir(exist_ok=True)
    (filled.path / name).symlink_to(canary)
    (filled.path / "index.db").write_bytes(b"damaged" * 4096)
    before, names = digests(canary), sorted(os.listdir(canary))
    with pytest.raises(OddFile, match="symbolic link"):
        prepare(str(filled.path), secret_from_keyfile(filled.keyfile))
    assert (digests(canary), sorted(os.listdir(canary))) == (before, names)


def test_the_folder_of_the_next_objects(filled: Place, tmp_path: Path) -> None:
    """A link in the place of a folder of objects is met when the store is opened, and by who writes there."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (filled.path / "objects" / "1").symlink_to(canary)
    with closing(ObjectDirectory(str(filled.path), b"the store's id16")) as directory:
        with pytest.raises(OddFile):
            directory.create_file(4096)
        os.close(directory.create_file(4095))
        directory.unlink([4095, 4096])
    (filled.path / "objects" / "0").rename(filled.path / "objects" / "away")
    (filled.path / "objects" / "0").symlink_to(canary)
    with pytest.raises(OddFile):
        filled.open_store()
    assert os.listdir(canary) == []


@pytest.mark.parametrize("number", [1 << 63, (1 << 63) + 1, (1 << 64) - 1, (1 << 62) + 1])
def test_numbers_in_the_journal(filled: Place, number: int) -> None:
    """A header of the journal with a number that no version has is skipped, and the rest is put back."""
    store = filled.open_store()
    inode = save_file(store, "first", lambda draft: draft.write(0, image(1000)))
    store.make_durable()
    save_file(store, "second", lambda draft: draft.write(0, image(2000)))
    store.make_durable()
    crashed = Place.__new__(Place)
    crashed.path, crashed.keyfile = filled.path.parent / "crashed", filled.keyfile
    shutil.copytree(filled.path, crashed.path)
    store.close()
    path = crashed.path / journal.JOURNAL_FILE
    content = bytearray(path.read_bytes())
    magic, _, size_bytes = struct.unpack_from(">8sQQ", content)
    assert magic == b"PXSJ\x01\x00\x00\x00"
    struct.pack_into(">Q", content, 8, number)
    path.write_bytes(content)
    newest = max(objects_of(crashed.path))
    objects_of(crashed.path)[newest].write_bytes(b"")
    assert number not in dict(journal.entries(str(crashed.path)))
    with closing(crashed.open_store()) as store:
        assert tree(store)["second"] == image(2000)
        assert content_of(store, inode) == image(1000)
    assert size_bytes > 1000


def test_numbers_that_names_are() -> None:
    """Decimal digits of ASCII without leading zeros, up to the last number, and nothing else."""
    last = 1 << 62
    for name, number in (("0", 0), ("7", 7), (str(last), last)):
        assert number_of(name, last) == number
    for name in ("", "00", "01", "-1", "+1", " 1", "1 ", "1_0", "٣", "²", "x", str(last + 1), "9" * 5000):
        assert number_of(name, last) is None


@pytest.mark.parametrize(
    "name", ["objects/9223372036854775808", "objects/0/9223372036854775806", "objects/0/9223372036854775808"]
)
def test_restoring_beside_names_that_are_no_numbers(filled: Place, name: str) -> None:
    """Whatever lies among the objects, a damaged index is restored, and numbers can be given on."""
    stranger = filled.path / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"a stranger")
    (filled.path / "index.db").write_bytes(b"damaged" * 4096)
    prepare(str(filled.path), secret_from_keyfile(filled.keyfile))
    with closing(filled.open_store()) as store:
        save_file(store, "new", lambda draft: draft.write(0, image(1000)))
        assert set(tree(store)) == {"0", "1", "2", "new"}
    assert stranger.read_bytes() == b"a stranger"


def test_restoring_where_lost_and_found_is_a_file(filled: Place) -> None:
    """It is refused in one sentence, and nothing is changed: with the file moved away all comes back."""
    (filled.path / "lost+found").write_bytes(b"a file")
    (filled.path / "index.db").write_bytes(b"damaged" * 4096)
    before = digests(filled.path)
    with pytest.raises(OddFile, match="lost\\+found"):
        prepare(str(filled.path), secret_from_keyfile(filled.keyfile))
    assert digests(filled.path) == before
    (filled.path / "lost+found").unlink()
    prepare(str(filled.path), secret_from_keyfile(filled.keyfile))
    with closing(filled.open_store()) as store:
        assert set(tree(store)) == {"0", "1", "2"}


def _folder(place: Path) -> None:
    place.mkdir()


def _link(place: Path) -> None:
    place.symlink_to("/dev/null")


@pytest.mark.parametrize("put", [_folder, os.mkfifo, _link])
def test_a_reserve_that_is_none(filled: Place, put: Callable[[Path], None]) -> None:
    """What lies there says nothing of the room on the disk: images are saved and deleted all the same."""
    (filled.path / "reserve").unlink(missing_ok=True)
    put(filled.path / "reserve")
    with closing(filled.open_store()) as store:
        save_file(store, "new", lambda draft: draft.write(0, image(1000)))
        replace_file(store, "0", image(500))
        store.tree.remove(ROOT_INO, b"1", 3)
        assert store.reserve_missing_bytes == 0
        assert set(tree(store)) == {"0", "2", "new"}


def test_no_index_is_restored_without_the_objects(filled: Place) -> None:
    """A damaged index stays as it is while the folder of objects is missing: its disk may come back."""
    (filled.path / "index.db").write_bytes(b"damaged" * 4096)
    objects = filled.path / "objects"
    objects.rename(filled.path.parent / "elsewhere")
    before = digests(filled.path)
    with pytest.raises(CorruptStore, match="not mounted"):
        prepare(str(filled.path), secret_from_keyfile(filled.keyfile))
    assert digests(filled.path) == before
    (filled.path.parent / "elsewhere").rename(objects)
    prepare(str(filled.path), secret_from_keyfile(filled.keyfile))
    with closing(filled.open_store()) as store:
        assert set(tree(store)) == {"0", "1", "2"}


def test_an_empty_store_without_its_folder(place: Place) -> None:
    """One that knows no object gets the folder made anew; one that knows some is refused."""
    place.open().close()
    (place.path / "objects").rmdir()
    with closing(place.open_store()) as store:
        save_file(store, "new", lambda draft: draft.write(0, image(1000)))
    shutil.rmtree(place.path / "objects")
    with pytest.raises(CorruptStore, match="not mounted"):
        place.open_store()
    assert not (place.path / "objects").exists()


def test_an_empty_folder_of_objects(filled: Place) -> None:
    """It is the mountpoint of a disk that is not there: nothing is written, until a person says otherwise."""
    objects, elsewhere = filled.path / "objects", filled.path.parent / "elsewhere"
    objects.rename(elsewhere)
    objects.mkdir()
    before = digests(filled.path)
    secret = secret_from_keyfile(filled.keyfile)
    with pytest.raises(CorruptStore, match="not mounted") as refused:
        filled.open_store()
    prepare(str(filled.path), secret)
    with pytest.raises(CorruptStore, match="not mounted"):
        filled.open_store()
    assert {name: digest for name, digest in digests(filled.path).items() if name in before} == before
    assert not list(objects.iterdir())
    objects.rmdir()
    elsewhere.rename(objects)
    with closing(filled.open_store()) as store:
        assert set(tree(store)) == {"0", "1", "2"}
    shutil.rmtree(objects)
    _, advice = str(refused.value).split("lost for good: ")
    subprocess.run(advice.split(",")[0], shell=True, check=True)
    with closing(filled.open_store()) as store:
        assert store.index.number_of_images() == 3


def test_objects_that_a_power_loss_took_are_not_elsewhere(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder stops nobody before the first barrier: the names in it were not durable yet."""
    place.open().close()
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    with closing(place.open_store()) as store:
        save_file(store, "new", lambda draft: draft.write(0, image(1000)))
        crashed = place.path.with_name("crashed")
        shutil.copytree(place.path, crashed)
    shutil.rmtree(crashed / "objects")
    (crashed / "objects").mkdir()
    with closing(place.open_store(crashed)) as store:
        assert not tree(store)
        assert any("did not reach the disk" in line for line in store.report)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_reserve_that_cannot_be_made(
    filled: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """A disk with room is not called full: images are saved, and the log tells what is missing."""
    (filled.path / "reserve").unlink()

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with closing(filled.open_store()) as store:
        save_file(store, "new", lambda draft: draft.write(0, image(1000)))
        store.tree.remove(ROOT_INO, b"1", 3)
        assert store.reserve_missing_bytes == 0
        assert set(tree(store)) == {"0", "2", "new"}
    assert [record for record in caplog.records if os.strerror(code) in record.getMessage()]
