"""What makes a directory a store: `store.json` (public header), `keys.json` (key slots), and its creation."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from pixstorefs.errors import CorruptStore, NewerFormat, NotAStore
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.store.files import sync_directory, write_durably
from pixstorefs.store.index import ROOT_INO, Index
from pixstorefs.store.records import Inode

FORMAT = 1
HEADER_FILE = "store.json"
KEYS_FILE = "keys.json"
INDEX_FILE = "index.db"
INDEX_PURPOSE = "index"
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """The public header. `raw` are its exact bytes, which every key slot authenticates."""

    store_id: bytes
    padding: bool
    raw: bytes


def is_store(path: str) -> bool:
    """Whether a directory holds a store (or what is left of one)."""
    return os.path.lexists(os.path.join(path, HEADER_FILE))


def read_header(path: str) -> Header:
    """Read `store.json`.

    Raises NotAStore, NewerFormat, CorruptStore.
    """
    if not is_store(path):
        raise NotAStore(f"{path} is not a store: it has no {HEADER_FILE}. Nothing was changed")
    raw = _read(os.path.join(path, HEADER_FILE))
    try:
        fields = json.loads(raw)
        format_number = fields["format"]
        if fields["magic"] != "pixstorefs" or type(format_number) is not int or format_number < 1:
            raise ValueError
        if format_number > FORMAT:
            raise NewerFormat(
                f"the store {path} has format {format_number}, this pixstorefs knows formats up to {FORMAT}. "
                "Install a newer pixstorefs; nothing was changed"
            )
        store_id = bytes.fromhex(fields["store_id"])
        padding = {"padme": True, "none": False}[fields["padding"]]
        if len(store_id) != 16 or fields["cipher"] != "aes-256-gcm" or fields["segment_size_log2"] != 17:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise CorruptStore(
            f"the header {os.path.join(path, HEADER_FILE)} is damaged: put it back from a backup. "
            "The images are untouched"
        ) from None
    return Header(store_id, padding, raw)


def keys_json(path: str) -> bytes:
    """The key slots of a store. Raises CorruptStore."""
    return _read(os.path.join(path, KEYS_FILE))


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

    `make_secret` is given the new store's 16-byte id. The header is written last: a creation that was
    interrupted leaves no store, and is refused like any other directory that is not empty.
    Raises NotAStore where the directory holds something, OSError.
    """
    _claim_directory(path)
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
    Index.create(os.path.join(path, INDEX_FILE), index_key, store_id, _root(now_ns()))
    write_durably(os.path.join(path, KEYS_FILE), slots)
    write_durably(os.path.join(path, HEADER_FILE), raw)
    sync_directory(os.path.dirname(os.path.abspath(path)))


def _claim_directory(path: str) -> None:
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotAStore(
                f"{path} is a file, not a directory: choose another place for the store"
            ) from None
        if os.listdir(path):
            raise NotAStore(
                f"{path} is not a store and not empty: pixstorefs never turns somebody's files into a store. "
                "Nothing was changed; choose an empty or new directory"
            ) from None


def _root(now_ns: int) -> Inode:
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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LIMIT_BYTES)
    except FileNotFoundError:
        raise CorruptStore(
            f"{path} is missing: put it back from a backup. The images are untouched"
        ) from None
