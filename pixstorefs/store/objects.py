"""Objects: the ciphertext files, written front to back exactly once and never modified.

They lie in `objects/<version id / 4096>/<version id>`, ids counting upward. Rejected: 256 folders by hash,
because ext4 spreads new folders over its block groups and inode allocation then cost more than the
encryption (close took 477 µs against 393 µs, measured).
"""

import ctypes
import errno
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from pixstorefs.errors import CorruptImage
from pixstorefs.store.files import write_fully
from pixstorefs.store.hold import unless_held
from pixstorefs.store.records import Runs, Version
from pixstorefs.store.reserve import Reserve
from pixstorefs.store.sealing import (
    HEADER_SIZE_BYTES,
    SEALED_SEGMENT_SIZE_BYTES,
    SEGMENT_SIZE_BYTES,
    TAG_SIZE_BYTES,
    BrokenSeal,
    Buffer,
    Sealer,
    VersionKey,
    object_header,
    padded_size,
    sealed_size,
)

OBJECTS_PER_FOLDER = 4096
# One syncfs cost 4 ms for 100 objects, fdatasync of each 21 ms (measured): beyond a few, sync them all.
SYNCFS_FROM_OBJECTS = 16
_BATCH_SEGMENTS = 8
_ZEROS = bytes(SEGMENT_SIZE_BYTES)

# A directory or a link lies in the object's place, or the folder is not ours: no reason to stop.
_NOT_REMOVABLE = (errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EACCES, errno.ELOOP)

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class SealedObject:
    """What finishing an object tells: the bytes of plaintext it holds, padding included, and its last tag."""

    key: VersionKey
    stored_size_bytes: int
    tag: bytes
    runs: Runs


@dataclass(frozen=True, slots=True)
class Content:
    """Sealed content that waits for its transaction: the object, the true size and the image format."""

    sealed: SealedObject
    size_bytes: int
    format: str | None


