"""The check: reads a whole store, or a part of it, and tells what is wrong. Changes nothing.

The store may be in use: what is checked is a copy of its index. So whatever seems to be missing or damaged is
looked up in the newest index before it is called so: it may have been replaced or deleted meanwhile. And a
store that was not closed cleanly is taken as the next mount will: what its recovery sees to is a note, not
damage.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.errors import CorruptImage, CorruptStore
from pixstorefs.format import SEGMENT_SIZE_BYTES, padded_size
from pixstorefs.index import walk as index_walk
from pixstorefs.index.findings import Finding, Reaction, Violation
from pixstorefs.index.invariants import INVARIANTS, images_have_content, integrity_problems
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import ROOT_INO, Index
from pixstorefs.index.walk import StoredImage
from pixstorefs.objects.directory import OBJECTS_PER_FOLDER, ObjectDirectory
from pixstorefs.objects.reader import reader_of
from pixstorefs.records import Version
from pixstorefs.trust.aside import number_of_owners_aside
from pixstorefs.trust.header import COPIES_FOLDER, LOST_FOUND, differing_copies
from pixstorefs.trust.snapshot_record import is_unfinished

# What the disk is asked for in advance: enough to keep it busy, too little to push others out of the cache.
_AHEAD_BYTES = 16 << 20
_AHEAD_OBJECTS = 32
_MOST_SUSPECTS = 64
_SUSPECTED_FOR_S = 5.0


@dataclass(slots=True)
class Progress:
    """How far a check is; `moved` is called whenever it got further.

    `after_version_id` and `bad_version_ids` are all that another check needs to go on from here; it counts on
    from `images` and `finished_bytes`, which leave the image out that this one is at.
    """

    total_images: int = 0
    total_bytes: int = 0
    images: int = 0
    verified_bytes: int = 0
    finished_bytes: int = 0
    after_version_id: int = 0
    bad_version_ids: list[int] = field(default_factory=list)
    moved: Callable[[], None] = lambda: None


class Checked(Protocol):
    """What is checked: a `StoreView`, or a snapshot that is not in place yet."""

    path: str
    folder: Folder
    objects: ObjectDirectory

    @property
    def index(self) -> Index:
        """The index, as it was at one moment."""

    def newest_index(self) -> AbstractContextManager[Index]:
        """The index as it is now."""

    def needs_recovery(self) -> bool:
        """Whether the store was not closed cleanly, and nobody has it open."""

    def damaged_copies(self) -> list[str]:
        """Names of copies of the index that are there and of no use."""

    def doubt(self) -> str | None:
        """Why the index is not the newest one, where nobody has the store open and something says so."""


class Check:
    """One check of a store. `run` yields what it finds, as it finds it."""

    def __init__(self, view: Checked, progress: Progress, *, idle: bool = False) -> None:
        """`idle`: the store is open, and known to have no drafts."""
        self._view = view
        self._idle = idle
        self._index = view.index
        self._unfinished = is_unfinished(view.folder)
        self._progress = progress

    def run(self) -> Iterator[Finding]:
        """Check everything, or what is behind `progress` where that comes from an earlier check."""
        if self._view.needs_recovery():
            yield Finding(
                "not-closed",
                Reaction.NOTE,
                "the store was not closed cleanly: it recovers at the next mount",
            )
        if self._unfinished:
            yield Finding(
                "snapshot-unfinished",
                Reaction.NOTE,
                "a snapshot into this directory was interrupted: it shows what the one before did, and "
                "pixstorefs snapshot completes it",
            )
        if kept := number_of_owners_aside(self._view.folder):
            yield Finding(
                "owner-aside",
                Reaction.RESTORE,
                f"{kept} times an owner on another machine lost the store. What it had saved last is in "
                f"{LOST_FOUND} in the store's own folder: pixstorefs check --repair brings it back",
            )
        for name in differing_copies(self._view.folder):
            yield Finding(
                "copy-differs",
                Reaction.NOTE,
                f"{name} and its copy in copies/ differ: one is missing or damaged, or a change of the keys "
                "was interrupted. The next mount makes both whole again",
            )
        for name in self._view.damaged_copies():
            yield Finding(
                "copy-damaged",
                Reaction.NOTE,
                f"{COPIES_FOLDER}/{name}, a copy of the index, cannot be read; the next one replaces it",
            )
        try:
            doubt = self._view.doubt()
            if doubt is not None:
                yield Finding(
                    "index-outdated",
                    Reaction.MEND,
                    f"the index is older than its images: {doubt}. What was saved since is not in it; "
                    "pixstorefs check --repair brings back what the copies of the index and its log know",
                )
            yield from self.run_index()
            self._progress.total_images, self._progress.total_bytes = index_walk.total(self._index)
            known_bad, self._progress.bad_version_ids = self._progress.bad_version_ids, []
            yield from self._check_images(index_walk.current_of(self._index, known_bad), again=True)
            yield from self._check_images(
                index_walk.current_after(self._index, self._progress.after_version_id)
            )
            yield from self._check_strangers()
        except CorruptStore as error:
            # A page that does not open may meet any question; the first says what there is to say.
            yield Finding("index-damaged", Reaction.MEND, str(error))

    def run_below(self, ino: int) -> Iterator[Finding]:
        """Check the content of what is at or below one inode only."""
        try:
            version_ids, without = index_walk.content_below(self._index, ino)
            for violation in images_have_content(self._index) if without else ():
                if violation.ino in without:
                    yield self._told(violation)
            stored = list(index_walk.current_of(self._index, version_ids))
            self._progress.total_images = len(stored)
            self._progress.total_bytes = sum(image.version.stored_size_bytes for image in stored)
            yield from self._check_images(stored)
        except CorruptStore as error:
            yield Finding("index-damaged", Reaction.MEND, str(error))

    def inode_at(self, names: list[bytes]) -> int | None:
        """The inode number of a path inside the store, None where there is none."""
        ino = ROOT_INO
        for name in names:
            inode = self._index.lookup(ino, name)
            if inode is None:
                return None
            ino = inode.ino
        return ino

    # The index

    def run_index(self) -> Iterator[Finding]:
        """Check the index alone: SQLite's structures, every page, and our invariants."""
        for problem in integrity_problems(self._index):
            yield Finding(
                "index-damaged",
                Reaction.MEND,
                f"the index is damaged: {problem}. The images' objects are untouched; "
                "pixstorefs check --repair restores the index",
            )
        for invariant in INVARIANTS:
            for violation in invariant(self._index):
                yield self._told(violation)

    def _told(self, violation: Violation) -> Finding:
        path = None
        if violation.name is not None and violation.parent is not None:
            name = violation.name.decode("utf-8", "backslashreplace")
            above = "" if violation.parent == ROOT_INO else path_of(self._index, violation.parent) + "/"
            path = above + name
        elif violation.ino is not None:
            path = path_of(self._index, violation.ino)
        inode = self._index.inode(violation.ino) if violation.ino is not None else None
        advice = "restore it from a backup, or delete it"
        reaction = violation.reaction
        if reaction is Reaction.MEND:
            advice = "unmount, and run `pixstorefs check --repair`"
        elif is_set_aside(path):
            reaction = Reaction.NOTE
        return Finding(
            violation.kind,
            reaction,
            f"{violation.what}: {advice}",
            path,
            violation.ino,
            inode.image_id if inode else None,
            violation.version_id,
        )

    # Images

    def _check_images(self, images: Iterable[StoredImage], *, again: bool = False) -> Iterator[Finding]:
        """Verify content. `again`: what was bad before, and is counted already."""
        progress = self._progress
        suspects = _Suspects()
        for stored in self._read_ahead(images):
            damage = self._damage(stored, count=not again)
            if damage is not None:
                suspects.add(stored, damage)
                # Also for a check that is interrupted before they are judged.
                progress.bad_version_ids.append(stored.version.version_id)
            if not again:
                progress.images += 1
                progress.finished_bytes = progress.verified_bytes
                progress.after_version_id = stored.version.version_id
            progress.moved()
            if suspects.are_due():
                yield from self._judged(suspects.take())
        yield from self._judged(suspects.take())

    def _read_ahead(self, images: Iterable[StoredImage]) -> Iterator[StoredImage]:
        window: deque[StoredImage] = deque()
        window_bytes = 0
        for stored in images:
            if stored.version.runs:
                self._view.objects.read_ahead(stored.version.version_id, _AHEAD_BYTES, anew=True)
            window.append(stored)
            window_bytes += stored.version.stored_size_bytes
            while window and (window_bytes > _AHEAD_BYTES or len(window) > _AHEAD_OBJECTS):
                window_bytes -= window[0].version.stored_size_bytes
                yield window.popleft()
        yield from window

    def _damage(self, stored: StoredImage, *, count: bool) -> str | None:
        """What is wrong with the content of an image, None where it is whole."""
        version = stored.version
        contradiction = contradiction_of(version)
        if contradiction is not None:
            return (
                f"image {stored.image_id.hex()} is damaged: {contradiction}. Every other image works; "
                "restore this one from a backup, or delete it"
            )
        reader = reader_of(self._view.objects, version, stored.image_id)
        try:
            for size_bytes in reader.verified_segments():
                if count:
                    self._progress.verified_bytes += size_bytes
                    if version.stored_size_bytes > _AHEAD_BYTES:
                        self._progress.moved()
        except CorruptImage as error:
            return str(error)
        except OSError as error:
            return (
                f"image {stored.image_id.hex()} is damaged: its object {version.version_id} cannot be read "
                f"({error.strerror}). Every other image works; restore this one from a backup, or delete it"
            )
        finally:
            reader.close()
        return None

    def _judged(self, suspects: list[tuple[StoredImage, str]]) -> Iterator[Finding]:
        """What damage means; nothing where the image has another content by now."""
        if not suspects:
            return
        with self._view.newest_index() as index:
            for stored, damage in suspects:
                if index_walk.is_current(index, stored.version.version_id):
                    yield self._meaning(index, stored, damage)
                else:
                    self._progress.bad_version_ids.remove(stored.version.version_id)

    def _meaning(self, index: Index, stored: StoredImage, damage: str) -> Finding:
        version = stored.version
        path = path_of(index, version.ino)
        kind, reaction = "image-damaged", Reaction.RESTORE
        if version.token > index.state().durable_token and self._view.needs_recovery():
            kind, reaction = "will-fall-back", Reaction.NOTE
            damage = (
                "its last save did not reach the disk. At the next mount the version before it comes back; "
                "an image that was new leaves the tree"
            )
        elif is_set_aside(path):
            kind, reaction = "image-set-aside", Reaction.NOTE
        return Finding(kind, reaction, damage, path, version.ino, stored.image_id, version.version_id)

    # Objects nobody knows

    def _check_strangers(self) -> Iterator[Finding]:
        try:
            numbers = self._view.objects.folders()
        except (OSError, OddFile) as error:
            why = error.strerror if isinstance(error, OSError) else error
            yield Finding(
                "objects-unreadable",
                Reaction.MEND,
                f"the folder of objects cannot be read ({why}): no image can be shown",
            )
            return
        for number in numbers:
            yield from self._strangers_in(number)

    def _strangers_in(self, number: int) -> Iterator[Finding]:
        # What has no row in a copy of the index that is older than the list of objects, in spite of an id
        # below the floor, and is still there, can be neither about to be saved nor just deleted.
        try:
            on_disk = self._view.objects.ids_in(number)
        except OSError:
            return  # damaged, which its images tell
        first_version_id = number * OBJECTS_PER_FOLDER
        behind = first_version_id + OBJECTS_PER_FOLDER
        strange = on_disk - index_walk.rows_between(self._index, first_version_id, behind)
        if not self._idle and not self._index.state().clean:
            # Drafts that are being written, or that recovery removes.
            floor = index_walk.object_floor(self._index)
            strange = {version_id for version_id in strange if version_id < floor}
        if not strange:
            return
        with self._view.newest_index() as index:
            known = index_walk.rows_between(index, first_version_id, behind)
            drafts_from = behind if self._idle or index.state().clean else index_walk.object_floor(index)
        for version_id in sorted(strange - known):  # saved since, by a mount that has begun
            if version_id >= drafts_from or not self._view.objects.exists(version_id):
                continue
            yield Finding(
                "stray-object",
                # Of an interrupted snapshot: the next one wants it, or removes it.
                Reaction.NOTE if self._unfinished else Reaction.TIDY,
                f"the object {version_id} belongs to no image: it takes space and cannot be read. "
                f"`pixstorefs check --repair` moves it to {LOST_FOUND} in the store's own folder",
                version_id=version_id,
            )


