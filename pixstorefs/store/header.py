"""What makes a directory a store: `store.json` (public header), `keys.json` (key slots), and its creation.

Without either no image can be opened, so `copies/` holds both a second time. The first one counts; the copy
is read where the first is missing or is not what such a file looks like, and a writable opening puts it back.
A change of the keys writes the copy first, durably: it may be ahead of the file that counts, never behind.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pixstorefs.disk.files import sync_directory, write_durably
from pixstorefs.errors import CorruptStore, NewerFormat, NoRights, NotAStore, StoreInUse
from pixstorefs.index.rows import ROOT_INO, Index
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.records import Inode

FORMAT = 1
HEADER_FILE = "store.json"
KEYS_FILE = "keys.json"
INDEX_FILE = "index.db"
INDEX_PURPOSE = "index"
COPIES_FOLDER = "copies"
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


def is_store(path: str) -> bool:
    """Whether a directory holds a store (or what is left of one)."""
    return any(os.path.lexists(place) for place in _places(path, HEADER_FILE))


def read_header(path: str) -> Header:
    """Read `store.json`, or its copy where that is damaged.

    Raises NotAStore, NewerFormat, CorruptStore.
    """
    if not is_store(path):
        raise NotAStore(f"{path} is not a store: it has no {HEADER_FILE}. Nothing was changed")
    return _first_whole(path, HEADER_FILE, _parse)


def keys_json(path: str) -> bytes:
    """The key slots of a store, or their copy where they are damaged. Raises NewerFormat, CorruptStore."""

    def checked(_: str, raw: bytes) -> bytes:
        keyring.slot_kinds(raw)
        return raw

    return _first_whole(path, KEYS_FILE, checked)


def differing_copies(path: str) -> list[str]:
    """Which of the two files differ from their copies: if no key fits, one of each pair may be damaged."""
    return [name for name in (HEADER_FILE, KEYS_FILE) if len({_raw(p) for p in _places(path, name)}) > 1]


def put_back(path: str, header: bytes, slots: bytes) -> list[str]:
    """Make both files and their copies what just opened the store; returns a line for each lost original.

    The slots authenticate the header, so a key that opened them vouches for both. With the store's lock.
    Raises OSError.
    """
    report = []
    os.makedirs(os.path.join(path, COPIES_FOLDER), 0o700, exist_ok=True)
    for name, content in ((KEYS_FILE, slots), (HEADER_FILE, header)):
        first, copy = _places(path, name)
        for place in (copy, first):
            if _raw(place) == content:
                continue
            write_durably(place, content)
            if place == first:
                report.append(f"{name} was missing or damaged; it is back from its copy")
    return report


def replace_keys(path: str, slots: bytes) -> None:
    """Give the store other key slots. With the store's lock. Raises OSError: see `keys_json` for what counts.

    Behind it a copy would bring a removed key back to life as soon as the first one is damaged. Ahead of it,
    after a crash between the two, it holds what somebody asked for and nobody was told is done; the next
    writable opening makes it what counts again. So nothing is undone on an error: of the first one's
    replacement nobody can tell whether it reached the disk, and undoing the copy's could leave that behind.
    """
    first, copy = _places(path, KEYS_FILE)
    os.makedirs(os.path.dirname(copy), 0o700, exist_ok=True)
    write_durably(copy, slots)
    write_durably(first, slots)


def _places(path: str, name: str) -> tuple[str, str]:
    return os.path.join(path, name), os.path.join(path, COPIES_FOLDER, name)


def _first_whole(path: str, name: str, parse: Callable[[str, bytes], _Parsed]) -> _Parsed:
    """What the first of a file and its copy holds that is whole; the first one's error where neither is."""
    failure: CorruptStore | None = None
    for place in _places(path, name):
        try:
            raw = _raw(place)
            if raw is None:
                raise CorruptStore(
                    f"{place} is missing or cannot be read: put it back from a backup. "
                    "The images are untouched"
                )
            return parse(place, raw)
        except CorruptStore as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _raw(path: str) -> bytes | None:
    """The content of a file, None where it is missing or the disk cannot read it. Raises OSError."""
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT_BYTES)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
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
    that was interrupted leaves no store, and is refused like any other directory that is not empty.
    Raises NotAStore where the directory holds something, StoreInUse while another process does the same,
    NoRights, OSError.
    """
    with _claimed_directory(path):
        _fill(path, make_secret, padding, label, random, now_ns)


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
    os.mkdir(os.path.join(path, "objects"), 0o700)
    index_key = keyring.derive(master_key, store_id, INDEX_PURPOSE)
    Index.create(os.path.join(path, INDEX_FILE), index_key, store_id, root_inode(now_ns()))
    os.mkdir(os.path.join(path, COPIES_FOLDER), 0o700)
    for place in _places(path, KEYS_FILE):
        write_durably(place, slots)
    # Its copy, which makes a store as well, only behind it.
    for place in _places(path, HEADER_FILE):
        write_durably(place, raw)
    sync_directory(path)
    sync_directory(os.path.dirname(os.path.abspath(path)))


@contextmanager
def _claimed_directory(path: str) -> Iterator[None]:
    """A new or empty directory that no other process makes a store meanwhile."""
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotAStore(
                f"{path} is a file, not a directory: choose another place for the store"
            ) from None
    except PermissionError as error:
        raise NoRights.to(error) from None
    with _exclusive(path):
        if is_store(path):
            raise StoreInUse(f"another process has made {path} a store just now: open that one")
        if os.listdir(path):
            raise NotAStore(
                f"{path} is not a store and not empty: pixstorefs never turns somebody's files into a store. "
                "Nothing was changed; choose an empty or new directory"
            )
        yield


def require_nobody_makes(path: str) -> None:
    """Raises StoreInUse while another process makes this directory a store."""
    with _exclusive(path):
        pass


@contextmanager
def _exclusive(path: str) -> Iterator[None]:
    """Hold the lock of a directory, which goes with the process. Raises StoreInUse, NoRights, OSError.

    The lock of a store is not there yet. Where directories have none (EBADF on NFS) nobody is kept out.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise NoRights.to(error) from None
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUse(
                f"another process is just making {path} a store: try again in a moment"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(directory)


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
