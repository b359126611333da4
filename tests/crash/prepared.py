"""Stores of every kind to be damaged, and the ledger of what they hold, read before by an independent reader.

Each is made once, by processes of its own, kept in memory, and written out anew for every round. At some
moments its small files are kept as well: a damage may put such an older one back.
"""

import contextlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw
import independent_reader
from key_pages import KeyPages
from people import Person, digest, new_content
from stores import Place, image, replace_file, save_file

from pixstorefs.index.rows import ROOT_INO
from pixstorefs.records import Inode
from pixstorefs.store.store import Store

# Small enough that thousands of rounds take minutes; two of 200 KB have more than one segment.
_IMAGES = 14
_SIZES_BYTES = (1, 900, 4_000, 20_000, 60_000, 200_000)
# From 4 MiB on a barrier copies the log into the database, and it begins anew: more than that in changes.
_CHANGES_OF_A_LOG = 450
_HISTORY = ("index.db", "index.db-wal", "barrier", "journal", "store.json", "keys.json", "lock", "copies")


class History:
    """The store while it is made: what was acknowledged as durable, and its small files at some moments."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self._folder = folder
        self._folder.mkdir()
        self._unsynced = place.path.with_name("unsynced")

    def keep(self) -> None:
        """Keep the small files as they are now."""
        target = self._folder / str(len(list(self._folder.iterdir())))
        target.mkdir()
        for name in _HISTORY:
            source = self.place.path / name
            if source.is_dir():
                shutil.copytree(source, target / name)
            elif source.exists():
                content = source.read_bytes()
                write_with_hole(target / name, 0o600, content.rstrip(b"\0"), len(content))

    def note_unsynced(self, name: str) -> None:
        """This save was acknowledged, and no sync has followed it."""
        with open(self._unsynced, "a") as file:
            file.write(name + "\n")


@dataclass(frozen=True)
class Image:
    """One file of a prepared store."""

    path: str
    digest: str
    durable: bool
    linked: bool
    version_id: int
    image_id: bytes
    key: bytes
    object_digest: str | None  # None: it has no object


@dataclass
class Prepared:
    """A store in memory, what it holds, and what its pages hold."""

    kind: str
    images: list[Image]
    older: set[str]  # digests of contents that it held before
    pages: KeyPages
    history: list[Path]
    keyfile: bytes
    files: "Files"

    def write_out(self, folder: Path) -> Place:
        """The store and its keyfile, in an empty folder. Zeros at the end of a file become a hole."""
        place = Place(folder)
        place.keyfile.write_bytes(self.keyfile)
        write_out(self.files, place.path)
        return place


def write_with_hole(path: Path, mode: int, content: bytes, size_bytes: int) -> None:
    """A new file; the zeros behind its content take no room."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    os.write(fd, content)
    os.ftruncate(fd, size_bytes)
    os.close(fd)


Step = Callable[[Place, History], None]


@dataclass(frozen=True)
class Kind:
    """How a store gets to be what it is: each step in a process of its own, which may kill itself."""

    name: str
    steps: tuple[Step, ...]


def prepare(kind: Kind, folder: Path, kept: Path) -> Prepared:
    """Make a store of this kind in `folder` and read what it holds; its history goes to `kept`."""
    place = Place(folder)
    history = History(place, kept)
    person = Person(place, timeout_s=120)
    for step in kind.steps:

        def do(step: Step = step) -> int:
            step(place, history)
            return 0

        said = person.bounded("preparing", do)
        assert said.status in (0, -signal.SIGKILL), f"{kind.name}: {said}"
    history.keep()
    return _read(kind.name, place, folder, kept)


def _read(kind: str, place: Place, folder: Path, kept: Path) -> Prepared:
    unsynced = folder / "unsynced"
    names = set(unsynced.read_text().split()) if unsynced.exists() else set()
    histories = sorted(kept.iterdir(), key=lambda path: int(path.name))
    index_key = _index_key(place)
    images = _images(place.path, place.keyfile, index_key, names, folder)
    older = {digest(image(size, seed)) for size, seed in _contents()} | {
        digest(new_content(name)) for name in ("first", "second")
    }
    needles = [needle for each in images for needle in (each.key, each.image_id)]
    pages = KeyPages(index_key, needles, kept)
    for database in _databases([place.path, *histories]):
        pages.learn(database)
    files = take_in(place.path)
    return Prepared(kind, images, older, pages, histories[:-1], place.keyfile.read_bytes(), files)


# Name, mode, content without the zeros at its end, and length with them.
Files = list[tuple[str, int, bytes, int]]


