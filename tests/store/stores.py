"""What the tests of the store share: images of any size, files that are none, looks into the directory."""

import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pixstorefs
from pixstorefs.api import ImageStore
from pixstorefs.check.check import Check, Progress
from pixstorefs.check.view import StoreView
from pixstorefs.format import SEGMENT_SIZE_BYTES
from pixstorefs.index.findings import Finding
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import create_keyfile, secret_from_keyfile
from pixstorefs.records import Entry, Inode
from pixstorefs.snapshot.snapshot import Outcome, Snapshot
from pixstorefs.store.draft import Draft
from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.store import Store
from pixstorefs.store.tree import NewName

SEGMENT = SEGMENT_SIZE_BYTES
SEALED = SEGMENT + 16
HEADER = 16
# Eight times less to write for each of many hundred stores; the longest object fits in.
SMALL_JOURNAL_SIZE_BYTES = 2 << 20


def image(size_bytes: int, seed: object = 0) -> bytes:
    """Bytes that pass for a JPEG (3 of them at least), the same every time."""
    return b"\xff\xd8\xff" + random.Random(repr(seed)).randbytes(size_bytes - 3)


class Place:
    """A store below a directory, opened with a keyfile (which costs no argon2id)."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store"
        self.keyfile = directory / "key"
        create_keyfile(self.keyfile)

    def open(self, **options: bool) -> ImageStore:
        """The Python API."""
        return pixstorefs.open_store(str(self.path), keyfile=str(self.keyfile), **options)

    def open_store(self, path: Path | None = None) -> Store:
        """The layer below: the store itself, at `path` if that is a copy of it."""
        return open_unlocked(str(path or self.path), secret_from_keyfile(self.keyfile))

    def objects(self) -> dict[int, Path]:
        """All objects on disk by version id."""
        return objects_of(self.path)


def objects_of(store: Path) -> dict[int, Path]:
    """All objects of the store at a path, by version id."""
    return {int(path.name): path for path in (store / "objects").glob("*/*")}


def save_file(
    store: Store,
    name: str,
    fill: Callable[[Draft], None],
    *,
    mtime_ns: int = 1,
    parent: int = ROOT_INO,
    left: tuple[str, ...] = (),
) -> Inode:
    """A new file with whatever `fill` writes into its draft, as a mount would save it.

    `left`: names of others in the root directory that it was renamed over before.
    """
    with store.lock:
        ino = store.numbers.ino()
        image_id = store.allocator.new_image_id(ino)
        inode = Inode(ino, stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, 0, mtime_ns, mtime_ns, mtime_ns, image_id)
        draft = Draft(store.allocator, image_id)
        try:
            fill(draft)
            entry = Entry(store.numbers.cookie(), parent, name.encode())
            new = NewName(entry, {}, mtime_ns, [(ROOT_INO, other.encode()) for other in left])
            store.save(inode, draft, draft.seal_at_once(), new)
        finally:
            draft.close()
    return inode


def replace_file(store: Store, name: str, content: bytes, *, mtime_ns: int = 2) -> Inode:
    """A new version of a file in the root directory."""
    with store.lock:
        inode = store.tree.lookup(ROOT_INO, name.encode())
        assert inode is not None
        assert inode.image_id is not None
        draft = Draft(store.allocator, inode.image_id)
        try:
            draft.write(0, content)
            inode.mtime_ns = mtime_ns
            store.save(inode, draft, draft.seal_at_once())
        finally:
            draft.close()
    return inode


def content_of(store: Store, inode: Inode) -> bytes:
    """The whole content of a file."""
    reader = store.open_object(inode)
    buffer = memoryview(bytearray(SEGMENT))
    parts = []
    try:
        for start in range(0, inode.size_bytes, SEGMENT):
            with store.lock:
                reader.read_segment(start // SEGMENT, buffer)
            parts.append(bytes(buffer[: inode.size_bytes - start]))
    finally:
        reader.close()
    return b"".join(parts)


def tree(store: Store) -> dict[str, bytes]:
    """The content of every file in the root directory."""
    entries = store.tree.entries(ROOT_INO, 0, 10_000)
    return {name.decode(): content_of(store, inode) for _, name, inode in entries if inode.image_id}


def digests(store: Path) -> dict[str, str]:
    """A digest of every file below a directory, to tell that nothing was touched."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def take_snapshot(place: Place, target: Path, *, verify: bool = False) -> Outcome:
    """What `pixstorefs snapshot` does."""
    with Snapshot(str(place.path), str(target), secret_from_keyfile(place.keyfile)) as snapshot:
        snapshot.bring(Progress())
        if verify:
            snapshot.verify(Progress())
        return snapshot.finish()


def check_store(place: Place, path: Path) -> list[Finding]:
    """Everything a check of the store at `path` finds, notes too."""
    with StoreView(str(path), secret_from_keyfile(place.keyfile)) as view:
        return list(Check(view, Progress()).run())


@contextmanager
def writing(place: Place, program: str) -> Iterator[None]:
    """Another process runs `program` on the store until the block ends; it may not end before.

    The program gets the paths of store and keyfile, and prints "ready" when it has begun.
    """
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", program, place.path, place.keyfile],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
