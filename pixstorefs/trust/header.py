"""What makes a directory a store: `store.json` (public header), `keys.json` (key slots), and its creation.

Without either no image can be opened, so `copies/` holds both a second time. The first one counts; the copy
is read where the first is missing or is not what such a file looks like, and a writable opening puts it back.
A change of the keys writes the copy first, durably: it may be ahead of the file that counts, never behind.
"""

import errno
import json
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from pixstorefs.disk.file_lock import FileLock
from pixstorefs.disk.files import sync_directory
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.lock_file import LOCK_FILE, Ownership, is_owned
from pixstorefs.disk.owner_note import OWNER_FILE, is_about_owners
from pixstorefs.errors import CorruptStore, NewerFormat, NoRights, NotAStore, StoreInUse, StoreNotWritable
from pixstorefs.index.database import DiskRefuses
from pixstorefs.index.rows import ROOT_INO, Index
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.records import Inode

FORMAT = 1
HEADER_FILE = "store.json"
KEYS_FILE = "keys.json"
INDEX_FILE = "index.db"
# What SQLite keeps beside it: its log, and what connections share.
LOG_SUFFIXES = ("-wal", "-shm")
INDEX_FILES = (INDEX_FILE, *(INDEX_FILE + suffix for suffix in LOG_SUFFIXES))
INDEX_PURPOSE = "index"
COPIES_FOLDER = "copies"
# Of the index, in that folder.
COPY_NAMES = ("index-1.db", "index-2.db")
# Where a repair puts what it takes away; in the tree of images a directory of this name, too.
LOST_FOUND = "lost+found"
_LIMIT_BYTES = 1 << 20

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class Header:
    """The public header. `raw` are its exact bytes, which every key slot authenticates."""

    store_id: bytes
    padding: bool
    raw: bytes


def is_store(store: Folder | str) -> bool:
    """Whether a directory holds a store (or what is left of one)."""
    try:
        with _opened(store) as folder:
            return any(folder.status(place) is not None for place in _places(HEADER_FILE))
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_header(store: Folder | str) -> Header:
    """Read `store.json`, or its copy where that is damaged.

    Raises NotAStore, NewerFormat, CorruptStore.
    """
    if not is_store(store):
        path = store if isinstance(store, str) else store.path
        raise NotAStore(f"{path} is not a store: it has no {HEADER_FILE}. Nothing was changed")
    with _opened(store) as folder:
        return _first_whole(folder, HEADER_FILE, _parse)


def keys_json(store: Folder | str) -> bytes:
    """The key slots of a store, or their copy where they are damaged. Raises NewerFormat, CorruptStore."""

    def checked(_: str, raw: bytes) -> bytes:
        keyring.slot_kinds(raw)
        return raw

    with _opened(store) as folder:
        return _first_whole(folder, KEYS_FILE, checked)


def differing_copies(store: Folder | str) -> list[str]:
    """Which of the two files differ from their copies: if no key fits, one of each pair may be damaged."""
    with _opened(store) as folder:
        return [
            name
            for name in (HEADER_FILE, KEYS_FILE)
            if len({_raw(folder, place) for place in _places(name)}) > 1
        ]


def require_index(folder: Folder) -> None:
    """Refuse an index or a log that SQLite would write somewhere else, too. Raises CorruptStore, OddFile.

    Without opening them: closing a second descriptor of a file of SQLite takes its locks away (fcntl(2)).
    """
    for name in INDEX_FILES:
        status = folder.status(name)
        if status is None:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise folder.odd(name, "file", status)
        if status.st_nlink > 1:
            place = shlex.quote(os.path.join(folder.path, name))
            raise CorruptStore(
                f"{place} has another name elsewhere, and writing to it would change that file as well. "
                "Nothing was changed. Make it a file of its own: "
                f"cp -p {place} {place}.own && mv {place}.own {place}"
            )


def put_back(store: Folder | str, header: bytes, slots: bytes) -> list[str]:
    """Make both files and their copies what just opened the store; returns a line for each lost original.

    The slots authenticate the header, so a key that opened them vouches for both. With the store's lock.
    Raises OSError. What is no file, or no folder, stays: a line tells.
    """
    report = []
    with _opened(store) as folder:
        for name, content in ((KEYS_FILE, slots), (HEADER_FILE, header)):
            first, copy = _places(name)
            for place in (copy, first):
                if _raw(folder, place) == content:
                    continue
                try:
                    _replace(folder, place, content)
                except (OddFile, IsADirectoryError) as error:
                    report.append(f"{place} could not be made whole: {error}")
                    continue
                if place == first:
                    report.append(f"{name} was missing or damaged; it is back from its copy")
    return report