def take_in(folder: Path) -> Files:
    """Everything below a folder, into memory."""
    files = []
    for path in sorted(folder.rglob("*")):
        content = b"" if path.is_dir() else path.read_bytes()
        name = str(path.relative_to(folder))
        files.append((name, path.lstat().st_mode, content.rstrip(b"\0"), len(content)))
    return files


def write_out(files: Files, folder: Path) -> None:
    """The reverse, into a new folder."""
    folder.mkdir(0o700)
    for name, mode, content, size_bytes in files:
        path = folder / name
        if stat.S_ISDIR(mode):
            path.mkdir(0o700)
        else:
            write_with_hole(path, stat.S_IMODE(mode), content, size_bytes)


def _databases(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.rglob("index*.db")):
            if path.parts[-2] in (folder.name, "copies") or path.stat().st_size:
                yield path


def _index_key(place: Place) -> bytes:
    header = (place.path / "store.json").read_bytes()
    secret = independent_reader.keyfile(place.keyfile)
    master_key = independent_reader.unlock((place.path / "keys.json").read_bytes(), secret, header)
    return independent_reader.derive(master_key, store_id_of(header), "index")


def store_id_of(header: bytes) -> bytes:
    """3: `store_id`."""
    return bytes.fromhex(json.loads(header)["store_id"])


def _images(store: Path, keyfile: Path, index_key: bytes, unsynced: set[str], folder: Path) -> list[Image]:
    """What the store holds, as the document of the format says."""
    contents = independent_reader.read_store(store, independent_reader.keyfile(keyfile))
    copy = folder / "read.db"
    for suffix in ("", "-wal"):
        if Path(f"{store}/index.db{suffix}").exists():
            shutil.copy(f"{store}/index.db{suffix}", f"{copy}{suffix}")
    db = apsw.Connection(str(copy))
    try:
        db.pragma("cipher", "aegis")
        db.pragma("key", f"raw:{index_key.hex()}")
        return [
            _image(db, store, os.fsdecode(path), content, unsynced)
            for path, content in contents.items()
            if not path.endswith(b"/")
        ]
    finally:
        db.close()


def _image(db: apsw.Connection, store: Path, path: str, content: object, unsynced: set[str]) -> Image:
    assert isinstance(content, bytes), f"{path}: {content}"
    ino = 1
    for name in path.split("/"):
        ((ino, image_id, version_id, nlink),) = db.execute(
            "SELECT inode.ino, image_id, version_id, nlink FROM entry JOIN inode ON inode.ino = entry.ino "
            "WHERE parent = ? AND name = ?",
            (ino, os.fsencode(name)),
        ).fetchall()
    ((key,),) = db.execute("SELECT key FROM version WHERE version_id = ?", (version_id,)).fetchall()
    sealed = object_path(store, version_id)
    return Image(
        path,
        digest(content),
        path not in unsynced,
        nlink > 1,
        version_id,
        image_id,
        key,
        digest(sealed.read_bytes()) if sealed.exists() else None,
    )


