"""Power loss in every way a file system allows: any part of what no barrier covered, and nothing else.

What was written after the last barrier may reach the disk in any order, or not: the log of the index ends
anywhere behind the barrier, and each new object is there or damaged. Every name that was never taken away
must then hold something it held since, and whole.
"""

import contextlib
import os
import random
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import SEGMENT, Place, image, objects_of, replace_file, save_file, tree

from pixstorefs.api import ImageStore
from pixstorefs.daemon import linux
from pixstorefs.disk.folder import Folder
from pixstorefs.errors import PixstoreError
from pixstorefs.index import database as index_database
from pixstorefs.index.rows import ROOT_INO, Index
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.store import barrier
from pixstorefs.store.recovery import put_back_journaled, recover
from pixstorefs.store.store import Store
from pixstorefs.trust.header import INDEX_PURPOSE, keys_json, read_header
from pixstorefs.trust.proof import Proof

NAMES = "abcdef"
_LOG_HEADER_BYTES = 32
SIZES_BYTES = [0, 10, SEGMENT, SEGMENT + 1, 3 * SEGMENT]


class History:
    """Random changes of a store, and what each name may hold after power loss since the last barrier."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._number = 0
        # Inode -> every content it had since the barrier; name -> every inode it stood for since.
        self._contents: dict[int, list[bytes]] = defaultdict(list)
        self._inodes: dict[str, set[int]] = defaultdict(set)
        self.kept: set[str] = set()

    def barrier(self) -> None:
        """Everything so far is durable; the record begins anew."""
        self._store.sync()
        self._begin()

    def fsync(self) -> None:
        """The same by the API's sync, an fsync: by copies in the journal, the objects may still be lost."""
        ImageStore(self._store).sync()
        self._begin()

    def _begin(self) -> None:
        self._contents.clear()
        self._inodes.clear()
        for name, content in tree(self._store).items():
            self._contents[self._ino(name)].append(content)
        self._note_names()
        self.kept = set(self._inodes)

    def step(self) -> None:
        """One change."""
        existing = sorted(tree(self._store))
        choices: list[Callable[[list[str]], None]] = [self._create, self._save_carefully]
        if existing:
            choices += [self._replace, self._replace, self._remove, self._rename, self._exchange]
        self._random.choice(choices)(existing)
        self._note_names()

    def may_hold(self, name: str) -> list[bytes]:
        """What the name may hold after power loss."""
        return [content for ino in self._inodes[name] for content in self._contents[ino]]

    def _create(self, existing: list[str]) -> None:
        # Also over a name that is taken, as a file that was pending is saved.
        self._new(self._random.choice(NAMES))

    def _save_carefully(self, existing: list[str]) -> None:
        self._new("tmp")
        self._store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, self._random.choice(NAMES).encode(), 1)

    def _replace(self, existing: list[str]) -> None:
        name = self._random.choice(existing)
        content = self._content()
        self._contents[replace_file(self._store, name, content).ino].append(content)

    def _remove(self, existing: list[str]) -> None:
        name = self._random.choice(existing)
        self._store.tree.remove(ROOT_INO, name.encode(), 1)
        self.kept.discard(name)

    def _rename(self, existing: list[str]) -> None:
        name, new = self._random.choice(existing), self._random.choice(NAMES)
        if name != new:
            self._store.tree.rename(ROOT_INO, name.encode(), ROOT_INO, new.encode(), 1)
            self.kept.discard(name)

    def _exchange(self, existing: list[str]) -> None:
        one, other = self._random.choice(existing), self._random.choice(existing)
        if one != other:
            self._store.tree.exchange(ROOT_INO, one.encode(), ROOT_INO, other.encode(), 1)
            # If one of the two was new and is lost, its name is.
            self.kept -= {one, other}

    def _new(self, name: str) -> None:
        content = self._content()
        inode = save_file(self._store, name, lambda draft: draft.write(0, content))
        self._contents[inode.ino].append(content)
        self._inodes[name].add(inode.ino)

    def _content(self) -> bytes:
        self._number += 1
        size_bytes = self._random.choice(SIZES_BYTES)
        return image(size_bytes, self._number) if size_bytes else b""

    def _ino(self, name: str) -> int:
        inode = self._store.tree.lookup(ROOT_INO, name.encode())
        assert inode is not None
        return inode.ino

    def _note_names(self) -> None:
        for name in tree(self._store):
            self._inodes[name].add(self._ino(name))


