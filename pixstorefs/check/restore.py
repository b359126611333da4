"""Restoring the index of a store: the newest good copy, and whatever can still be read of the index itself.

Nothing is deleted: the damaged index goes to `lost+found/index-<time>/`, objects that no row knows (saved
since the copy, their keys are lost) to `lost+found/objects/`. The new index is complete, verified and synced
under another name before the damaged one is touched, so a kill at any moment costs another run and no more.
It is left as after an unclean stop: the next opening verifies what was saved last.
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

from pixstorefs.disk.files import copy_file, sync_directory
from pixstorefs.errors import CorruptStore
from pixstorefs.index import copy as index_copy
from pixstorefs.index.merge import Merge, Merged
from pixstorefs.index.rows import Index, State
from pixstorefs.index.salvage import Salvage, salvage
from pixstorefs.objects.directory import object_path, version_id_of
from pixstorefs.store.aside import (
    INDEX_SUFFIXES,
    keep_copies,
    make_folders,
    new_index_folder,
    newest_index_folder,
    objects_aside,
    set_objects_aside,
)
from pixstorefs.store.barrier_record import remove_record
from pixstorefs.store.copies import good_copies
from pixstorefs.store.header import COPIES_FOLDER, COPY_NAMES, INDEX_FILE, LOST_FOUND, root_inode
from pixstorefs.store.numbers import BLOCK
from pixstorefs.store.proof import witnesses

_SALVAGE = "index.salvage"
_NEW = "index.new"
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
    lost: list[str] = field(
        default_factory=list
    )  # not there any more: deleted, or saved again, since the copy
    older: list[str] = field(default_factory=list)  # an older version of them is back
    objects_aside: list[str] = field(default_factory=list)  # saved since the copy; their keys are lost
    index_aside: str | None = None  # where the damaged index is

    def lines(self) -> list[str]:
        """What was done and what is missing, a line each."""
        sources = []
        if self.copy_path is not None:
            made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.copy_made_ns // 10**9))
            sources.append(f"its copy of {made}")
        if self.pages_read:
            sources.append(f"{self.pages_read} of its own pages ({self.pages_lost} could not be read)")
        found = [f"the index was restored from {' and '.join(sources) or 'what was restored before'}"]
        if self.index_aside is not None:
            found.append(
                f"the damaged index is now {self.index_aside}, with the copies that there were: remove that "
                "folder when nothing is missing"
            )
        found += [f"{path} is gone: it was deleted, or saved again, since the copy" for path in self.lost]
        found += [f"{path} is an older version: the newest one's key is lost" for path in self.older]
        if self.objects_aside:
            folder = os.path.dirname(self.objects_aside[0])
            found.append(
                f"{len(self.objects_aside)} objects were saved since the copy, and their keys are lost with "
                f"the index; they are now in {folder}"
            )
        return found


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
    found = witnesses(store_path, index_path, index_key, store_id)
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
        copy_file(copy.path, new)
    else:
        Index.create(new, index_key, store_id, root_inode(0))
    merged, known = _merge(new, index_key, store_id, pages, objects_in(store_path), found.newest_from_token)
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
    place = _Place(store_path, now_ns)
    if not os.path.lexists(place.index) and os.path.lexists(place.complete):
        # Killed between the two moves; everything else was done.
        index_copy.verify(place.complete, index_key, store_id)
        restored = Restored(images=_images_in(place.complete, index_key, store_id))
    else:
        place.clear()
        try:
            make_folders(store_path, LOST_FOUND)
            make_folders(store_path, _SALVAGE)
            built = build_index(store_path, index_key, store_id, place.scratch)
            restored = built.restored
            restored.objects_aside = place.sort_objects(set(objects_in(store_path)), built.known)
        except BaseException:
            place.clear()
            raise
        place.finish(built.path)
    restored.index_aside = place.swap()
    remove_record(store_path)  # it speaks of the index that was replaced
    return restored


class _Place:
    """The files a restoring works with, and their moves."""

    def __init__(self, store_path: str, now_ns: Callable[[], int]) -> None:
        self.store = store_path
        self.index = os.path.join(store_path, INDEX_FILE)
        self.complete = self.index + ".restored"
        self.scratch = os.path.join(store_path, _SALVAGE)
        self._objects = os.path.join(store_path, "objects")
        self._now_ns = now_ns

    def clear(self) -> None:
        """Remove what an earlier restoring did not finish."""
        if os.path.lexists(self.complete):
            os.unlink(self.complete)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def sort_objects(self, objects: set[int], known: set[int]) -> list[str]:
        """Objects without a row are set aside, those with one come back; returns where the first are."""
        aside = objects_aside(self.store)
        folders = {aside}
        for version_id in sorted(objects & known):
            path = object_path(self._objects, version_id)
            put_aside = os.path.join(aside, str(version_id))
            if not os.path.lexists(path) and os.path.lexists(put_aside):
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                os.rename(put_aside, path)
                folders |= {self._objects, os.path.dirname(path)}
        for folder in sorted(folders):
            if os.path.isdir(folder):
                sync_directory(folder)
        paths = (object_path(self._objects, version_id) for version_id in sorted(objects - known))
        return set_objects_aside(self.store, [path for path in paths if os.path.lexists(path)])

    def finish(self, built: str) -> None:
        """The new index is complete."""
        os.rename(built, self.complete)
        sync_directory(self.store)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def swap(self) -> str:
        """Set the damaged index and its log aside, put the new one in place; returns where the old is.

        The index itself goes first: from then on nobody can open the store but another restoring.
        """
        present = [suffix for suffix in INDEX_SUFFIXES if os.path.lexists(self.index + suffix)]
        # Where only the log is left to move, an earlier run was killed in between.
        aside = newest_index_folder(self.store) if present and "" not in present else None
        aside = aside or new_index_folder(self.store, self._now_ns())
        keep_copies(self.store, aside)
        for suffix in present:
            os.rename(self.index + suffix, os.path.join(aside, INDEX_FILE + suffix))
        for folder in (aside, os.path.dirname(aside), self.store):
            sync_directory(folder)
        os.rename(self.complete, self.index)
        sync_directory(self.store)
        return aside


def objects_in(store_path: str) -> dict[int, int]:
    """The size of every object, of those that were set aside, too. Raises OSError."""
    sizes: dict[int, int] = {}
    objects = os.path.join(store_path, "objects")
    folders = [entry.path for entry in _scan(objects) if entry.is_dir(follow_symlinks=False)]
    for folder in [objects_aside(store_path), *folders]:
        for entry in _scan(folder):
            version_id = version_id_of(entry.name)
            if version_id is not None and entry.is_file(follow_symlinks=False):
                sizes[version_id] = entry.stat(follow_symlinks=False).st_size
    return sizes


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
    for suffix in INDEX_SUFFIXES[1:]:
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


def _scan(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
