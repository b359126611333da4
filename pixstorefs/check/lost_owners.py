"""Bringing back what an owner had saved when it lost the store to another machine.

It set its index aside (`trust.aside`). The images that only that index knows are read with its keys and saved
anew, in `/lost+found`: what has their names by now is the other machine's, and nobody but a person can say
which is wanted.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing

from pixstorefs.check.lost_and_found import LostAndFound
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.errors import CorruptImage, CorruptStore
from pixstorefs.format import SEGMENT_SIZE_BYTES
from pixstorefs.index.rows import Index
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.reader import reader_of
from pixstorefs.records import Inode, Version
from pixstorefs.store.store import Store
from pixstorefs.trust.aside import note_brought_back, owners_aside, set_objects_aside, take_back_object
from pixstorefs.trust.header import INDEX_FILE


class LostOwners:
    """The owners that lost a store which is open now. `done` gets a line for each image."""

    def __init__(self, store: Store, lost_and_found: LostAndFound, done: list[str]) -> None:
        self._store = store
        self._objects = ObjectDirectory(store.folder, store.index.store_id)
        self._lost_and_found = lost_and_found
        self._done = done

    def bring_back(self) -> None:
        """Save what they had saved, as far as it can be read. The store's lock is held.

        An index that is damaged stays among those that were set aside. Raises NoSpace, CorruptStore, OSError
        where something cannot be saved: the next repair begins with that owner anew.
        """
        for folder in owners_aside(self._store.folder):
            with closing(folder):
                for name, version, inode in self._saved_last(folder):
                    if self._store.index.version(version.version_id) is None:
                        self._bring_back(name, version, inode)
                self._store.sync()
                note_brought_back(self._store.folder, folder)

    def _saved_last(self, folder: Folder) -> list[tuple[bytes, Version, Inode]]:
        """The current content of each image that no barrier of an index covers, and a name of it."""
        try:
            with closing(self._store.index_aside(os.path.join(folder.path, INDEX_FILE))) as index:
                return list(_not_durable(index))
        except CorruptStore as error:
            self._done.append(f"what is in {folder.path} cannot be brought back: {error}")
            return []

    def _bring_back(self, name: bytes, version: Version, inode: Inode) -> None:
        assert inode.image_id is not None
        try:
            take_back_object(self._store.folder, self._objects, version.version_id)
            reader = reader_of(self._objects, version, inode.image_id)
            with closing(reader):
                reader.verify()
                self._lost_and_found.save(name, inode, _segments(reader.read_segment, inode.size_bytes))
            # It is saved anew, with another key: the old object stays among those of no image.
            set_objects_aside(self._store.folder, self._objects, [version.version_id])
        except (CorruptImage, OddFile) as error:
            self._done.append(f"an image that an owner saved when it lost the store is lost: {error}")


def _not_durable(index: Index) -> Iterator[tuple[bytes, Version, Inode]]:
    state = index.state()
    for version in index.saved_after(state.durable_token, state.object_floor):
        inode = index.inode(version.ino)
        if inode is not None and inode.image_id is not None and inode.version_id == version.version_id:
            entries = index.names(inode.ino)
            yield entries[0].name if entries else b"image", version, inode


def _segments(read: Callable[[int, memoryview], None], size_bytes: int) -> Iterator[tuple[int, memoryview]]:
    buffer = memoryview(bytearray(SEGMENT_SIZE_BYTES))
    for index, start in enumerate(range(0, size_bytes, SEGMENT_SIZE_BYTES)):
        read(index, buffer)
        yield start, buffer[: size_bytes - start]
