"""Allocation: version ids, keys and room for content that is not saved yet."""

import logging
from collections.abc import Callable

from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.layout import SealedObject
from pixstorefs.objects.reader import ObjectReader
from pixstorefs.objects.sealing import new_version_key
from pixstorefs.objects.spill import Spill
from pixstorefs.objects.writer import ObjectWriter
from pixstorefs.store.numbers import Numbers

log = logging.getLogger(__name__)

# Each is a descriptor, and there may be thousands of files that were created and are not written to.
_PREPARED_OBJECTS = 32


class Allocator:
    """Gives drafts what they need and knows which objects are under construction."""

    def __init__(
        self,
        objects: ObjectDirectory,
        numbers: Numbers,
        *,
        padding: bool,
        random: Callable[[int], bytes],
    ) -> None:
        self.padding = padding
        # How many segments all drafts hold in memory together; kept by the drafts themselves.
        self.segments_in_memory = 0
        self._objects = objects
        self._numbers = numbers
        self._random = random
        self._unsaved: set[int] = set()
        self._leftovers: list[int] = []

    def new_image_id(self, ino: int) -> bytes:
        """A fresh id for the image with this inode: its number, to find it, and 8 random bytes."""
        return ino.to_bytes(8, "big") + self._random(8)

    def begin_object(self, image_id: bytes) -> ObjectWriter:
        """A writer for a new version of an image, under a key of its own."""
        # Added before it is counted up: a barrier's thread may read `object_floor` between the two lines.
        self._unsaved.add(self._numbers.next_version_id)
        version_id = self._numbers.version_id()
        return ObjectWriter(self._objects, new_version_key(version_id, self._random), image_id)

    def prepare_object(self, image_id: bytes) -> ObjectWriter | None:
        """A writer whose file is there already; None where that is not possible, or not sensible."""
        if len(self._unsaved) >= _PREPARED_OBJECTS:
            return None
        writer = self.begin_object(image_id)
        try:
            writer.create()
        except OSError:
            self.discard_object(writer)
            return None
        return writer

    def discard_object(self, writer: ObjectWriter) -> None:
        """The version is not saved after all: remove what was written of it."""
        self._discard(writer.abort, writer.key.version_id)

    def discard_finished(self, version_id: int) -> None:
        """The same for an object that was finished and has no row."""
        self._discard(lambda: self._objects.unlink([version_id]), version_id)

    def leftovers(self) -> list[int]:
        """Objects of drafts that could not be removed so far; the caller tries again."""
        found, self._leftovers = self._leftovers, []
        return found

    def _discard(self, remove: Callable[[], None], version_id: int) -> None:
        """Never fails: the save that this draft was for may have been done already."""
        try:
            remove()
        except OSError as error:
            log.warning("the object %d of a draft cannot be removed yet: %s", version_id, error)
            self._leftovers.append(version_id)
        self._unsaved.discard(version_id)

    def open_finished(self, sealed: SealedObject, image_id: bytes) -> ObjectReader:
        """A reader of an object that was finished and has no row yet."""
        return ObjectReader(self._objects, sealed, image_id)

    def saved_object(self, version_id: int) -> None:
        """The version has its row: it is no longer under construction."""
        self._unsaved.discard(version_id)

    def empty_object(self) -> SealedObject:
        """What an image without content has: a key and no object."""
        return SealedObject(new_version_key(self._numbers.version_id(), self._random), 0, b"", ())

    def begin_spill(self) -> Spill:
        """Encrypted scratch space for a draft that memory cannot hold."""
        return Spill(self._objects.create_nameless(), self._random, self._objects.make_room)

    def object_floor(self) -> int:
        """Every object on disk with a lower id belongs to a saved version."""
        return min(self._unsaved, default=self._numbers.next_version_id)