def replace_keys(store: Folder | str, slots: bytes) -> None:
    """Give the store other key slots. With the store's lock. Raises OSError: see `keys_json` for what counts.

    Behind it a copy would bring a removed key back to life as soon as the first one is damaged. Ahead of it,
    after a crash between the two, it holds what somebody asked for and nobody was told is done; the next
    writable opening makes it what counts again. So nothing is undone on an error: of the first one's
    replacement nobody can tell whether it reached the disk, and undoing the copy's could leave that behind.
    """
    first, copy = _places(KEYS_FILE)
    with _opened(store) as folder:
        _replace(folder, copy, slots)
        _replace(folder, first, slots)


def _places(name: str) -> tuple[str, str]:
    return name, f"{COPIES_FOLDER}/{name}"


@contextmanager
def _opened(store: Folder | str) -> Iterator[Folder]:
    """The folder of a store, for the moment if all that is known is its path."""
    if isinstance(store, Folder):
        yield store
        return
    with closing(Folder.at(store)) as folder:
        yield folder


def _replace(folder: Folder, place: str, content: bytes) -> None:
    if "/" not in place:
        folder.replace(place, content)
        return
    with closing(folder.made_folder(COPIES_FOLDER)) as copies:
        copies.replace(os.path.basename(place), content)


def _first_whole(folder: Folder, name: str, parse: Callable[[str, bytes], _Parsed]) -> _Parsed:
    """What the first of a file and its copy holds that is whole; the first one's error where neither is."""
    failure: CorruptStore | None = None
    for place in _places(name):
        path = os.path.join(folder.path, place)
        try:
            raw = _raw(folder, place)
            if raw is None:
                raise CorruptStore(
                    f"{path} is missing or cannot be read: put it back from a backup. "
                    "The images are untouched"
                )
            return parse(path, raw)
        except CorruptStore as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _raw(folder: Folder, place: str) -> bytes | None:
    """The content of a file, None if it is missing or no file, or the disk cannot read it. Raises OSError."""
    try:
        return folder.read(place, _LIMIT_BYTES)
    except OddFile:
        return None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
        return None


def _parse(path: str, raw: bytes) -> Header:
    try:
        fields = json.loads(raw)
        format_number = fields["format"]
        if fields["magic"] != "pixstorefs" or type(format_number) is not int or format_number < 1:
            raise ValueError
        if format_number > FORMAT:
            raise NewerFormat(
                f"{path} has format {format_number}, this pixstorefs knows formats up to {FORMAT}. "
                "Install a newer pixstorefs; nothing was changed"
            )
        store_id = bytes.fromhex(fields["store_id"])
        padding = {"padme": True, "none": False}[fields["padding"]]
        if len(store_id) != 16 or fields["cipher"] != "aes-256-gcm" or fields["segment_size_log2"] != 17:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptStore(
            f"the header {path} is damaged: put it back from a backup. The images are untouched"
        ) from None
    return Header(store_id, padding, raw)


def create_store(
    path: str,
    make_secret: Callable[[bytes], Secret],
    *,
    padding: bool = True,
    label: str = "first",
    random: Callable[[int], bytes] = os.urandom,
    now_ns: Callable[[], int] = time.time_ns,
) -> None:
    """Make a missing or empty directory a store.

    `make_secret` is given the new store's 16-byte id. The header comes when all else is there: a creation
    that was interrupted leaves no store, and is refused like any other directory that is not empty. One that
    fails before leaves the directory empty.
    Raises NotAStore where the directory holds something, or the one that it should lie in is missing,
    StoreInUse while another process does the same, StoreNotWritable where the disk cannot hold one, NoRights,
    OSError.
    """
    require_parent(path)
    with _claimed_directory(path):
        try:
            _fill(path, make_secret, padding, label, random, now_ns)
        except BaseException:
            with suppress(OSError), _opened(path) as folder:
                _forget_owner(folder)
            raise


def _fill(
    path: str,
    make_secret: Callable[[bytes], Secret],
    padding: bool,
    label: str,
    random: Callable[[int], bytes],
    now_ns: Callable[[], int],
) -> None:
    store_id = random(16)
    header = {
        "magic": "pixstorefs",
        "format": FORMAT,
        "store_id": store_id.hex(),
        "cipher": "aes-256-gcm",
        "segment_size_log2": 17,
        "padding": "padme" if padding else "none",
    }
    raw = json.dumps(header, indent=1).encode() + b"\n"
    master_key, slots = keyring.create(make_secret(store_id), raw, label=label, random=random)
    with _opened(path) as folder, _owned(folder), _taken_back_on_error(path):
        os.mkdir(os.path.join(path, "objects"), 0o700)
        index_key = keyring.derive(master_key, store_id, INDEX_PURPOSE)
        Index.create(os.path.join(path, INDEX_FILE), index_key, store_id, root_inode(now_ns()))
        # The copy of the header, which makes a store as well, only behind it.
        for name, content in ((KEYS_FILE, slots), (HEADER_FILE, raw)):
            for place in _places(name):
                _replace(folder, place, content)
        folder.sync()
    sync_directory(os.path.dirname(os.path.abspath(path)))