def torn(old: bytes, new: bytes, source: random.Random) -> bytes:
    """A log, `old` at the barrier and `new` since, of whose new sectors some did not reach the disk.

    Only the header did in any case: SQLite syncs it before it writes anything behind it.
    """
    sector_bytes = source.choice([512, 4096])
    sectors = [slice(at, at + sector_bytes) for at in range(0, len(new), sector_bytes)]
    changed = [part for part in sectors if old[part] != new[part]]
    if source.random() < 0.5:
        lost = changed[source.randint(0, len(changed)) :]
    else:
        lost = source.sample(changed, source.randint(0, len(changed)))
    left = bytearray(new)
    for part in lost:
        left[part] = old[part].ljust(len(left[part]), b"\0")
    left[:_LOG_HEADER_BYTES] = new[:_LOG_HEADER_BYTES]
    return bytes(left)


def lose_power(store: Path, barrier_objects: set[int], barrier_log: bytes, source: random.Random) -> int:
    """Take away some of what no barrier covered; returns of how many objects."""
    log = store / "index.db-wal"
    if source.random() < 0.7:
        log.write_bytes(torn(barrier_log, log.read_bytes(), source))
    probability = source.choice([0.2, 0.6, 1.0])
    lost = 0
    for version_id, path in sorted(objects_of(store).items()):
        if version_id not in barrier_objects and source.random() < probability:
            lost += 1
            match source.randrange(3):
                case 0:
                    path.unlink()
                case 1:
                    os.truncate(path, source.randrange(path.stat().st_size))
                case 2:
                    path.write_bytes(bytes(path.stat().st_size))
    return lost


@contextlib.contextmanager
def reopened(place: Place, path: Path) -> Iterator[Store]:
    store = place.open_store(path)
    try:
        yield store
    finally:
        store.close()


