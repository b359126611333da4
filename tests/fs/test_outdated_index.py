"""An index that was emptied, cut short, or put back from an earlier time: noticed, told, and mended.

Through the commands that a person would run. In every case the keys of all images are still somewhere in the
store: in a copy of the index, or in its log. So in the end every image is there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import COMMAND_TIMEOUT_S, Mount, watched

import pixstorefs
from pixstorefs.keys.secrets import create_keyfile

CORRUPT_STORE = 8
IMAGES = 20
PAGE_SIZE_BYTES = 4096
FRAME_SIZE_BYTES = 24 + PAGE_SIZE_BYTES

# Saves images as a server would, says so, and waits to be killed.
_WRITER = """
import sys, pixstorefs
path, keyfile, first, last, synced = sys.argv[1:]
store = pixstorefs.open_store(path, keyfile=keyfile)
for number in range(int(first), int(last)):
    store.save_image(b"\\xff\\xd8\\xff" + b"%d" % number * 300, directory="album")
    if synced == "synced":
        store.sync()
print("saved", flush=True)
sys.stdin.read()
store.close()
"""


class Album:
    """A store of images with a number each, and the commands that look at it."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.store = mount.store
        self.keyfile = mount.directory / "key"
        create_keyfile(self.keyfile)

    def save(self, first: int, last: int, *, killed: bool = False, synced: bool = True) -> None:
        """Save images first to last in a process that closes the store, or is killed with it open."""
        arguments = (self.store, self.keyfile, str(first), str(last), "synced" if synced else "not")
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, *map(os.fspath, arguments)],
            env=self.mount.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"saved\n"
            if killed:
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=COMMAND_TIMEOUT_S)

    def run(self, *words: str, status: int = 0) -> str:
        """Run a command on the store; returns what it said."""
        result = self.mount.run(*words, "--keyfile", str(self.keyfile))
        assert result.returncode == status, result.stderr + result.stdout
        assert "should not happen" not in result.stderr
        return result.stderr + result.stdout

    def check(self, *words: str, status: int = 0) -> list[str]:
        """Check the store; returns the kinds of problems."""
        result = self.mount.run("check", "--json", *words, str(self.store), "--keyfile", str(self.keyfile))
        assert result.returncode == status, result.stderr + result.stdout
        return [problem["kind"] for problem in json.loads(result.stdout)["problems"]]

    def repair(self) -> str:
        """Repair the store, as the messages advise."""
        return self.run("check", "--repair", str(self.store))

    def numbers(self, *, read_only: bool = False) -> list[int]:
        """The numbers of the images that can be read, wherever they are."""
        with pixstorefs.open_store(
            str(self.store), keyfile=str(self.keyfile), create=False, read_only=read_only
        ) as store:
            found = [*store.images(), *store.images("album")]
            contents = [store.read_image(record.id) for record in found]
        return sorted(int(content[3:][: len(content[3:]) // 300]) for content in contents)


@pytest.fixture
def album(tmp_path: Path) -> Iterator[Album]:
    """A store with images 0 to 19, closed cleanly twice, so that it has two copies of its index."""
    with watched(tmp_path) as mount:
        found = Album(mount)
        found.save(0, IMAGES // 2)
        found.save(IMAGES // 2, IMAGES)
        yield found


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _one_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [_empty, _one_page, Path.unlink])
def test_an_emptied_index_costs_nothing(album: Album, damage: Callable[[Path], None]) -> None:
    """Mounting and checking refuse it and change nothing; a repair brings every image back, for good."""
    damage(album.store / "index.db")
    before = sorted(path.name for path in album.store.rglob("*"))
    message = album.run("mount", str(album.store), str(album.mount.mountpoint), status=CORRUPT_STORE)
    assert "check --repair" in message
    assert album.check(status=CORRUPT_STORE) == ["store-damaged"]
    assert sorted(path.name for path in album.store.rglob("*") if path.name != "lock") == [
        name for name in before if name != "lock"
    ]
    assert album.numbers(read_only=True) == list(range(IMAGES))

    album.repair()

    assert album.numbers() == list(range(IMAGES))
    for number in range(3):
        album.save(IMAGES + number, IMAGES + number + 1)  # each close replaces a copy of the index
    assert album.numbers() == list(range(IMAGES + 3))
    assert album.check() == []


def test_copies_that_a_repair_started_from_are_kept(album: Album) -> None:
    """They lie beside the damaged index, whatever becomes of the copies in use."""
    kept = {path.read_bytes() for path in (album.store / "copies").glob("index-*.db")}
    _empty(album.store / "index.db")
    album.repair()
    album.save(IMAGES, IMAGES + 1)
    album.save(IMAGES + 1, IMAGES + 2)
    [aside] = (album.store / "lost+found").glob("index-*")
    assert {path.read_bytes() for path in aside.glob("index-*.db")} == kept


def _flip_in_frame(number: int) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        with open(store / "index.db-wal", "r+b") as log:
            log.seek(32 + number * FRAME_SIZE_BYTES + 1000)
            byte = log.read(1)
            log.seek(-1, os.SEEK_CUR)
            log.write(bytes([byte[0] ^ 4]))

    return damage


def _flip_in_header(store: Path) -> None:
    with open(store / "index.db-wal", "r+b") as log:
        log.seek(17)
        byte = log.read(1)
        log.seek(17)
        log.write(bytes([byte[0] ^ 4]))


def _remove_log(store: Path) -> None:
    (store / "index.db-wal").unlink()


def _cut_log(store: Path) -> None:
    os.truncate(store / "index.db-wal", 32 + 3 * FRAME_SIZE_BYTES)


def _exchange_log_for_record(store: Path) -> None:
    log, record = store / "index.db-wal", store / "barrier"
    content = log.read_bytes()
    log.write_bytes(record.read_bytes())
    record.write_bytes(content)


def _put_text_in_place_of_both(store: Path) -> None:
    (store / "index.db-wal").write_text("conflicted copy\n")
    (store / "barrier").write_text("conflicted copy\n")


@pytest.mark.parametrize(
    "damage",
    [
        _flip_in_header,
        _flip_in_frame(0),
        _flip_in_frame(5),
        _flip_in_frame(30),
        _remove_log,
        _cut_log,
        _exchange_log_for_record,
        _put_text_in_place_of_both,
    ],
    ids=["header", "first frame", "sixth frame", "later frame", "removed", "cut", "exchanged", "text"],
)
def test_a_damaged_log_loses_nothing_that_was_synced_unsaid(
    album: Album, damage: Callable[[Path], None]
) -> None:
    """What an fsync vouched for is missing from the index then: nobody mounts it, or removes an object."""
    album.save(IMAGES, 2 * IMAGES, killed=True)
    objects = {path.name for path in (album.store / "objects").glob("*/*")}
    damage(album.store)
    assert "index-outdated" in album.check(status=CORRUPT_STORE)
    message = album.run("mount", str(album.store), str(album.mount.mountpoint), status=CORRUPT_STORE)
    assert "older than its images" in message
    assert {path.name for path in (album.store / "objects").glob("*/*")} == objects

    album.repair()

    aside = {path.name for path in (album.store / "lost+found" / "objects").glob("*")}
    found = album.numbers()
    assert set(found) >= set(range(IMAGES))
    if damage not in (_remove_log, _cut_log, _exchange_log_for_record, _put_text_in_place_of_both):
        # One page is lost at most, and the log has most pages more than once.
        assert len(found) >= 2 * IMAGES - 5
    # Each is there, or its object is kept.
    assert len(set(found)) + len(aside) >= 2 * IMAGES
    album.save(2 * IMAGES, 2 * IMAGES + 3)
    assert set(album.numbers()) >= set(range(2 * IMAGES, 2 * IMAGES + 3))


def test_later_frames_of_a_log_are_read(album: Album) -> None:
    """With a damaged header SQLite reads nothing of a log; every image in it comes back all the same."""
    album.save(IMAGES, 2 * IMAGES, killed=True)
    _flip_in_header(album.store)
    album.repair()
    assert album.numbers() == list(range(2 * IMAGES))


def test_an_index_put_back_from_a_backup_is_noticed(album: Album, tmp_path: Path) -> None:
    """Its copies know the images that it does not; they come back, and nothing is saved over them."""
    older = shutil.copy(album.store / "index.db", tmp_path / "older.db")
    album.save(IMAGES, IMAGES + 5)
    shutil.copy(older, album.store / "index.db")
    assert "index-outdated" in album.check(status=CORRUPT_STORE)
    album.run("mount", str(album.store), str(album.mount.mountpoint), status=CORRUPT_STORE)
    album.repair()
    assert album.numbers() == list(range(IMAGES + 5))
    album.save(IMAGES + 5, IMAGES + 8)
    assert album.numbers() == list(range(IMAGES + 8))


def test_an_older_index_that_nothing_contradicts_gives_no_number_twice(album: Album, tmp_path: Path) -> None:
    """Without a record and without copies the newer objects alone tell: they are passed over and kept."""
    older = shutil.copy(album.store / "index.db", tmp_path / "older.db")
    album.save(IMAGES, IMAGES + 5)
    shutil.copy(older, album.store / "index.db")
    (album.store / "barrier").unlink()
    shutil.rmtree(album.store / "copies")
    objects = {path.name for path in (album.store / "objects").glob("*/*")}
    album.save(IMAGES + 5, IMAGES + 8)
    assert album.numbers() == [*range(IMAGES), *range(IMAGES + 5, IMAGES + 8)]
    assert {path.name for path in (album.store / "objects").glob("*/*")} > objects


def test_looking_at_an_older_index_removes_nothing(album: Album, tmp_path: Path) -> None:
    """An index and its log of an earlier moment are put in place for a look, then the newest ones back."""
    aside, older = tmp_path / "newest", tmp_path / "older"
    album.save(IMAGES, IMAGES + 3, killed=True)
    older.mkdir()
    for name in ("index.db", "index.db-wal"):
        shutil.copy(album.store / name, older / name)
    album.save(IMAGES + 3, IMAGES + 6)
    aside.mkdir()
    for name in ("index.db", "index.db-wal"):
        if (album.store / name).exists():
            shutil.move(album.store / name, aside / name)
    for name in ("index.db", "index.db-wal"):
        shutil.copy(older / name, album.store / name)
    message = album.run("mount", str(album.store), str(album.mount.mountpoint), status=CORRUPT_STORE)
    assert "older than its images" in message
    for name in ("index.db", "index.db-wal"):
        (album.store / name).unlink(missing_ok=True)
    for path in aside.iterdir():
        shutil.move(path, album.store / path.name)
    assert album.numbers() == list(range(IMAGES + 6))


def test_an_index_that_vanishes_under_a_mount_is_no_clean_end(mounted: Mount) -> None:
    """Every fsync from then on fails, and so does the end of the mount."""
    with open(mounted.mountpoint / "first.jpg", "wb") as file:
        file.write(b"first")
        os.fsync(file.fileno())
    (mounted.store / "index.db").unlink()
    mounted.expect_log("was removed or replaced")
    mounted.expect_log("could not be saved")
    with open(mounted.mountpoint / "second.jpg", "wb") as file:
        file.write(b"second")
        file.flush()
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(file.fileno())
    assert mounted.run("umount", mounted.mountpoint).returncode != 0
