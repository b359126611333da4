"""Restoring the index of a store: the newest good copy, and whatever can still be read of the index itself.

Nothing is deleted: the damaged index goes to `lost+found/index-<time>/`, objects that no row knows (saved
since the copy, their keys are lost) to `lost+found/objects/`. The new index is complete, verified and synced
under another name before the damaged one is touched, so a kill at any moment costs another run and no more.
It is left as after an unclean stop: the next opening verifies what was saved last.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace

from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.temporary import private_folder
from pixstorefs.errors import CorruptStore
from pixstorefs.index import copy as index_copy
from pixstorefs.index.rows import Index, State
from pixstorefs.objects.directory import OBJECTS_FOLDER, ObjectDirectory, number_of
from pixstorefs.objects.layout import LAST_VERSION_ID
from pixstorefs.objects.transfer import copy_file
from pixstorefs.printable import ReportLine
from pixstorefs.salvage.merge import Merge, Merged
from pixstorefs.salvage.pages import Salvage, salvage
from pixstorefs.store.numbers import BLOCK
from pixstorefs.trust.aside import (
    keep_copies,
    new_index_folder,
    newest_index_folder,
    objects_aside,
    set_objects_aside,
)
from pixstorefs.trust.barrier_record import remove_record
from pixstorefs.trust.copies import good_copies
from pixstorefs.trust.header import (
    COPIES_FOLDER,
    COPY_NAMES,
    INDEX_FILE,
    INDEX_FILES,
    LOG_SUFFIXES,
    LOST_FOUND,
    root_inode,
)
from pixstorefs.trust.proof import witnesses

_NEW = "index.new"
_BEGUN = INDEX_FILE + ".new"
_COMPLETE = INDEX_FILE + ".restored"
# What was used since the copy and left no trace (names, folders, drafts) is far below this.
_GAP = 64 * BLOCK


@dataclass(slots=True)
class Restored:
    """What a restoring did, for people; paths of images are inside the mount."""

    copy_path: str | None = None  # None: no copy was needed, or there was none
    copy_made_ns: int = 0
    copy_token: int = 0
    pages_read: int = 0  # of the damaged index
    pages_lost: int = 0
    images: int = 0
    # Not there any more: deleted, or saved again, since the copy.
    lost: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)  # an older version of them is back
    objects_aside: list[str] = field(default_factory=list)  # saved since the copy; their keys are lost
    index_aside: str | None = None  # where the damaged index is

    def lines(self) -> list[ReportLine]:
        """What was done and what is missing, a line each."""
        sources = []
        if self.copy_path is not None:
            made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.copy_made_ns // 10**9))
            sources.append(f"its copy of {made}")
        if self.pages_read:
            sources.append(f"{self.pages_read} of its own pages ({self.pages_lost} could not be read)")
        told = [f"the index was restored from {' and '.join(sources) or 'what was restored before'}"]
        if self.index_aside is not None:
            told.append(
                f"the damaged index is now {self.index_aside}, with the copies that there were: remove that "
                "folder when nothing is missing"
            )
        if self.objects_aside:
            folder = os.path.dirname(self.objects_aside[0])
            told.append(
                f"{len(self.objects_aside)} objects were saved since the copy, and their keys are lost with "
                f"the index; they are now in {folder}"
            )
        gone = "is gone: it was deleted, or saved again, since the copy"
        older = "is an older version: the newest one's key is lost"
        return [
            *map(ReportLine, told),
            *(ReportLine(f"{path} {gone}", f"an image {gone}") for path in self.lost),
            *(ReportLine(f"{path} {older}", f"an image {older}") for path in self.older),
        ]


@dataclass(frozen=True, slots=True)
class Built:
    """An index that was made anew: its file, what became of the images, and the objects it knows."""

    path: str
    restored: Restored
    known: set[int]


def build_index(store_path: str, index_key: bytes, store_id: bytes, folder: str) -> Built:
    """Make an index anew, synced and verified, in the empty folder `folder`. The store stays as it is.

    Raises CorruptStore where there is nothing to restore from, NoSpace, OSError.
    """
    index_path = os.path.join(store_path, INDEX_FILE)
    with closing(Folder.at(store_path)) as store:
        found = witnesses(store, index_path, index_key, store_id)
        objects = objects_in(store)
    copies = good_copies(store_path, index_key, store_id)
    copy = copies[0] if copies else None
    pages = salvage(index_path, index_key, folder, use_log=not found.log_is_older)
    if pages is None and copy is None:
        pages = _of_damaged_copies(store_path, index_key, folder)
    if copy is None and pages is None:
        raise CorruptStore(
            f"{index_path} cannot be read, and neither can its copies in {COPIES_FOLDER}/, and nothing "
            "else holds the keys of the images. Put index.db, or a file of copies/, back from a backup, "
            "and remove nothing from the store"
        )
    new = os.path.join(folder, _NEW)
    if copy is not None:
        source, target = Folder.at(os.path.dirname(copy.path)), Folder.at(folder)
        with closing(source), closing(target):
            copy_file(source, os.path.basename(copy.path), target, _NEW)
    else:
        Index.create(new, index_key, store_id, root_inode(0))
    merged, known = _merge(new, index_key, store_id, pages, objects, found.newest_from_token)
    restored = Restored(images=merged.images, lost=merged.lost, older=merged.older)
    if copy is not None:
        restored.copy_path, restored.copy_made_ns = copy.path, copy.made_ns
        restored.copy_token = copy.state.durable_token
    if pages is not None:
        restored.pages_read, restored.pages_lost = pages.number - len(pages.lost), len(pages.lost)
    return Built(new, restored, known)


def restore_index(
    store_path: str, index_key: bytes, store_id: bytes, *, now_ns: Callable[[], int] = time.time_ns
) -> Restored:
    """Replace a damaged or missing index. Whoever calls holds the store's lock (`Ownership`).

    Raises CorruptStore where there is nothing to restore from, NoSpace, OSError; nothing was changed then.
    """
    with closing(Folder.at(store_path)) as store:
        place = _Place(store, now_ns)
        if store.status(INDEX_FILE) is None and store.status(_COMPLETE) is not None:
            # Killed between the two moves; everything else was done.
            complete = os.path.join(store_path, _COMPLETE)
            index_copy.verify(complete, index_key, store_id)
            restored = Restored(images=_images_in(complete, index_key, store_id))
        else:
            restored = _build_in(place, store_path, index_key, store_id)
        restored.index_aside = place.swap()
        remove_record(store)  # it speaks of the index that was replaced
    return restored


def _build_in(place: "_Place", store_path: str, index_key: bytes, store_id: bytes) -> Restored:
    """Make the new index, put it beside the damaged one, and sort the objects by what it knows."""
    place.clear()
    try:
        with scratch_folder(store_path) as folder:
            built = build_index(store_path, index_key, store_id, folder)
            restored = built.restored
            restored.objects_aside = place.sort_objects(store_id, built.known)
            place.finish(folder)
    except BaseException:
        place.clear()
        raise
    return restored


@contextmanager
def scratch_folder(store_path: str) -> Iterator[str]:
    """A private folder in which the index of a store can be made anew. Raises NoSpace."""
    with closing(Folder.at(store_path)) as store:
        # The index as it is, what stands in for its lost pages, and the new one.
        size_bytes = 3 * sum(_size_bytes(store, name) for name in INDEX_FILES)
    with private_folder(size_bytes, f"restoring the index of {store_path}") as folder:
        yield folder


def _size_bytes(store: Folder, name: str) -> int:
    """What a file takes on the disk: its length may be anything."""
    status = store.file_status(name)
    return min(status.st_blocks * 512, status.st_size) if status is not None else 0


class _Place:
    """The files a restoring works with, and their moves."""

    def __init__(self, store: Folder, now_ns: Callable[[], int]) -> None:
        self.store = store
        self._now_ns = now_ns

    def clear(self) -> None:
        """Remove what an earlier restoring did not finish."""
        self.store.unlink_if_there(_BEGUN)
        self.store.unlink_if_there(_COMPLETE)

    def sort_objects(self, store_id: bytes, known: set[int]) -> list[str]:
        """Objects without a row are set aside, those with one come back; returns where the first are."""
        objects = ObjectDirectory(self.store, store_id)
        with objects_aside(self.store) as aside:
            for version_id in sorted(_ids_in(aside) & known):
                if objects.exists(version_id):
                    continue
                with closing(objects.folder_of(version_id, make=True)) as folder:
                    aside.rename(str(version_id), str(version_id), folder)
                    folder.sync()
                objects.sync([version_id])
            aside.sync()
        strangers = [objects.ids_in(number) - known for number in objects.folders()]
        return set_objects_aside(self.store, objects, sorted(set().union(*strangers)))

    def finish(self, folder: str) -> None:
        """The new index is complete, in another folder."""
        with closing(Folder.at(folder)) as made:
            copy_file(made, _NEW, self.store, _BEGUN)
        self.store.rename(_BEGUN, _COMPLETE)
        self.store.sync()

    def swap(self) -> str:
        """Set the damaged index and its log aside, put the new one in place; returns where the old is.

        The index itself goes first: from then on nobody can open the store but another restoring.
        """
        present = [name for name in INDEX_FILES if self.store.status(name) is not None]
        # Where only the log is left to move, an earlier run was killed in between.
        interrupted = present and INDEX_FILE not in present
        earlier = newest_index_folder(self.store) if interrupted else None
        with closing(earlier or new_index_folder(self.store, self._now_ns())) as aside:
            keep_copies(self.store, aside)
            for name in present:
                self.store.rename(name, name, aside)
            aside.sync()
            self.store.sync()
            self.store.rename(_COMPLETE, INDEX_FILE)
            self.store.sync()
            return aside.path


def objects_in(store: Folder) -> dict[int, int]:
    """The size of every object, of those that were set aside, too. Raises OSError, OddFile."""
    sizes: dict[int, int] = {}
    with suppress(FileNotFoundError), closing(store.folder(f"{LOST_FOUND}/{OBJECTS_FOLDER}")) as aside:
        sizes |= _sizes_in(aside)
    objects = ObjectDirectory(store, b"")
    with suppress(FileNotFoundError):
        for number in objects.folders():
            with suppress(FileNotFoundError, OddFile), closing(objects.folder_numbered(number)) as folder:
                sizes |= _sizes_in(folder)
    return sizes


def _sizes_in(folder: Folder) -> dict[int, int]:
    found = {}
    for version_id in _ids_in(folder):
        status = folder.file_status(str(version_id))
        if status is not None:
            found[version_id] = status.st_size
    return found


def _ids_in(folder: Folder) -> set[int]:
    numbers = (number_of(name, LAST_VERSION_ID) for name in folder.names())
    return {number for number in numbers if number is not None}


def _of_damaged_copies(store_path: str, key: bytes, folder: str) -> Salvage | None:
    """What can be read of the copies, where none is whole and the index gives nothing."""
    for name in COPY_NAMES:
        pages = salvage(os.path.join(store_path, COPIES_FOLDER, name), key, folder)
        if pages is not None:
            return pages
    return None


def _merge(
    path: str,
    key: bytes,
    store_id: bytes,
    pages: Salvage | None,
    objects: dict[int, int],
    newest_from_token: int | None,
) -> tuple[Merged, set[int]]:
    """Bring the index at `path` up to date, synced; returns what became of the images, and known objects."""
    with closing(Index(path, key, store_id)) as index:
        with index.transaction():
            merge = Merge(index, objects, pages, newest_from_token=newest_from_token)
            merged = merge.merge()
            index.put_state(_raised(merge.state(), merge.highest(), max(objects, default=0)))
            known = index.known_objects(0)
        index.checkpoint()
        index.empty_log(checkpointed=True)
    for suffix in LOG_SUFFIXES:
        if os.path.lexists(path + suffix):
            os.unlink(path + suffix)
    index_copy.sync_file(path)
    index_copy.verify(path, key, store_id)
    return merged, known


def _raised(state: State, highest: State, highest_object: int) -> State:
    """Numbers far above every one that was ever seen: none is used twice."""
    return replace(
        state,
        next_ino=max(state.next_ino, highest.next_ino + 1) + _GAP,
        next_cookie=max(state.next_cookie, highest.next_cookie + 1) + _GAP,
        next_version_id=max(state.next_version_id, highest.next_version_id + 1, highest_object + 1) + _GAP,
        next_token=max(state.next_token, highest.next_token + 1) + _GAP,
        clean=False,
    )


def _images_in(path: str, key: bytes, store_id: bytes) -> int:
    with closing(Index(path, key, store_id, read_only=True)) as index:
        return index.number_of_images()
