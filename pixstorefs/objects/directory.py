"""Objects: the folder of ciphertext files, each written front to back exactly once and never modified.

They lie in `objects/<version id / 4096>/<version id>`, ids counting upward. Rejected: 256 folders by hash,
because ext4 spreads new folders over its block groups and inode allocation then cost more than the
encryption (close took 477 µs against 393 µs, measured).
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from pixstorefs.disk.files import read_ahead, sync_directory, sync_file_system, write_durably
from pixstorefs.disk.reserve import Reserve
from pixstorefs.disk.unlink_guard import unless_held
from pixstorefs.format import HEADER_SIZE_BYTES, SEALED_SEGMENT_SIZE_BYTES

OBJECTS_PER_FOLDER = 4096
# One syncfs cost 4 ms for 100 objects, fdatasync of each 21 ms (measured): beyond a few, sync them all.
SYNCFS_FROM_OBJECTS = 16
# So many segments are sealed before they are written, in the buffer that all share.
BATCH_SEGMENTS = 8

# A directory or a link lies in the object's place, or the folder is not ours: no reason to stop.
_NOT_REMOVABLE = (errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EACCES, errno.ELOOP)

log = logging.getLogger(__name__)


class ObjectDirectory:
    """The folder of objects of one store."""

    def __init__(self, store_path: str, store_id: bytes) -> None:
        self.store_id = store_id
        self._path = os.path.join(store_path, "objects")
        # One buffer for all sealing: fresh allocations cost more than the cipher (page faults, measured).
        # Safe because one thread at a time seals and opens: in a mount the event loop, without the store's
        # lock; in the Python API whoever holds that lock. No call leaves data in it.
        self.scratch = memoryview(bytearray(HEADER_SIZE_BYTES + BATCH_SEGMENTS * SEALED_SEGMENT_SIZE_BYTES))
        # What to do when the disk is full before giving up; the barrier can give back retired objects.
        self.make_room: Callable[[], None] = _no_room
        # Room that objects must leave alone.
        self.reserve: Reserve | None = None
        self._folder = -1
        self._folder_fd = -1
        # Folders that lost a name since they were synced; added to behind the unlink, by any thread.
        self._unlinked_in: set[int] = set()
        self._syncing_unlinked = threading.Lock()
        # Folders whose own name is durable: syncing it again would cost every barrier a flush of the disk.
        self._durable_folders: set[int] = set()

    def close(self) -> None:
        """Release the descriptor kept for the newest folder."""
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
        self._folder = self._folder_fd = -1

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

    def path(self, version_id: int) -> str:
        """Where the object of a version lies."""
        return object_path(self._path, version_id)

    def size_bytes(self, version_id: int) -> int:
        """The length of an object, 0 where there is none."""
        try:
            return os.stat(self.path(version_id)).st_size
        except FileNotFoundError:
            return 0

    def create_file(self, version_id: int) -> int:
        """A new, empty object file; returns its descriptor. Raises FileExistsError: ids are used once."""
        folder = version_id // OBJECTS_PER_FOLDER
        if folder != self._folder:
            self.close()
            path = os.path.join(self._path, str(folder))
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            self._folder_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            self._folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(str(version_id), flags, 0o600, dir_fd=self._folder_fd)

    def put_back(self, version_id: int, content: bytes) -> None:
        """An object of a saved version again, durable, whatever is left of it. Raises OSError."""
        path = self.path(version_id)
        folder = os.path.dirname(path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write_durably(path, content, temporary=os.path.join(self._path, "object.new"))
        sync_directory(self._path)

    def open_file(self, version_id: int) -> int:
        """The descriptor of an object, for reading. Raises FileNotFoundError."""
        return os.open(self.path(version_id), os.O_RDONLY | os.O_NOFOLLOW)

    def unlink(self, version_ids: Iterable[int]) -> None:
        """Remove objects; one that is not there is no error (deleting is repeatable).

        Nor is one that is no file any more or may not be touched, which would fail every barrier from now
        on: its key is gone in any case, and what lies there is left for `pixstorefs check` to find.
        """
        for version_id in version_ids:
            try:
                os.unlink(self.path(version_id))
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in _NOT_REMOVABLE:
                    raise
                log.warning("the object %d of a deleted version cannot be removed: %s", version_id, error)
            else:
                self._unlinked_in.add(version_id // OBJECTS_PER_FOLDER)

    def unless_held(self) -> AbstractContextManager[bool]:
        """Whether no snapshot needs what was retired; none begins until the block ends."""
        return unless_held(os.path.dirname(self._path))

    def read_ahead(self, version_id: int, limit_bytes: int, *, anew: bool = False) -> None:
        """Have the disk read the front of an object while others are worked on. Never fails.

        `anew`: also what the page cache has already. May be called from any thread.
        """
        try:
            fd = self.open_file(version_id)
        except OSError:
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
        objects = [partial(_sync_path, self.path(version_id), os.fdatasync) for version_id in version_ids]
        folders = {version_id // OBJECTS_PER_FOLDER for version_id in version_ids}
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

    def _sync_folder(self, folder: int) -> None:
        _sync_path(os.path.join(self._path, str(folder)), os.fsync)

    def _sync_names_of(self, folders: set[int]) -> None:
        _sync_path(self._path, os.fsync)
        self._durable_folders |= folders

    def sync_all(self) -> None:
        """Make every object and every name durable."""
        sync_file_system(self._path)

    def ids_from(self, version_id: int) -> Iterator[int]:
        """Ids of all objects on disk that are not below `version_id`, at a cost of the recent ones only."""
        for folder in os.listdir(self._path):
            if not folder.isdecimal() or int(folder) < version_id // OBJECTS_PER_FOLDER:
                continue
            for name in os.listdir(os.path.join(self._path, folder)):
                if name.isdecimal() and int(name) >= version_id:
                    yield int(name)


def object_path(folder: str, version_id: int) -> str:
    """Where the object of a version lies below the folder of objects."""
    return os.path.join(folder, str(version_id // OBJECTS_PER_FOLDER), str(version_id))


def _in_turn(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _no_room() -> None:
    """Before a store is open, and where it is read-only, there is nothing to give back."""


def _sync_path(path: str, sync: Callable[[int], None]) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # deleted since it was written: nothing left to make durable
    try:
        sync(fd)
    finally:
        os.close(fd)