def object_path(store: Path, version_id: int) -> Path:
    """7.1: the object of a version."""
    return store / "objects" / str(version_id // 4096) / str(version_id)


# What is done to the stores


def _contents() -> Iterator[tuple[int, str]]:
    """Size and seed of everything that the steps save."""
    for number in range(_IMAGES):
        yield _SIZES_BYTES[number % len(_SIZES_BYTES)] + 3, f"image {number}"
        yield 2_000 + number, f"update {number}"
    for number in range(8):
        yield 3_000 + 1_000 * number, f"more {number}"
        yield 3_500 + number, f"late {number}"


def _save(store: Store, name: str, size_bytes: int, seed: str, parent: int = ROOT_INO) -> Inode:
    return save_file(store, name, lambda draft: draft.write(0, image(size_bytes, seed)), parent=parent)


def _folder(store: Store, name: str, parent: int = ROOT_INO) -> int:
    ino = store.numbers.ino()
    store.tree.add(Inode(ino, stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 1, 1, 1), parent, name.encode())
    return ino


def create(place: Place, history: History) -> None:
    place.open().close()
    history.keep()


def fill(place: Place, history: History) -> None:
    """A history of saves, directories, links and attributes, closed cleanly."""
    with contextlib.closing(place.open_store()) as store:
        folders = [ROOT_INO, _folder(store, "2025"), _folder(store, "2026")]
        folders.append(_folder(store, "deep", folders[-1]))
        for number in range(_IMAGES):
            size_bytes = _SIZES_BYTES[number % len(_SIZES_BYTES)] + 3
            name = f"image-{number}.jpg"
            inode = _save(store, name, size_bytes, f"image {number}", folders[number % 4])
            if number % 3 == 0:
                store.tree.put_xattr(inode.ino, b"user.note", b"note" * number, 3)
            if number % 5 == 0:
                store.tree.link(inode.ino, folders[1], f"link-{number}.jpg".encode(), 3)
        _save(store, "gone.jpg", 3_000, "more 0")
        _save(store, "old-name.jpg", 4_000, "more 1")
    history.keep()


def change(place: Place, history: History) -> None:
    """Updates, renames and deletes, closed cleanly: the second copy, or another one."""
    with contextlib.closing(place.open_store()) as store:
        for number in (0, 4, 8):
            replace_file(store, f"image-{number}.jpg", image(2_000 + number, f"update {number}"))
        if store.tree.lookup(ROOT_INO, b"gone.jpg") is not None:
            store.tree.remove(ROOT_INO, b"gone.jpg", 5)
            store.tree.rename(ROOT_INO, b"old-name.jpg", ROOT_INO, b"new-name.jpg", 5)
        for number in (2, 3):
            _save(store, f"more-{number}.jpg", 3_000 + 1_000 * number, f"more {number}")
    history.keep()


def _use(store: Store, history: History, *, sync: bool, first: int = 4) -> None:
    """Some saves, an update, a rename and a delete, each with an fsync, or none with it."""
    for number in range(first, 8):
        name = f"late-{number}.jpg"
        _save(store, name, 3_500 + number, f"late {number}")
        if sync:
            store.make_durable()
        else:
            history.note_unsynced(name)
    replace_file(store, "image-12.jpg", image(2_012, "update 12"))
    store.tree.rename(ROOT_INO, b"more-2.jpg", ROOT_INO, b"renamed.jpg", 7)
    store.tree.remove(ROOT_INO, b"more-3.jpg", 7)
    if sync:
        store.make_durable()
    else:
        history.note_unsynced("image-12.jpg")
        history.note_unsynced("renamed.jpg")


def _die(store: Store, changes: int, place: Place, history: History, *, sync: bool) -> None:
    """So many changes, then work in the middle of which the process is killed."""
    ino = _folder(store, "busy")
    for number in range(changes):
        store.tree.put_xattr(ino, b"user.busy-%d" % (number % 20), b"x" * 300, 6)
        if number % _CHANGES_OF_A_LOG == 0:
            store.sync()
            history.keep()
    store.sync()
    _use(store, history, sync=sync)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(changes: int, *, sync: bool = True) -> Step:
    return lambda place, history: _die(place.open_store(), changes, place, history, sync=sync)


def remove_copies(names: tuple[str, ...]) -> Step:
    def remove(place: Place, history: History) -> None:
        for name in names:
            (place.path / "copies" / name).unlink(missing_ok=True)

    return remove


def restore(place: Place, history: History) -> None:
    """A damaged page and a stray object, repaired: `lost+found` has something in it."""
    (place.path / "objects" / "0" / "4000").write_bytes(b"of nobody")
    with open(place.path / "index.db", "r+b") as file:
        file.seek(2 * 4096 + 100)
        file.write(b"damaged")
    person = Person(place, timeout_s=120)
    said = person.check("--repair")
    assert said.status == 0, said.text
    history.keep()


def mount_and_kill(place: Place, history: History) -> None:
    """Saves through a real mount whose daemon is then killed."""
    from real_mounts import RealPerson

    with RealPerson(place) as person:
        person.mount()
        for number in range(4, 8):
            path = person.mountpoint / f"late-{number}.jpg"
            with open(path, "wb") as file:
                file.write(image(3_500 + number, f"late {number}"))
                file.flush()
                os.fsync(file.fileno())
        person.kill()


_HALF = (create, fill)
_WHOLE = (create, fill, change)
KINDS = (
    Kind("clean", _WHOLE),
    Kind("clean, one copy", (*_WHOLE, remove_copies(("index-1.db",)))),
    Kind("clean, no copies", (*_WHOLE, remove_copies(("index-1.db", "index-2.db")))),
    Kind("fresh", (create,)),
    Kind("killed, small log", (*_WHOLE, killed(0))),
    Kind("killed, large log", (*_WHOLE, killed(300))),
    Kind("killed, log begun anew", (*_WHOLE, killed(4 * _CHANGES_OF_A_LOG + 50))),
    Kind("killed, one copy", (*_WHOLE, remove_copies(("index-2.db",)), killed(3))),
    Kind("killed before a sync", (*_WHOLE, killed(0, sync=False))),
    Kind("with lost+found", (*_WHOLE, restore)),
    Kind("mount killed", (*_WHOLE, mount_and_kill)),
)
