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

from pixstorefs.disk.files import sync_directory
from pixstorefs.errors import CorruptStore
from pixstorefs.index import copy as index_copy
from pixstorefs.index.merge import Merge, Merged
from pixstorefs.index.rows import Index, State
from pixstorefs.index.salvage import Pages, read_pages
from pixstorefs.objects.directory import object_path
from pixstorefs.store.copies import Copy, good_copies
from pixstorefs.store.header import COPIES_FOLDER, INDEX_FILE, LOST_FOUND, root_inode
from pixstorefs.store.numbers import BLOCK

_OBJECTS = "objects"
_SALVAGE = "salvage"
_SUFFIXES = ("", "-wal", "-shm")
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
            found.append(f"the damaged index is now {self.index_aside}")
        found += [f"{path} is gone: it was deleted, or saved again, since the copy" for path in self.lost]
        found += [f"{path} is an older version: the newest one's key is lost" for path in self.older]
        if self.objects_aside:
            folder = os.path.dirname(self.objects_aside[0])
            found.append(
                f"{len(self.objects_aside)} objects were saved since the copy, and their keys are lost with "
                f"the index; they are now in {folder}"
            )
        return found


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
        return Restored(images=_images_in(place.complete, index_key, store_id), index_aside=place.swap())
    place.clear()
    copies = good_copies(store_path, index_key, store_id)
    copy = copies[0] if copies else None
    try:
        pages = _salvage(place, index_key, need=copy is None)
        if copy is None and pages is None:
            raise CorruptStore(
                f"{place.index} cannot be read, and neither can its copies in {COPIES_FOLDER}/, and nothing "
                "else holds the keys of the images. Put index.db, or a file of copies/, back from a backup, "
                "and remove nothing from the store"
            )
        restored = Restored()
        if copy is not None:
            restored.copy_path, restored.copy_made_ns = copy.path, copy.made_ns
            restored.copy_token = copy.state.durable_token
        if pages is not None:
            restored.pages_read, restored.pages_lost = pages.number - len(pages.lost), len(pages.lost)
        objects = place.objects()
        merged, known = _build(place, index_key, store_id, copy, pages, objects)
        restored.images, restored.lost, restored.older = merged.images, merged.lost, merged.older
        restored.objects_aside = place.sort_objects(set(objects), known)
    except BaseException:
        place.clear()
        raise
    place.finish()
    restored.index_aside = place.swap()
    return restored


class _Place:
    """The files a restoring works with, and their moves."""

    def __init__(self, store_path: str, now_ns: Callable[[], int]) -> None:
        self.store = store_path
        self.index = os.path.join(store_path, INDEX_FILE)
        self.new = self.index + ".new"
        self.complete = self.index + ".restored"
        self.lost_found = os.path.join(store_path, LOST_FOUND)
        self.scratch = os.path.join(self.lost_found, _SALVAGE)
        self._objects = os.path.join(store_path, "objects")
        self._aside = os.path.join(self.lost_found, _OBJECTS)
        self._now_ns = now_ns

    def clear(self) -> None:
        """Remove what an earlier restoring did not finish."""
        for path in (self.new, self.complete):
            for suffix in _SUFFIXES:
                if os.path.lexists(path + suffix):
                    os.unlink(path + suffix)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def objects(self) -> dict[int, int]:
        """The size of every object, of those set aside by an earlier restoring too."""
        sizes: dict[int, int] = {}
        folders = [entry.path for entry in _scan(self._objects) if entry.name.isdecimal()]
        for folder in [self._aside, *folders]:
            for entry in _scan(folder):
                if entry.name.isdecimal() and entry.is_file(follow_symlinks=False):
                    sizes[int(entry.name)] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def sort_objects(self, objects: set[int], known: set[int]) -> list[str]:
        """Objects without a row are set aside, those with one come back; returns where the first are."""
        aside = []
        folders = {self._objects}
        for version_id in sorted(objects):
            path = object_path(self._objects, version_id)
            put_aside = os.path.join(self._aside, str(version_id))
            if version_id not in known:
                aside.append(put_aside)
                source, target = path, put_aside
            else:
                source, target = put_aside, path
            if os.path.lexists(source):
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                os.rename(source, target)
                folders |= {os.path.dirname(source), os.path.dirname(target), self.lost_found}
        for folder in sorted(folders):
            if os.path.isdir(folder):
                sync_directory(folder)
        return aside

    def finish(self) -> None:
        """The new index is complete."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.rename(self.new, self.complete)
        sync_directory(self.store)

    def swap(self) -> str | None:
        """Set the damaged index and its log aside, put the new one in place; returns where the old is.

        The index itself goes first: from then on nobody can open the store but another restoring.
        """
        present = [suffix for suffix in _SUFFIXES if os.path.lexists(self.index + suffix)]
        aside = None
        if present:
            aside = self._folder_for_index(resume="" not in present)
            os.makedirs(aside, 0o700, exist_ok=True)
            for suffix in present:
                os.rename(self.index + suffix, os.path.join(aside, INDEX_FILE + suffix))
            for folder in (aside, self.lost_found, self.store):
                sync_directory(folder)
        os.rename(self.complete, self.index)
        sync_directory(self.store)
        return aside

    def _folder_for_index(self, *, resume: bool) -> str:
        """A new folder; where only the log is left to move, the one that the index went to."""
        earlier = sorted(entry.path for entry in _scan(self.lost_found) if entry.name.startswith("index-"))
        if resume and earlier:
            return earlier[-1]
        name = time.strftime("index-%Y%m%dT%H%M%SZ", time.gmtime(self._now_ns() / 1e9))
        path = os.path.join(self.lost_found, name)
        return path if path not in earlier else f"{path}-{len(earlier)}"


def _salvage(place: _Place, key: bytes, *, need: bool) -> Pages | None:
    """What can be read of the index; where it is `need`ed, of a damaged copy if the index gives nothing."""
    os.makedirs(place.scratch, 0o700, exist_ok=True)
    folder = os.path.join(place.store, COPIES_FOLDER)
    damaged = [entry.path for entry in _scan(folder) if entry.name.endswith(".db")] if need else []
    for path in [place.index, *damaged]:
        pages = read_pages(path, key, place.scratch)
        if pages is not None and len(pages.lost) < pages.number:
            return pages
    return None


def _build(
    place: _Place,
    key: bytes,
    store_id: bytes,
    copy: Copy | None,
    pages: Pages | None,
    objects: dict[int, int],
) -> tuple[Merged, set[int]]:
    """Make the new index, synced; returns what became of the images and which objects it knows."""
    if copy is not None:
        shutil.copyfile(copy.path, place.new)
        os.chmod(place.new, 0o600)
    else:
        Index.create(place.new, key, store_id, root_inode(0))
    with closing(Index(place.new, key, store_id)) as index:
        with index.transaction():
            merge = Merge(index, objects, pages)
            merged = merge.merge()
            index.put_state(_raised(merge.state(), merge.highest(), max(objects, default=0)))
            known = index.known_objects(0)
        index.checkpoint()
        index.empty_log(checkpointed=True)
    for suffix in _SUFFIXES[1:]:
        if os.path.lexists(place.new + suffix):
            os.unlink(place.new + suffix)
    index_copy.sync_file(place.new)
    index_copy.verify(place.new, key, store_id)
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