@contextmanager
def _taken_back_on_error(path: str) -> Iterator[None]:
    """Remove what a creation made that failed, in a directory that was empty before and that we own.

    Raises StoreNotWritable where the disk refuses an index: there is no store yet that could be damaged.
    """
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            _take_back(path)
        if isinstance(error, DiskRefuses):
            raise StoreNotWritable(
                f"no store can be made in {path}: {error}. Some file systems write files only from front to "
                "back (an rclone mount without --vfs-cache-mode writes). Nothing is left there; choose "
                "another place"
            ) from error
        raise


def _take_back(path: str) -> None:
    """As far as the disk lets us. Once there is a header, all else is there and synced: it stays."""
    if is_store(path):
        return
    keys = _places(KEYS_FILE)
    temporary = [name + ".new" for name in (*keys, *_places(HEADER_FILE))]
    # SQLite has a journal until it keeps a log.
    for name in (*INDEX_FILES, INDEX_FILE + "-journal", *keys, *temporary):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(path, name))
    for name in ("objects", COPIES_FOLDER):
        with suppress(FileNotFoundError):
            os.rmdir(os.path.join(path, name))


@contextmanager
def _owned(folder: Folder) -> Iterator[None]:
    """Have the lock of a store that is being made: whoever finds the header meanwhile must not open it yet.

    Where directories have no locks, it also keeps out who makes the same one. Raises StoreInUse, OSError.
    """
    ownership = Ownership(folder, None)
    try:
        if not _holds_nothing(folder):
            raise _was_just_made(folder.path)
        yield
    finally:
        ownership.release()


def _holds_nothing(folder: Folder) -> bool:
    """Whether there is nothing in a folder but what owners leave, of a creation that failed."""
    return all(name == LOCK_FILE or is_about_owners(name) for name in folder.names())


def _forget_owner(folder: Folder) -> None:
    """Remove what an owner leaves in a folder that holds nothing else, unless there is another owner."""
    if _holds_nothing(folder) and not is_owned(folder) and folder.status(OWNER_FILE) is None:
        for name in folder.names():
            folder.unlink(name)


def _was_just_made(path: str) -> StoreInUse:
    return StoreInUse(f"another process has made {path} a store just now: open that one")


def _is_just_making(path: str) -> StoreInUse:
    return StoreInUse(f"another process is just making {path} a store: try again in a moment")


@contextmanager
def _claimed_directory(path: str) -> Iterator[None]:
    """A new or empty directory that no other process makes a store meanwhile."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotAStore(
                f"{path} is a file, not a directory: choose another place for the store"
            ) from None
    except PermissionError as error:
        raise NoRights.to(error) from None
    with _exclusive(path):
        if is_store(path):
            raise _was_just_made(path)
        with _opened(path) as folder:
            if is_owned(folder):
                raise _is_just_making(path)
            if not _holds_nothing(folder):
                raise NotAStore(
                    f"{path} is not a store and not empty: pixstorefs never turns somebody's files into a "
                    "store. Nothing was changed; choose an empty or new directory"
                )
        yield


def require_parent(path: str) -> None:
    """Raises NotAStore where the directory that a new store should lie in is missing.

    It is never made: what is missing is a disk, or was misspelt, and images would go where nobody wants them.
    """
    parent = os.path.dirname(os.path.abspath(path))
    try:
        os.stat(parent)
    except FileNotFoundError:
        raise NotAStore(
            f"{parent} is missing, so no store can be made in it. Is its disk mounted, and its name right? "
            f"Nothing was made. If it is to be a new directory: mkdir -p {shlex.quote(parent)}"
        ) from None
    except OSError:
        pass  # whoever makes the store says it


def require_nobody_makes(path: str) -> None:
    """Raises StoreInUse while another process makes this directory a store."""
    with _exclusive(path):
        pass


@contextmanager
def _exclusive(path: str) -> Iterator[None]:
    """Hold the lock of a directory, which goes with the process. Raises StoreInUse, NoRights, OSError.

    The lock of a store is not there yet. Where directories have none (EBADF on NFS) that one has to do.
    """
    try:
        lock = FileLock(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError as error:
        raise NoRights.to(error) from None
    try:
        free = True
        with suppress(OSError):
            free = lock.take()
        if not free:
            raise _is_just_making(path)
        yield
    finally:
        lock.close()


def root_inode(now_ns: int) -> Inode:
    """The root directory of a new store."""
    return Inode(
        ino=ROOT_INO,
        mode=0o040755,
        uid=os.getuid(),
        gid=os.getgid(),
        nlink=2,
        size_bytes=0,
        stored_size_bytes=0,
        rdev=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
    )