class ObjectWriter:
    """Writes one object. Segments come in ascending order, each once; the last one through `finish`."""

    def __init__(self, directory: "ObjectDirectory", key: VersionKey, image_id: bytes) -> None:
        self.key = key
        self._directory = directory
        self._sealer = Sealer(key, directory.store_id, image_id)
        self._fd = -1
        self._created = False
        self._runs: list[list[int]] = []
        self._segments = 0

    @property
    def next_index(self) -> int:
        """The lowest segment index that may still be sealed."""
        return self._runs[-1][0] + self._runs[-1][1] if self._runs else 0

    def append(self, index: int, plaintext: memoryview) -> None:
        """Seal whole segments from logical `index` on; more must follow, for none of them is the last.

        Raises OSError (ENOSPC, EIO, ...). The object can then never be finished, for a nonce of the
        failed segments may have met the disk; what was sealed before can still be read back.
        """
        for start in range(0, len(plaintext), _BATCH_SEGMENTS * SEGMENT_SIZE_BYTES):
            batch = plaintext[start : start + _BATCH_SEGMENTS * SEGMENT_SIZE_BYTES]
            count = len(batch) // SEGMENT_SIZE_BYTES
            out, position = self._scratch()
            for _ in range(count):
                segment, batch = batch[:SEGMENT_SIZE_BYTES], batch[SEGMENT_SIZE_BYTES:]
                self._sealer.seal_into(
                    index, False, segment, out[position : position + SEALED_SEGMENT_SIZE_BYTES]
                )
                position += SEALED_SEGMENT_SIZE_BYTES
                index += 1
            self._write(out[:position])
            self._note(index - count, count)

    def finish(self, index: int, tail: Buffer, *, padding: bool) -> SealedObject:
        """Seal the last segment of content (1 to 131,072 bytes) and the padding; close the file.

        The padding is zeros sealed like content, behind the true size that only the index knows.
        """
        content_size_bytes = self._segments * SEGMENT_SIZE_BYTES + len(tail)
        stored_size_bytes = padded_size(content_size_bytes) if padding else content_size_bytes
        remaining = stored_size_bytes - self._segments * SEGMENT_SIZE_BYTES
        self._note(index, 1)
        runs = tuple((first, count) for first, count in self._runs)
        segment: Buffer = b"".join((tail, _ZEROS[: min(remaining, SEGMENT_SIZE_BYTES) - len(tail)]))
        tag = b""
        while remaining > 0:
            last = remaining <= SEGMENT_SIZE_BYTES
            out, position = self._scratch()
            end = position + len(segment) + TAG_SIZE_BYTES
            self._sealer.seal_into(index, last, segment, out[position:end])
            tag = bytes(out[end - TAG_SIZE_BYTES : end])
            self._write(out[:end])
            remaining -= len(segment)
            segment = memoryview(_ZEROS)[: min(remaining, SEGMENT_SIZE_BYTES)]
            index += 1
        os.close(self._fd)
        self._fd = -1
        return SealedObject(self.key, stored_size_bytes, tag, runs)

    def read_back(self, index: int, out: memoryview) -> None:
        """Open a segment sealed by `append` (of an object that is not finished) into `out`."""
        slot = slot_of(tuple((first, count) for first, count in self._runs), index)
        sealed = os.pread(self._fd, SEALED_SEGMENT_SIZE_BYTES, _offset(slot))
        try:
            self._sealer.open_into(index, False, sealed, out[:SEGMENT_SIZE_BYTES])
        except (BrokenSeal, ValueError):
            raise CorruptImage("a draft was damaged on the disk before it could be saved") from None

    def abort(self) -> None:
        """Remove what was written; no trace of the object stays. Harmless when nothing was."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._created:
            self._directory.unlink([self.key.version_id])

    def _note(self, index: int, count: int) -> None:
        if self._runs and self.next_index == index:
            self._runs[-1][1] += count
        else:
            self._runs.append([index, count])
        self._segments += count

    def _scratch(self) -> tuple[memoryview, int]:
        """The shared buffer, and where sealed bytes start: behind the header if it is not written yet."""
        out = self._directory.scratch
        if self._fd >= 0:
            return out, 0
        out[:HEADER_SIZE_BYTES] = object_header(self.key.version_id)
        return out, HEADER_SIZE_BYTES

    def _write(self, data: memoryview) -> None:
        if self._fd < 0:
            self._fd = self._directory.create_file(self.key.version_id)
            self._created = True
        self._directory.keep_reserve()
        write_fully(self._fd, data, self._directory.make_room)


class ObjectReader:
    """Reads one finished object. Nothing that was not verified leaves it."""

    def __init__(self, directory: "ObjectDirectory", sealed: SealedObject, image_id: bytes) -> None:
        self._directory = directory
        self._sealed = sealed
        self._image_id = image_id
        self._sealer = Sealer(sealed.key, directory.store_id, image_id)
        self._last_slot = -(-sealed.stored_size_bytes // SEGMENT_SIZE_BYTES) - 1
        self._fd = -1
        self.runs = sealed.runs

    def open(self) -> None:
        """Open the object's file, so that it stays readable after it is unlinked. Raises CorruptImage."""
        if self._fd >= 0 or not self.runs:
            return
        try:
            self._fd = self._directory.open_file(self._sealed.key.version_id)
        except FileNotFoundError:
            raise self._damaged("is missing") from None
        size_bytes = os.fstat(self._fd).st_size
        expected_bytes = sealed_size(self._sealed.stored_size_bytes)
        if size_bytes != expected_bytes:
            self.close()
            raise self._damaged(f"has {size_bytes} bytes instead of {expected_bytes}")

    def close(self) -> None:
        """Close the file; a closed reader opens it again by itself."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def has(self, index: int) -> bool:
        """Whether segment `index` is stored; one that is not reads as zeros."""
        return slot_of(self.runs, index) >= 0

    def read_segment(self, index: int, out: memoryview, *, nowait: bool = False) -> None:
        """Fill `out` (131,072 bytes) with segment `index`, zeros where nothing is stored.

        Raises CorruptImage where the object is missing or a tag does not match, BlockingIOError with
        `nowait` where the disk would have to be waited for, OSError (EIO) from the disk.
        """
        slot = slot_of(self.runs, index)
        if slot < 0:
            out[:] = _ZEROS
            return
        self._open_slot(slot, index, out, nowait=nowait)

    def read_ahead(self, index: int, count: int) -> None:
        """Have the disk read the ciphertext of some segments while others are worked on."""
        slot = slot_of(self.runs, index)
        if slot >= 0 and self._fd >= 0:
            size_bytes = count * SEALED_SEGMENT_SIZE_BYTES
            os.posix_fadvise(self._fd, _offset(slot), size_bytes, os.POSIX_FADV_WILLNEED)

    def warm(self, index: int, count: int) -> None:
        """Bring the ciphertext of some segments into the page cache. Safe to call from another thread."""
        slot = slot_of(self.runs, index)
        if slot >= 0 and self._fd >= 0:
            os.pread(self._fd, count * SEALED_SEGMENT_SIZE_BYTES, _offset(slot))

    def verify(self) -> None:
        """Check the header, every tag, padding included, and the size. Raises CorruptImage, OSError."""
        if not self.runs:
            return
        self.open()
        # What the page cache holds is no proof of what the disk does: after a write error it may differ.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in self.verified_segments():
            pass

    def verified_segments(self) -> Iterator[int]:
        """The same in steps, from the page cache where it is there: sizes in bytes of what was verified."""
        if not self.runs:
            return
        self.open()
        out = memoryview(bytearray(SEGMENT_SIZE_BYTES))
        tag = b""
        for slot, index in enumerate(self._indices()):
            tag = self._open_slot(slot, index, out)
            yield self._segment_size(slot)
        if tag != self._sealed.tag:
            raise self._damaged("ends with another tag than the index has")

    def _indices(self) -> Iterator[int]:
        """Logical index of every slot; the padding goes on counting behind the last content segment."""
        slots = index = 0
        for first, count in self.runs:
            for index in range(first, first + count):
                yield index
            slots += count
        for _ in range(slots, self._last_slot + 1):
            index += 1
            yield index

    def _segment_size(self, slot: int) -> int:
        return min(SEGMENT_SIZE_BYTES, self._sealed.stored_size_bytes - slot * SEGMENT_SIZE_BYTES)

    def _open_slot(self, slot: int, index: int, out: memoryview, *, nowait: bool = False) -> bytes:
        self.open()
        size_bytes = self._segment_size(slot)
        # The header is read with the first segment, so that checking it costs no read of its own.
        header_bytes = HEADER_SIZE_BYTES if slot == 0 else 0
        stored = self._directory.scratch[: header_bytes + size_bytes + TAG_SIZE_BYTES]
        offset = _offset(slot) - header_bytes
        got = _read_cached(self._fd, stored, offset) if nowait else os.preadv(self._fd, [stored], offset)
        if got != len(stored):
            if nowait and got:
                raise BlockingIOError
            raise self._damaged(f"ends too early, at segment {slot}")
        sealed = stored[header_bytes:]
        if header_bytes and stored[:header_bytes] != object_header(self._sealed.key.version_id):
            raise self._damaged("has a damaged header")
        try:
            self._sealer.open_into(index, slot == self._last_slot, sealed, out[:size_bytes])
        except BrokenSeal:
            raise self._damaged(f"does not match its tag at segment {slot}") from None
        if size_bytes < SEGMENT_SIZE_BYTES:
            out[size_bytes:] = _ZEROS[size_bytes:]
        return bytes(sealed[-TAG_SIZE_BYTES:])

    def _damaged(self, what: str) -> CorruptImage:
        return CorruptImage(
            f"image {self._image_id.hex()} is damaged: its object {self._sealed.key.version_id} {what}. "
            "Every other image works; restore this one from a backup, or delete it"
        )


class ObjectDirectory:
    """The folder of objects of one store."""

    def __init__(self, store_path: str, store_id: bytes) -> None:
        self.store_id = store_id
        self._path = os.path.join(store_path, "objects")
        # One buffer for all sealing: fresh allocations cost more than the cipher (page faults, measured).
        # Safe because the store's lock is held by whoever seals or opens, and no call leaves data in it.
        self.scratch = memoryview(bytearray(HEADER_SIZE_BYTES + _BATCH_SEGMENTS * SEALED_SEGMENT_SIZE_BYTES))
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

    def keep_reserve(self) -> None:
        """Raises OSError (ENOSPC) where writing would take what is reserved for deleting."""
        if self.reserve is None or self.reserve.take():
            return
        self.make_room()
        if not self.reserve.take():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def path(self, version_id: int) -> str:
        """Where the object of a version lies."""
        return object_path(self._path, version_id)

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
            os.posix_fadvise(fd, 0, limit_bytes, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass
        finally:
            os.close(fd)

    def syncs(self, version_ids: list[int]) -> list[Callable[[], None]]:
        """The calls that make objects and their names durable, in any order and at once if need be.

        POSIX wants a directory synced for its names (fsync(2)); ext4 and XFS commit them with the file.
        """
        if len(version_ids) >= SYNCFS_FROM_OBJECTS:
            return [self.sync_all]
        syncs: list[Callable[[], None]] = [
            partial(_sync_path, self.path(version_id), os.fdatasync) for version_id in version_ids
        ]
        folders = {version_id // OBJECTS_PER_FOLDER for version_id in version_ids}
        syncs += [partial(self._sync_folder, folder) for folder in folders]
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
        _syncfs(self._path)

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


def reader_of(directory: ObjectDirectory, version: Version, image_id: bytes) -> ObjectReader:
    """A reader of a version as the index knows it."""
    key = VersionKey(version.version_id, version.key, version.iv)
    sealed = SealedObject(key, version.stored_size_bytes, version.tag, version.runs)
    return ObjectReader(directory, sealed, image_id)


def slot_of(runs: Runs, index: int) -> int:
    """The place of segment `index` in an object that stores `runs`, -1 where it is not stored."""
    if len(runs) == 1:
        first, count = runs[0]
        return index - first if first <= index < first + count else -1
    position = bisect_right(runs, index, key=lambda run: run[0]) - 1
    if position < 0 or index >= runs[position][0] + runs[position][1]:
        return -1
    return sum(count for _, count in runs[:position]) + index - runs[position][0]


def _read_cached(fd: int, out: memoryview, offset: int) -> int:
    """Read what the page cache has; raises BlockingIOError where that is nothing.

    File systems that cannot tell (tmpfs, some network ones) count as not having it.
    """
    try:
        return os.preadv(fd, [out], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise BlockingIOError from None


def _no_room() -> None:
    """Before a store is open, and where it is read-only, there is nothing to give back."""


def _offset(slot: int) -> int:
    return HEADER_SIZE_BYTES + slot * SEALED_SEGMENT_SIZE_BYTES


def _sync_path(path: str, sync: Callable[[int], None]) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # deleted since it was written: nothing left to make durable
    try:
        sync(fd)
    finally:
        os.close(fd)


def _syncfs(path: str) -> None:
    """syncfs(2), which os lacks; since Linux 5.8 it reports write errors of the whole file system."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
