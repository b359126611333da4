"""The journal: small objects once more, in a file whose blocks the disk has had for long.

A new file is durable when the file system has committed its inode, 0.6 to 0.9 ms here; what is written over
blocks that are there already takes one write and one flush, 0.25 ms. So an fsync(2) waits for a copy of the
object in the journal, and the object itself is synced by the next barrier, within the second. After a power
loss recovery puts back what the objects have lost.

Entries follow each other from the beginning; behind the newest lie older ones, cut off anywhere. They need no
checksums: they are verified by their tags, like every object, and version ids are never used twice.
An entry shows no more than its object: ciphertext, under a number.
"""

import logging
import os
import struct
from collections.abc import Callable, Iterator

from pixstorefs.disk.files import affordable_size, fill_with_zeros
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.objects.layout import LAST_VERSION_ID

log = logging.getLogger(__name__)

JOURNAL_FILE = "journal"
JOURNAL_SIZE_BYTES = 16 << 20
# On a small disk not more than this part of it; below the smallest size there is none.
_PART_OF_DISK = 32
_SMALLEST_SIZE_BYTES = 1 << 20
LARGEST_OBJECT_SIZE_BYTES = 1 << 20

# Entries begin on a page, so that no write needs to read one first: magic, version id, size in bytes.
_PAGE_SIZE_BYTES = 4096
_HEADER = struct.Struct(">8sQQ")
_MAGIC = b"PXSJ\x01\x00\x00\x00"
_NEW = JOURNAL_FILE + ".new"

# The descriptor of an object, open for reading, and its length in bytes.
OpenObject = Callable[[int], tuple[int, int]]


class Journal:
    """The journal of one open store. Not thread-safe; only `sync` waits for the disk."""

    def __init__(self, store: Folder) -> None:
        self._store = store
        self._fd = -1
        self._size_bytes = 0
        self._position = 0
        self._buffer = memoryview(b"")

    def open(self) -> None:
        """Open the journal, making it where it is missing. Never fails: an fsync takes longer without."""
        try:
            self._fd = self._store.open_own(JOURNAL_FILE, os.O_RDWR)
        except FileNotFoundError:
            self._create()
        except OddFile as error:
            log.warning("there is no journal, so that each fsync waits for its own file: %s", error)
        except OSError as error:
            log.info("there is no journal, so that each fsync waits for its own file: %s", error)
        if self._fd >= 0:
            # A longer one is not ours.
            self._size_bytes = min(os.fstat(self._fd).st_size, JOURNAL_SIZE_BYTES)
            self._buffer = memoryview(bytearray(2 * _PAGE_SIZE_BYTES + LARGEST_OBJECT_SIZE_BYTES))

    def _create(self) -> None:
        try:
            size_bytes = affordable_size(self._store.fd, JOURNAL_SIZE_BYTES, _PART_OF_DISK)
            if size_bytes < _SMALLEST_SIZE_BYTES:
                return
            self._store.unlink_if_there(_NEW)
            fd = self._store.create(_NEW)
            try:
                fill_with_zeros(fd, size_bytes)
                os.fsync(fd)
                self._store.rename(_NEW, JOURNAL_FILE)
                self._store.sync()
            except BaseException:
                os.close(fd)
                self._store.unlink_if_there(_NEW)
                raise
            self._fd = fd
        except OSError as error:
            log.info("no journal could be made, so that each fsync waits for its own file: %s", error)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def usable(self) -> bool:
        """Whether there is one, and its disk has not failed."""
        return self._fd >= 0

    def add(self, version_id: int, open_object: OpenObject) -> bool:
        """Write a copy of an object, not synced yet. False where it has no room, or there is no journal.

        `open_object` returns its descriptor and its length in bytes.
        """
        if self._fd < 0:
            return False
        try:
            return self._add(version_id, open_object)
        except OSError as error:
            self._give_up(error)
            return False

    def _add(self, version_id: int, open_object: OpenObject) -> bool:
        try:
            fd, size_bytes = open_object(version_id)
        except FileNotFoundError:
            return True  # deleted since it was written: nothing left to make durable
        except OddFile:
            return False  # the barrier syncs what there is
        try:
            end = -(-(_HEADER.size + size_bytes) // _PAGE_SIZE_BYTES) * _PAGE_SIZE_BYTES
            if size_bytes > LARGEST_OBJECT_SIZE_BYTES or self._position + end > self._size_bytes:
                return False
            entry = self._buffer[:end]
            _HEADER.pack_into(entry, 0, _MAGIC, version_id, size_bytes)
            if os.preadv(fd, [entry[_HEADER.size : _HEADER.size + size_bytes]], 0) != size_bytes:
                return False
        finally:
            os.close(fd)
        if os.pwrite(self._fd, entry, self._position) != end:
            return False
        self._position += end
        return True

    def sync(self) -> None:
        """Make durable what was added, if the journal is still `usable` then."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.info("the journal cannot be used, so that each fsync waits for its own file: %s", error)
        self.close()

    def rewind(self) -> None:
        """The objects themselves are durable: the next entry takes the place of the first."""
        self._position = 0


def entries(store: Folder | str) -> Iterator[tuple[int, bytes]]:
    """Version ids and the objects that a journal holds of them, if they are whole: newer and older ones.

    Whatever the file holds, the ids and lengths are some that a journal can have. Raises OSError where the
    disk fails.
    """
    try:
        folder = Folder.at(store) if isinstance(store, str) else store
        fd, status = folder.open_file(JOURNAL_FILE)
    except FileNotFoundError:
        return
    except OddFile as error:
        log.warning("what an fsync waited for cannot be put back from the journal: %s", error)
        return
    try:
        for at in range(0, min(status.st_size, JOURNAL_SIZE_BYTES), _PAGE_SIZE_BYTES):
            header = os.pread(fd, _HEADER.size, at)
            if len(header) < _HEADER.size:
                return
            magic, version_id, size_bytes = _HEADER.unpack(header)
            if magic == _MAGIC and version_id <= LAST_VERSION_ID and size_bytes <= LARGEST_OBJECT_SIZE_BYTES:
                yield version_id, os.pread(fd, size_bytes, at + _HEADER.size)
    finally:
        os.close(fd)
