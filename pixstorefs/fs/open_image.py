"""One image while it is open: its attributes, its draft, its reader, and the states it goes through.

                     write, truncate, O_TRUNC
        clean  ------------------------------->  dirty
          ^  <-------------------------------      |
          |        save (flush, fsync,             |  a write failed
          |        release after mmap)             v
       pending  -- created, never saved          failed  -- never saved; the old version stays
          |  its name exists in the mount only
          v
        gone    -- no name is left; read and written until the last handle closes, never saved

`pending` and `gone` say where the name stands, `dirty` and `failure` where the content stands.
"""

from dataclasses import dataclass, field

from pixstorefs.format import SEGMENT_SIZE_BYTES
from pixstorefs.objects.reader import ObjectReader
from pixstorefs.records import Entry, Inode
from pixstorefs.store.draft import Draft
from pixstorefs.store.store import Store

_AHEAD_SIZE_BYTES = 8 << 20


@dataclass(slots=True)
class PendingName:
    """The name of a file that was created and never saved, and the xattrs it got meanwhile.

    `hides`: names, (directory, name), of saved files that it was renamed over, there or on its way here.
    """

    entry: Entry
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    hides: set[tuple[int, bytes]] = field(default_factory=set)


class ReadBuffer:
    """One buffer for the answers to all reads: the page faults of a fresh one cost more than the cipher."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(2 * SEGMENT_SIZE_BYTES))

    def at_least(self, size_bytes: int) -> memoryview:
        """The buffer, grown to `size_bytes` if need be. The kernel asks for 1 MiB at most."""
        if len(self._memory) < size_bytes:
            self._memory = memoryview(bytearray(size_bytes))
        return self._memory


class OpenImage:
    """The state of one open regular file. `inode` holds its attributes; its size is the saved one."""

    __slots__ = (
        "_asked_until",
        "_buffer",
        "_held",
        "_held_index",
        "_read_until",
        "_reader",
        "_store",
        "dirty",
        "draft",
        "failure",
        "gone",
        "handles",
        "inode",
        "may_have_capability",
        "pending",
        "saving",
    )

    def __init__(
        self, store: Store, buffer: ReadBuffer, inode: Inode, pending: PendingName | None = None
    ) -> None:
        self.inode = inode
        self.pending = pending
        self.draft: Draft | None = None
        self.dirty = pending is not None
        self.failure: int | None = None
        self.gone = False
        # Until somebody has looked: a capability (capabilities(7)) among the extended attributes.
        self.may_have_capability = True
        self.handles = 0
        # Set by the adapter while a long save pauses; whoever changes the content waits for it.
        self.saving: object | None = None
        self._store = store
        self._buffer = buffer
        self._reader: ObjectReader | None = None
        self._held: memoryview | None = None
        self._held_index = -1
        # Where the last read ended, and how far the disk was asked to read ahead.
        self._read_until = 0
        self._asked_until = 0

    @property
    def size_bytes(self) -> int:
        """The size programs see: the draft's while there is one."""
        return self.inode.size_bytes if self.draft is None else self.draft.size_bytes

    @property
    def to_save(self) -> bool:
        """Whether there is content that the next flush has to save."""
        return self.dirty and not self.gone

    def reader(self) -> ObjectReader:
        """The reader of the saved version. Raises CorruptImage."""
        if self._reader is None:
            self._reader = self._store.open_object(self.inode)
        return self._reader

    def read_from(self, reader: ObjectReader) -> None:
        """Read from an object whose row and name are gone."""
        self._reader = reader

    def hold(self) -> None:
        """Open the object, so that the content stays readable when its name goes. Raises CorruptImage."""
        if self.inode.version_id is not None:
            self.reader().open()

    def read(self, offset: int, size_bytes: int, *, nowait: bool) -> memoryview:
        """Up to `size_bytes` from `offset`; the result is valid until the next read of any image.

        Raises CorruptImage, OSError; BlockingIOError with `nowait` where the disk would be waited for.
        """
        to_end_bytes = max(0, self.size_bytes - offset)
        size_bytes = min(size_bytes, to_end_bytes)
        if self.draft is not None:
            out = self._buffer.at_least(size_bytes)[:size_bytes]
            self.draft.read_into(offset, out)
            return out
        index, within = divmod(offset, SEGMENT_SIZE_BYTES)
        out = self._buffer.at_least(size_bytes + SEGMENT_SIZE_BYTES)
        filled = 0
        while filled < size_bytes:
            part_bytes = min(SEGMENT_SIZE_BYTES - within, size_bytes - filled)
            if within == 0 and (part_bytes == SEGMENT_SIZE_BYTES or filled + part_bytes == to_end_bytes):
                # Read to its end, a segment will hardly be asked for again.
                self.reader().read_segment(index, out[filled : filled + SEGMENT_SIZE_BYTES], nowait=nowait)
            else:
                segment = self._segment(index, nowait=nowait)
                out[filled : filled + part_bytes] = segment[within : within + part_bytes]
            filled += part_bytes
            index, within = index + 1, 0
        return out[:size_bytes]

    def ahead(self, offset: int, size_bytes: int, *, missed: bool) -> tuple[int, int] | None:
        """What the disk should read ahead, (offset, size in bytes), where one range is read after the other.

        `missed`: the page cache did not have this one. While it has, nothing is wanted.
        """
        end, on_and_on = offset + size_bytes, offset == self._read_until
        self._read_until = end
        wanted = on_and_on and (missed or offset < self._asked_until)
        if not wanted or min(end + _AHEAD_SIZE_BYTES // 2, self.size_bytes) <= self._asked_until:
            return None
        start, self._asked_until = max(end, self._asked_until), end + _AHEAD_SIZE_BYTES
        return start, self._asked_until - start

    def read_ahead(self, offset: int, size_bytes: int) -> None:
        """Have the disk read a range. From any thread; advice on a file that is closed does no harm."""
        reader = self._reader
        if reader is not None:
            reader.read_ahead(*_segments(offset, size_bytes))

    def is_cached(self, offset: int, size_bytes: int) -> bool:
        """Whether reading a range would hardly wait for the disk."""
        reader = self._reader
        return reader is None or reader.is_cached(*_segments(offset, size_bytes))

    def expect_reading(self, asked_size_bytes: int) -> None:
        """It will be read to its end; so much of its front was asked for before it was opened."""
        self._asked_until = max(self._asked_until, asked_size_bytes)

    def warm(self, offset: int, size_bytes: int) -> None:
        """Bring it into the page cache, however long that takes: for another thread."""
        reader = self._reader
        if reader is not None:
            reader.warm(*_segments(offset, size_bytes))

    def begin_draft(self, *, empty: bool = False) -> Draft:
        """The draft, started from the saved version, or from nothing where `empty`."""
        if empty:
            self.drop_draft()
        if self.draft is None:
            assert self.inode.image_id is not None
            allocator = self._store.allocator
            if empty or self.inode.version_id is None:
                self.draft = Draft(allocator, self.inode.image_id)
            else:
                reader = self.reader()
                reader.open()
                self.draft = Draft(allocator, self.inode.image_id, reader, self.inode.size_bytes)
        self.dirty = True
        return self.draft

    def prepare(self) -> None:
        """A file was just made or emptied: do ahead what saving it will take. Never fails."""
        if self.to_save and self.saving is None:
            self.begin_draft().prepare()

    def drop_draft(self) -> None:
        """The draft was saved or given up; what is read next comes from the saved version."""
        if self.draft is not None:
            self.draft.close()
            self.draft = None
        self.dirty = False
        self.failure = None

    def forget_version(self) -> None:
        """The saved version changed: let go of the old one's object."""
        self._held_index = -1
        self._asked_until = 0
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """The last handle closed."""
        self.drop_draft()
        self.forget_version()

    def _segment(self, index: int, *, nowait: bool) -> memoryview:
        if self._held is None:
            self._held = memoryview(bytearray(SEGMENT_SIZE_BYTES))
        if index != self._held_index:
            self._held_index = -1
            self.reader().read_segment(index, self._held, nowait=nowait)
            self._held_index = index
        return self._held


def _segments(offset: int, size_bytes: int) -> tuple[int, int]:
    """The first segment that a range touches, and how many."""
    first = offset // SEGMENT_SIZE_BYTES
    return first, -(-(offset + size_bytes) // SEGMENT_SIZE_BYTES) - first
