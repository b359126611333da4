"""Objects: the folder of ciphertext files, each written front to back exactly once and never modified.

They lie in `objects/<version id / 4096>/<version id>`, ids counting upward. Rejected: 256 folders by hash,
because ext4 spreads new folders over its block groups and inode allocation then cost more than the
encryption (close took 477 µs against 393 µs, measured).
"""

import contextlib
import errno
import logging
import os
import secrets
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from pixstorefs.disk.files import read_ahead
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.reserve import Reserve
from pixstorefs.disk.unlink_guard import unless_held
from pixstorefs.errors import CorruptStore
from pixstorefs.format import HEADER_SIZE_BYTES, SEALED_SEGMENT_SIZE_BYTES
from pixstorefs.objects.layout import LAST_VERSION_ID

OBJECTS_FOLDER = "objects"
# Where an object stays until it is complete. Not a number, so it is none.
NEW_OBJECT = "object.new"
OBJECTS_PER_FOLDER = 4096
# One syncfs cost 4 ms for 100 objects, fdatasync of each 21 ms (measured): beyond a few, sync them all.
SYNCFS_FROM_OBJECTS = 16
# So many segments are sealed before they are written, in the buffer that all share.
BATCH_SEGMENTS = 8

# A directory lies in the object's place, or the folder is not ours: no reason to stop.
_NOT_REMOVABLE = (errno.EISDIR, errno.EPERM, errno.EACCES)

log = logging.getLogger(__name__)