class _Suspects:
    """Images that seem to be damaged, judged some at a time: each look at the newest index may be a copy."""

    def __init__(self) -> None:
        self._found: list[tuple[StoredImage, str]] = []
        self._since_s = 0.0

    def add(self, stored: StoredImage, damage: str) -> None:
        if not self._found:
            self._since_s = time.monotonic()
        self._found.append((stored, damage))

    def are_due(self) -> bool:
        waited_s = time.monotonic() - self._since_s
        return bool(self._found) and (len(self._found) >= _MOST_SUSPECTS or waited_s >= _SUSPECTED_FOR_S)

    def take(self) -> list[tuple[StoredImage, str]]:
        found, self._found = self._found, []
        return found


def contradiction_of(version: Version) -> str | None:
    """What in a version's row cannot be so, whatever its object holds."""
    end = segments = 0
    for first, count in version.runs:
        if count < 1 or first < end + (end > 0):
            return "the index tells its segments out of order"
        end = first + count
        segments += count
    if not version.runs:
        return None if version.stored_size_bytes == 0 else "the index does not tell where its segments belong"
    last_bytes = min(version.size_bytes - (end - 1) * SEGMENT_SIZE_BYTES, SEGMENT_SIZE_BYTES)
    payload_bytes = (segments - 1) * SEGMENT_SIZE_BYTES + last_bytes
    if last_bytes < 1 or version.stored_size_bytes not in (payload_bytes, padded_size(payload_bytes)):
        return "the index tells sizes that do not fit together"
    return None


def is_set_aside(path: str | None) -> bool:
    """Whether a path inside the mount is where a repair put it (or the directory it puts things in)."""
    return path is not None and path.split("/")[0] == LOST_FOUND
