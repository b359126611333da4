"""`lost+found` in the folder of a store: where things go that nobody knows, but that a key may still open.

Objects that no row knows go to `lost+found/objects/`; an index and its log to `lost+found/index-<time>/`,
with the copies that there were. Nothing here is ever removed: that is for a person to decide.
"""

import os
import stat
import time
from collections.abc import Iterable

from pixstorefs.disk.files import copy_file, sync_directory
from pixstorefs.errors import CorruptStore
from pixstorefs.index.copy import take_copy
from pixstorefs.store.header import COPIES_FOLDER, COPY_NAMES, INDEX_FILE, LOST_FOUND

INDEX_SUFFIXES = ("", "-wal", "-shm")
_LOG_SUFFIX = "-wal"
_OBJECTS = "objects"
_INDEX_PREFIX = "index-"


def objects_aside(store_path: str) -> str:
    """The folder of objects that were set aside. It may not be there."""
    return os.path.join(store_path, LOST_FOUND, _OBJECTS)


def set_objects_aside(store_path: str, objects: Iterable[str]) -> list[str]:
    """Move object files out of the way, durably; returns where they are. Raises CorruptStore, OSError."""
    moved: list[str] = []
    folders: set[str] = set()
    target_folder = objects_aside(store_path)
    for path in objects:
        if not moved:
            make_folders(store_path, LOST_FOUND, _OBJECTS)
        target = _free(os.path.join(target_folder, os.path.basename(path)), "-again")
        os.rename(path, target)
        moved.append(target)
        folders |= {target_folder, os.path.dirname(path)}
    for folder in sorted(folders):
        sync_directory(folder)
    return moved


def keep_index(store_path: str, key: bytes, now_ns: int) -> str:
    """Keep the open index of a store as it is, and its log, durably; returns the folder they are in.

    The log as a file, for SQLite may not have read all of it. The database not as a file: whoever closes a
    second descriptor of it takes SQLite's locks away (fcntl(2)). Raises CorruptStore, NoSpace, OSError.
    """
    folder = new_index_folder(store_path, now_ns)
    index_path = os.path.join(store_path, INDEX_FILE)
    take_copy(index_path, key, os.path.join(folder, INDEX_FILE), lambda: None)
    if os.path.isfile(index_path + _LOG_SUFFIX):
        copy_file(index_path + _LOG_SUFFIX, os.path.join(folder, INDEX_FILE + _LOG_SUFFIX))
    sync_directory(folder)
    return folder


def keep_copies(store_path: str, folder: str) -> None:
    """Keep the copies of the index that there are in `folder`, too, durably. Raises OSError.

    The next copies replace them in their own place. They are never changed, so another name will do.
    """
    for name in COPY_NAMES:
        source, target = os.path.join(store_path, COPIES_FOLDER, name), os.path.join(folder, name)
        if not os.path.isfile(source) or os.path.lexists(target):
            continue
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            copy_file(source, target)
    sync_directory(folder)


def new_index_folder(store_path: str, now_ns: int) -> str:
    """Make a folder for an index that is set aside. Raises CorruptStore, OSError."""
    make_folders(store_path, LOST_FOUND)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns / 1e9))
    path = os.path.join(store_path, LOST_FOUND, f"{_INDEX_PREFIX}{stamp}")
    number = 0
    while True:
        folder = f"{path}-{number}" if number else path
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            number += 1
            continue
        sync_directory(os.path.dirname(folder))
        return folder


def newest_index_folder(store_path: str) -> str | None:
    """The folder that the last index went to, None where there is none."""
    try:
        names = os.listdir(os.path.join(store_path, LOST_FOUND))
    except FileNotFoundError:
        return None
    found = max((name for name in names if name.startswith(_INDEX_PREFIX)), default=None)
    return os.path.join(store_path, LOST_FOUND, found) if found else None


def make_folders(store_path: str, *names: str) -> None:
    """Make folders below the store, each in the one before, durably. Raises CorruptStore, OSError.

    A link in their place would lead out of the store.
    """
    path = store_path
    for name in names:
        above, path = path, os.path.join(path, name)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise CorruptStore(
                    f"{path} is no folder: what has to be kept cannot be put there. Nothing was changed; "
                    f"move {path} away, then try again"
                ) from None
        else:
            sync_directory(above)


def _free(path: str, suffix: str) -> str:
    while os.path.lexists(path):
        path += suffix
    return path