@pytest.mark.parametrize(
    "rounds", [40, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_power_loss(place, tmp_path, rounds, monkeypatch):
    """Whatever is lost, every name that stayed holds old or new content, whole, and nothing else is left."""
    # The barriers are the history's, made with the lock held: one that came by itself would wait for it, and
    # they for that one.
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    # Every few rounds the log begins anew, over what it was.
    monkeypatch.setattr(index_database, "_CHECKPOINT_FROM_BYTES", 200_000)
    place.open().close()
    store = place.open_store()
    log_beginnings: set[bytes] = set()
    objects_lost = reports = restored = 0
    for seed in range(rounds):
        source = random.Random(seed)
        history = History(store, seed)
        with store.lock:
            for _ in range(source.randrange(4)):
                history.step()
            history.barrier()
            objects = set(place.objects())
            if source.random() < 0.5:
                for _ in range(source.randrange(4)):
                    history.step()
                history.fsync()
            log = (place.path / "index.db-wal").read_bytes()
            log_beginnings.add(log[:_LOG_HEADER_BYTES])
            for _ in range(source.randrange(1, 9)):
                history.step()
            copy = tmp_path / f"lost {seed}"
            shutil.copytree(place.path, copy)
        objects_lost += lose_power(copy, objects, log, source)
        with reopened(place, copy) as recovered:
            found = tree(recovered)
            assert history.kept <= found.keys(), seed
            assert [name for name in found if found[name] not in history.may_hold(name)] == [], seed
            recovered.sync()
            assert len(objects_of(copy)) == sum(content != b"" for content in found.values()), seed
            reports += len(recovered.report)
            restored += sum("is back" in line for line in recovered.report)
            again = tmp_path / "again"
            shutil.copytree(copy, again)
        with reopened(place, again) as twice:
            assert tree(twice) == found, seed
            assert twice.report == [], seed
        shutil.rmtree(again)
        shutil.rmtree(copy)
    store.close()
    # Otherwise nothing was lost that mattered, and the test proved nothing.
    assert objects_lost > rounds
    assert reports > rounds // 2
    assert restored > rounds // 8
    assert len(log_beginnings) > rounds // 16


# Recovery itself may be killed


@contextlib.contextmanager
def opened_parts(place: Place, store: Path) -> Iterator[tuple[Index, ObjectDirectory]]:
    """Index and objects of a store that nobody recovered."""
    header = read_header(str(store))
    master_key = keyring.unlock(keys_json(str(store)), secret_from_keyfile(place.keyfile), header.raw)
    key = keyring.derive(master_key, header.store_id, INDEX_PURPOSE)
    index = Index(str(store / "index.db"), key, header.store_id)
    try:
        yield index, ObjectDirectory(str(store), header.store_id)
    finally:
        index.close()


def test_recovery_killed_at_every_step(place, tmp_path):
    """Killed before its transaction, before or after it swept, or only the sweep survived: the same end."""
    place.open().close()
    store = place.open_store()
    for name in "ab":
        save_file(store, name, lambda draft: draft.write(0, image(SEGMENT, "old")))
    store.sync()
    with store.lock:
        durable = set(place.objects())
        replace_file(store, "a", image(SEGMENT, "new"))
        save_file(store, "c", lambda draft: draft.write(0, image(10, "new")))
        save_file(store, "tmp", lambda draft: draft.write(0, image(20, "new")))
        store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"b", 3)
        draft = store.allocator.begin_object(b"x" * 16)
        draft.append(0, memoryview(bytes(SEGMENT)))
        before = tmp_path / "before"
        shutil.copytree(place.path, before)
        draft.abort()
    store.close()
    for version_id, path in objects_of(before).items():
        if version_id not in durable and path.stat().st_size < 2 * SEGMENT:
            path.write_bytes(bytes(path.stat().st_size))
    after = tmp_path / "after"
    shutil.copytree(before, after)
    with opened_parts(place, after) as (index, objects):
        state = index.state()
        proof = Proof(doubt=None, acknowledged_token=state.durable_token, unread_frames=0)
        with contextlib.closing(Folder.at(str(after))) as folder:
            first_report = recover(index, objects, state, proof, folder, lambda: None)
        # What a killed recovery leaves: nothing was checkpointed or closed.
        killed = tmp_path / "killed"
        shutil.copytree(after, killed)
    assert len(first_report) == 4
    swept = set(objects_of(before)) - set(objects_of(killed))
    assert len(swept) == 1
    combinations = {
        "before": (before, before),
        "not swept": (killed, before),
        "swept": (killed, killed),
        "sweep alone": (before, killed),
    }
    expected = {"a": image(SEGMENT, "old"), "b": image(SEGMENT, "old")}
    for name, (index_from, objects_from) in combinations.items():
        mixed = tmp_path / f"mixed {name}"
        shutil.copytree(index_from, mixed)
        shutil.rmtree(mixed / "objects")
        shutil.copytree(objects_from / "objects", mixed / "objects")
        with reopened(place, mixed) as recovered:
            assert tree(recovered) == expected, name
            recovered.sync()
            assert set(objects_of(mixed)) == durable, name


def test_damaged_object_is_not_replaced_by_a_damaged_copy(place, tmp_path):
    """What is left of it can still be read in part; an entry that was cut off may hold less."""
    place.open().close()
    store = place.open_store()
    save_file(store, "a", lambda draft: draft.write(0, image(10)))
    store.sync()
    with store.lock:
        before = set(place.objects())
        replace_file(store, "a", image(3 * SEGMENT, "new"))
        store.make_durable()
        copy = tmp_path / "copy"
        shutil.copytree(place.path, copy)
    store.close()
    (path,) = (path for version_id, path in objects_of(copy).items() if version_id not in before)
    whole = path.read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    journal = (copy / "journal").read_bytes()
    cut_off = journal[:SEGMENT] + bytes(SEGMENT) + journal[2 * SEGMENT :]
    with opened_parts(place, copy) as (index, objects):
        for entries, expected in ((cut_off, damaged), (journal, whole)):
            path.write_bytes(damaged)
            (copy / "journal").write_bytes(entries)
            put_back_journaled(index, objects, str(copy))
            assert path.read_bytes() == expected


# A disk that fails for real


_BLOCK_BYTES = 4096


class FailingDisk:
    """An ext4 whose disk is a file that finds no room: writes reach the page cache, and fsync(2) fails."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self._room = folder / "room"
        self._ballast = self._room / "ballast"
        self._image = self._room / "image"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        self._room.mkdir()
        self.path.mkdir()
        with contextlib.ExitStack() as stack:
            self._run("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", self._room)
            stack.callback(subprocess.run, ["umount", "-l", self._room], check=True)
            self._run("truncate", "-s", "200M", self._image)
            self._run("mkfs.ext4", "-q", "-F", "-b", str(_BLOCK_BYTES), "-J", "size=4", self._image)
            self._give_room_to_journal()
            self._run("mount", "-o", "loop", self._image, self.path)
            # Lazily: a test that fails leaves its store open.
            stack.callback(subprocess.run, ["umount", "-l", self.path], check=True)
            yield

    def _give_room_to_journal(self) -> None:
        """So that it is the data that fails: mkfs left holes there, and without its journal ext4 stops."""
        blocks = self._run("debugfs", "-R", "blocks <8>", self._image).split()
        with open(self._image, "r+b", buffering=0) as file:
            for block in blocks:
                content = os.pread(file.fileno(), _BLOCK_BYTES, int(block) * _BLOCK_BYTES)
                os.pwrite(file.fileno(), content, int(block) * _BLOCK_BYTES)

    def fail(self) -> None:
        """From now on nothing new reaches the disk."""
        with contextlib.suppress(OSError), open(self._ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    def repair(self) -> None:
        """The disk works again; what it lost stays lost."""
        self._ballast.unlink()

    def restart(self) -> None:
        """Forget what only the page cache has."""
        self._run("umount", self.path)
        self._run("mount", "-o", "loop", self._image, self.path)

    def _run(self, *command: object) -> str:
        result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            pytest.skip(f"no failing disk can be made here: {result.stderr}")
        return result.stdout


@pytest.mark.parametrize("restart", [False, True])
def test_disk_that_fails_to_sync(place, tmp_path, caplog, restart):
    """After a failed fsync every sync says so, and reopening believes the disk, not the page cache."""
    disk = FailingDisk(tmp_path)
    with disk.mounted():
        place.path = disk.path / "store"
        images = place.open()
        durable = {images.save_image(image(300_000, seed)).id: image(300_000, seed) for seed in range(4)}
        images.sync()
        linux.syncfs(str(disk.path))  # sync(2) would wait for the other disks of the machine, too
        disk.fail()
        updated = next(iter(durable))
        images.update_image(updated, image(6 << 20, "lost"))
        new = images.save_image(image(6 << 20, "new"))
        for _ in range(2):
            with pytest.raises((OSError, PixstoreError)):
                images.sync()
        assert images.read_image(updated) == image(6 << 20, "lost")
        with pytest.raises((OSError, PixstoreError)):
            images.close()
        assert "could not be made durable" in caplog.text

        disk.repair()
        for _ in range(2):
            if restart:
                disk.restart()
            with place.open() as images:
                assert {image_id: images.read_image(image_id) for image_id in durable} == durable
                # The first failure ended the barrier: the second object may have been written since, or not.
                found = images.image_exists(new.id)
                assert not found or images.read_image(new.id) == image(6 << 20, "new")
                assert len(place.objects()) == len(durable) + found
            restart = True