class ObjectDirectory:
    """The folder of objects of one store."""

    def __init__(self, store: Folder | str, store_id: bytes) -> None:
        """`store` is the folder of the store, or its path. Raises OSError."""
        self.store_id = store_id
        self._store = Folder.at(store) if isinstance(store, str) else store
        self._opened_store = isinstance(store, str)
        # One buffer for all sealing: fresh allocations cost more than the cipher (page faults, measured).
        # Safe because one thread at a time seals and opens: in a mount the event loop, without the store's
        # lock; in the Python API whoever holds that lock. No call leaves data in it.
        self.scratch = memoryview(bytearray(HEADER_SIZE_BYTES + BATCH_SEGMENTS * SEALED_SEGMENT_SIZE_BYTES))
        # What to do when the disk is full before giving up; the barrier can give back retired objects.
        self.make_room: Callable[[], None] = _no_room
        # Room that objects must leave alone.
        self.reserve: Reserve | None = None
        self._newest: Folder | None = None
        self._newest_number = -1
        # Folders that lost a name since they were synced; added to behind the unlink, by any thread.
        self._unlinked_in: set[int] = set()
        self._syncing_unlinked = threading.Lock()
        # Folders whose own name is durable: syncing it again would cost every barrier a flush of the disk.
        self._durable_folders: set[int] = set()

    def close(self) -> None:
        """Release the descriptor kept for the newest folder, and that of the store if it was opened here."""
        if self._newest is not None:
            self._newest.close()
        self._newest, self._newest_number = None, -1
        if self._opened_store:
            self._store.close()

    def has_reserve(self) -> bool:
        """Whether there is room beyond what is reserved for deleting."""
        return self.reserve is None or self.reserve.take()

    def keep_reserve(self) -> None:
        """Raises OSError (ENOSPC) where writing would take what is reserved for deleting."""
        if self.has_reserve():
            return
        self.make_room()
        if not self.has_reserve():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def size_bytes(self, version_id: int) -> int:
        """The length of an object, 0 where there is none."""
        status = self.status(version_id)
        return status.st_size if status is not None else 0

    def exists(self, version_id: int) -> bool:
        """Whether anything lies in the place of an object."""
        return self._store.status(_name(version_id)) is not None

    def status(self, version_id: int) -> os.stat_result | None:
        """What lstat(2) tells of an object, None if there is none, or something that is no file."""
        return self._store.file_status(_name(version_id))

    def require_folders(self, version_id: int, *, any_known: bool, any_durable: bool) -> None:
        """Refuse to write a store whose objects are elsewhere, or that has no place for the next one.

        `any_known`: the index knows objects, so a missing folder is one whose disk is not there. Making it
        anew would show a store that has lost every image. `any_durable`: a barrier made one of them
        durable, so an empty folder is the mountpoint of such a disk; before that, a power loss empties it,
        too. Raises CorruptStore, OSError.
        """
        try:
            objects = self._store.folder(OBJECTS_FOLDER)
        except FileNotFoundError:
            if any_known:
                raise self._objects_are_elsewhere("missing") from None
            self._store.made_folder(OBJECTS_FOLDER).close()
            return
        with contextlib.closing(objects):
            if any_durable and not self.folders():
                raise self._objects_are_elsewhere("empty")
            with contextlib.suppress(FileNotFoundError):
                objects.folder(str(_folder_of(version_id))).close()

    def _objects_are_elsewhere(self, what_it_is: str) -> CorruptStore:
        place = os.path.join(self._store.path, OBJECTS_FOLDER)
        made_by_a_person = shlex.quote(f"{place}/0")
        return CorruptStore(
            f"the folder {place} is {what_it_is}, and the index knows images that lie there. Perhaps its "
            "disk is not mounted: nothing was changed. To look at the names: pixstorefs mount --read-only. "
            f"If the objects are lost for good: mkdir -p {made_by_a_person}, then pixstorefs check --repair"
        )

    def create_file(self, version_id: int) -> int:
        """A new, empty object file; returns its descriptor. Raises FileExistsError: ids are used once."""
        folder = _folder_of(version_id)
        if folder != self._newest_number or self._newest is None:
            if self._newest is not None:
                self._newest.close()
            self._newest = self.folder_of(version_id, make=True)
            self._newest_number = folder
        return self._newest.create(str(version_id))

    def folder_of(self, version_id: int, *, make: bool = False) -> Folder:
        """Open the folder that an object lies in. Raises OSError, OddFile."""
        number = _folder_of(version_id)
        if not make:
            return self.folder_numbered(number)
        with contextlib.closing(self._store.folder(OBJECTS_FOLDER)) as objects:
            return objects.made_folder(str(number))

    def folder_numbered(self, number: int) -> Folder:
        """Open one of `folders`. Raises OSError, OddFile."""
        return self._store.folder(f"{OBJECTS_FOLDER}/{number}")

    def create_nameless(self) -> int:
        """A file for what is forgotten when it is closed; returns its descriptor. Raises OSError."""
        with contextlib.closing(self._store.folder(OBJECTS_FOLDER)) as objects:
            name = f"spill-{secrets.token_hex(8)}"
            fd = objects.create(name)
            objects.unlink(name)
            return fd

    def put_back(self, version_id: int, content: bytes) -> None:
        """An object of a saved version again, durable, whatever is left of it. Raises OSError.

        Something that is no file stays in its place: nobody knows what it is.
        """
        try:
            with contextlib.closing(self.folder_of(version_id, make=True)) as folder:
                folder.replace(str(version_id), content, temporary=NEW_OBJECT)
        except (OddFile, IsADirectoryError) as error:
            log.warning("the object %d cannot be put back: %s", version_id, error)
        else:
            self._sync_names_of({_folder_of(version_id)})

    def open_file(self, version_id: int) -> tuple[int, int]:
        """Open an object for reading; its descriptor and its length in bytes.

        Raises FileNotFoundError, OddFile where something else lies in its place.
        """
        fd, status = self._store.open_file(_name(version_id))
        return fd, status.st_size

    def unlink(self, version_ids: Iterable[int]) -> None:
        """Remove objects; one that is not there is no error (deleting is repeatable).

        Nor is one that is no file any more or may not be touched, which would fail every barrier from now
        on: its key is gone in any case, and what lies there is left for `pixstorefs check` to find.
        """
        by_folder: dict[int, list[int]] = {}
        for version_id in version_ids:
            by_folder.setdefault(_folder_of(version_id), []).append(version_id)
        for number, ids in by_folder.items():
            try:
                folder = self.folder_numbered(number)
            except FileNotFoundError:
                continue
            except (OSError, OddFile) as error:
                _refuse_removal(ids, error)
                continue
            with contextlib.closing(folder):
                for version_id in ids:
                    self._unlink_in(folder, version_id)

    def _unlink_in(self, folder: Folder, version_id: int) -> None:
        try:
            folder.unlink(str(version_id))
        except FileNotFoundError:
            pass
        except OSError as error:
            _refuse_removal([version_id], error)
        else:
            self._unlinked_in.add(_folder_of(version_id))

    def unless_held(self) -> AbstractContextManager[bool]:
        """Whether no snapshot needs what was retired; none begins until the block ends."""
        return unless_held(self._store)

    def read_ahead(self, version_id: int, limit_bytes: int, *, anew: bool = False) -> None:
        """Have the disk read the front of an object while others are worked on. Never fails.

        `anew`: also what the page cache has already. May be called from any thread.
        """
        try:
            fd, _ = self.open_file(version_id)
        except (OSError, OddFile):
            return  # whoever reads it will find out
        try:
            if anew:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            read_ahead(fd, 0, limit_bytes)
        except OSError:
            pass
        finally:
            os.close(fd)

    def syncs(self, version_ids: list[int]) -> list[Callable[[], None]]:
        """The calls that make objects and their names durable, in any order and at once if need be.

        POSIX wants a directory synced for its names (fsync(2)); ext4 and XFS commit them with the file.
        """
        if not version_ids:
            return []
        if len(version_ids) >= SYNCFS_FROM_OBJECTS:
            return [self.sync_all]
        objects = [partial(self._sync_object, version_id) for version_id in version_ids]
        folders = {_folder_of(version_id) for version_id in version_ids}
        # Behind an object, not beside it: ext4 would commit twice (0.8 ms against 0.65, measured).
        last = [objects.pop(), *(partial(self._sync_folder, folder) for folder in folders)]
        syncs: list[Callable[[], None]] = [*objects, partial(_in_turn, last)]
        if folders - self._durable_folders:
            syncs.append(partial(self._sync_names_of, folders))
        return syncs

    def sync(self, version_ids: list[int]) -> None:
        """Make objects and their names durable."""
        for sync in self.syncs(version_ids):
            sync()

    def sync_unlinked(self) -> None:
        """Make durable that objects are gone: every one whose `unlink` returned before this call."""
        with self._syncing_unlinked:  # what another thread took out of the set, it has synced by then
            while self._unlinked_in:
                self._sync_folder(self._unlinked_in.pop())

    def _sync_object(self, version_id: int) -> None:
        # What was deleted since it was written, or is no file any more, leaves nothing to make durable.
        with contextlib.suppress(FileNotFoundError, OddFile):
            fd, _ = self.open_file(version_id)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def _sync_folder(self, number: int) -> None:
        with (
            contextlib.suppress(FileNotFoundError),  # removed by hand, with all that was in it
            contextlib.closing(self.folder_numbered(number)) as folder,
        ):
            folder.sync()

    def _sync_names_of(self, folders: set[int]) -> None:
        with contextlib.closing(self._store.folder(OBJECTS_FOLDER)) as objects:
            objects.sync()
        self._durable_folders |= folders

    def sync_all(self) -> None:
        """Make every object and every name durable."""
        with contextlib.closing(self._store.folder(OBJECTS_FOLDER)) as objects:
            objects.sync_all()

    # What lies on the disk

    def ids_from(self, version_id: int) -> Iterator[int]:
        """Ids of all objects on disk that are not below `version_id`, at a cost of the recent ones only."""
        for number in self.folders():
            if number >= _folder_of(version_id):
                yield from (found for found in self.ids_in(number) if found >= version_id)

    def folders(self) -> list[int]:
        """The numbers of the folders that objects lie in, ascending. Raises OSError."""
        with contextlib.closing(self._store.folder(OBJECTS_FOLDER)) as objects:
            numbers = (number_of(name, LAST_VERSION_ID // OBJECTS_PER_FOLDER) for name in objects.names())
            return sorted(number for number in numbers if number is not None)

    def ids_in(self, number: int) -> set[int]:
        """Ids of the objects in a folder, none if it is no folder or was removed meanwhile. Raises OSError.

        What has another name than an object of this folder would is none.
        """
        try:
            folder = self.folder_numbered(number)
        except (FileNotFoundError, OddFile):
            return set()
        with contextlib.closing(folder):
            found = {number_of(name, LAST_VERSION_ID) for name in folder.names()}
        return {found_id for found_id in found if found_id is not None and _folder_of(found_id) == number}


def number_of(name: str, last: int) -> int | None:
    """The number that a name is, None for every other name, one with leading zeros and above `last` too.

    `isdecimal` alone lets the digits of every script pass, and int(3) takes them.
    """
    if not (name.isascii() and name.isdecimal()) or (name[0] == "0" and name != "0") or len(name) > 19:
        return None
    number = int(name)
    return number if number <= last else None


def _folder_of(version_id: int) -> int:
    return version_id // OBJECTS_PER_FOLDER


def _name(version_id: int) -> str:
    return object_path(OBJECTS_FOLDER, version_id)


def object_path(folder: str, version_id: int) -> str:
    """Where the object of a version lies below the folder of objects."""
    return f"{folder}/{_folder_of(version_id)}/{version_id}"


def _refuse_removal(version_ids: list[int], error: Exception) -> None:
    if isinstance(error, OSError) and error.errno not in _NOT_REMOVABLE:
        raise error
    names = ", ".join(map(str, version_ids[:3])) + (", ..." if len(version_ids) > 3 else "")
    log.warning("objects of deleted versions cannot be removed (%s): %s", names, error)


def _in_turn(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _no_room() -> None:
    """Before a store is open, and where it is read-only, there is nothing to give back."""
