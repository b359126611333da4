"""`lost+found` in the folder of a store: where things go that nobody knows, but that a key may still open.

Objects that no row knows go to `lost+found/objects/`; an index and its log to `lost+found/index-<time>/`,
with the copies that there were. The index of an owner that lost the store goes to `lost+found/owner-<time>/`,
until a repair has brought back what only that one knows. Nothing here is ever removed: that is for a person
to decide.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress

from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.temporary import private_folder
from pixstorefs.index.copy import copy_open, take_copy
from pixstorefs.index.database import log_size_bytes
from pixstorefs.index.rows import Index
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.transfer import copy_file
from pixstorefs.trust.header import COPIES_FOLDER, COPY_NAMES, INDEX_FILE, LOST_FOUND

_LOG_FILE = INDEX_FILE + "-wal"
_OBJECTS = "objects"
_INDEX_PREFIX = "index-"
_OWNER_PREFIX = "owner-"


@contextmanager
def objects_aside(store: Folder) -> Iterator[Folder]:
    """The folder of objects that were set aside, made if it is missing. Raises OSError, OddFile."""
    with closing(_lost_found(store)) as above, closing(above.made_folder(_OBJECTS)) as folder:
        above.sync()
        yield folder


def set_objects_aside(store: Folder, objects: ObjectDirectory, version_ids: Iterable[int]) -> list[str]:
    """Move objects out of the way, durably; returns where they are. Raises OSError, OddFile."""
    wanted = [version_id for version_id in version_ids if objects.exists(version_id)]
    if not wanted:
        return []
    moved: list[str] = []
    with objects_aside(store) as target:
        for version_id in wanted:
            name = _free(target, str(version_id))
            with closing(objects.folder_of(version_id)) as source:
                source.rename(str(version_id), name, target)
                source.sync()
            moved.append(os.path.join(target.path, name))
        target.sync()
    return moved


def keep_index(store: Folder, index_path: str, key: bytes, now_ns: int) -> str:
    """Keep the open index of a store as it is, and its log, durably; returns the folder they are in.

    The log as a file, for SQLite may not have read all of it. The database not as a file: whoever closes a
    second descriptor of it takes SQLite's locks away (fcntl(2)). Raises CorruptStore, NoSpace, OSError.
    """
    size_bytes = os.stat(index_path).st_size + log_size_bytes(index_path)
    with (
        private_folder(size_bytes, "a copy of the index that is set aside") as private,
        closing(Folder.at(private)) as made,
        closing(new_index_folder(store, now_ns)) as folder,
    ):
        take_copy(index_path, key, os.path.join(private, INDEX_FILE), lambda: None)
        copy_file(made, INDEX_FILE, folder, INDEX_FILE)
        with suppress(FileNotFoundError):
            copy_file(store, _LOG_FILE, folder, _LOG_FILE)
        folder.sync()
        return folder.path


def keep_owned(store: Folder, index: Index, key: bytes, now_ns: int) -> str:
    """Keep the index of an owner that lost the store, as it sees it, durably; returns the folder it is in.

    Its objects are in the store: nobody hands out their numbers again, and nobody removes what no row knows
    while such an owner may live. The store's lock is held. Raises CorruptStore, NoSpace, OSError, OddFile.
    """
    with (
        private_folder(index.size_bytes(), "a copy of the index that is set aside") as private,
        closing(Folder.at(private)) as made,
        closing(_new_folder(store, f"{_OWNER_PREFIX}{_stamp(now_ns)}")) as folder,
    ):
        copy_open(index, key, os.path.join(private, INDEX_FILE))
        copy_file(made, INDEX_FILE, folder, INDEX_FILE)
        folder.sync()
        return folder.path


def owners_aside(store: Folder) -> list[Folder]:
    """The folders with an index of an owner that lost the store, oldest first. Raises OSError, OddFile."""
    with suppress(FileNotFoundError), closing(store.folder(LOST_FOUND)) as above:
        return [above.folder(name) for name in sorted(above.names()) if name.startswith(_OWNER_PREFIX)]
    return []


def number_of_owners_aside(store: Folder) -> int:
    """How many there are; none where something else lies in the place of the folders."""
    try:
        kept = owners_aside(store)
    except (OSError, OddFile):
        return 0
    for folder in kept:
        folder.close()
    return len(kept)


def note_brought_back(store: Folder, owner: Folder) -> None:
    """Give the folder of an owner whose images were brought back another name. Raises OSError."""
    with closing(store.folder(LOST_FOUND)) as above:
        name = os.path.basename(owner.path)
        above.rename(name, _free(above, _INDEX_PREFIX + name.removeprefix(_OWNER_PREFIX)))
        above.sync()


def take_back_object(store: Folder, objects: ObjectDirectory, version_id: int) -> None:
    """Put an object that was set aside in its place again, if its place is free. Raises OSError, OddFile."""
    if objects.exists(version_id):
        return
    with (
        suppress(FileNotFoundError),
        closing(store.folder(f"{LOST_FOUND}/{_OBJECTS}")) as aside,
        closing(objects.folder_of(version_id, make=True)) as place,
    ):
        aside.rename(str(version_id), str(version_id), place)
        place.sync()


def keep_copies(store: Folder, target: Folder) -> None:
    """Keep the copies of the index that there are in `target`, too, durably. Raises OSError, OddFile.

    The next copies replace them in their own place. They are never changed, so another name will do.
    """
    try:
        copies = store.folder(COPIES_FOLDER)
    except FileNotFoundError:
        return
    with closing(copies):
        for name in COPY_NAMES:
            if copies.file_status(name) is None or target.status(name) is not None:
                continue
            try:
                os.link(name, name, src_dir_fd=copies.fd, dst_dir_fd=target.fd, follow_symlinks=False)
            except OSError:  # a file system without hard links
                copy_file(copies, name, target, name)
    target.sync()


def new_index_folder(store: Folder, now_ns: int) -> Folder:
    """Make a folder for an index that is set aside. Raises OSError, OddFile."""
    return _new_folder(store, f"{_INDEX_PREFIX}{_stamp(now_ns)}")


def _new_folder(store: Folder, wanted: str) -> Folder:
    with closing(_lost_found(store)) as above:
        folder = above.made_folder(_free(above, wanted))
        above.sync()
        return folder


def _stamp(now_ns: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns / 1e9))


def newest_index_folder(store: Folder) -> Folder | None:
    """The folder that the last index went to, None where there is none. Raises OSError, OddFile."""
    with closing(_lost_found(store)) as above:
        name = max((name for name in above.names() if name.startswith(_INDEX_PREFIX)), default=None)
        return above.folder(name) if name is not None else None


def _lost_found(store: Folder) -> Folder:
    folder = store.made_folder(LOST_FOUND)
    store.sync()
    return folder


def _free(folder: Folder, wanted: str) -> str:
    """A name that is free in a folder."""
    name, number = wanted, 1
    while folder.status(name) is not None:
        number += 1
        name = f"{wanted}-{number}"
    return name
