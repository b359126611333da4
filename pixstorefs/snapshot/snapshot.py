"""The snapshot: another directory becomes a complete store, consistent as of one moment, beside the owner.

Its index is a copy of one moment (see `capture`); then come the objects it tells of, which stay in the store
meanwhile (see `hold`). The order of writes: objects, synced; the new index in place of the old one, by one
rename; only then objects that no longer belong to an image go. So an interrupted run leaves the snapshot
before it, whole; or where it was the first, a directory that is no store yet. The next one completes either.
Nothing replaces what was there before it is checked.
"""

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field

from pixstorefs.check.check import Check, Progress, is_set_aside
from pixstorefs.check.view import StoreView
from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.unlink_guard import held
from pixstorefs.errors import CorruptImage, CorruptStore, InvalidInput, NoSpace, SnapshotFailed
from pixstorefs.format import sealed_size
from pixstorefs.index import walk as index_walk
from pixstorefs.index.findings import Finding, Reaction
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import Index
from pixstorefs.index.walk import StoredImage
from pixstorefs.keys.secrets import Secret
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.reader import is_intact
from pixstorefs.objects.transfer import Transfer
from pixstorefs.snapshot.target import Target
from pixstorefs.store.opening import open_unlocked

# A newer index is taken where a store on a full disk gave objects away in spite of the hold.
_ROUNDS = 5
_SHOWN_PROBLEMS = 5


@dataclass(slots=True)
class Outcome:
    """What a run did. `recovered`: what the store's recovery decided, where an unclean stop had left it."""

    images: int = 0
    size_bytes: int = 0
    added: int = 0
    added_bytes: int = 0
    ways: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    recovered: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _New:
    """The snapshot that is not in place yet, for a check."""

    path: str
    folder: Folder
    index: Index
    objects: ObjectDirectory

    def newest_index(self) -> AbstractContextManager[Index]:
        return nullcontext(self.index)

    def needs_recovery(self) -> bool:
        return False  # it is made clean

    def damaged_copies(self) -> list[str]:
        return []  # they are made anew

    def doubt(self) -> str | None:
        return None  # it was made this moment


class Snapshot:
    """One run that makes or renews the snapshot of a store: `bring`, `verify` if wanted, `finish`.

    A context manager. It owns the target meanwhile; the store may be in use. Raises what opening the store
    does, InvalidInput, NotAStore or StoreInUse where the target cannot be taken, CorruptImage and
    CorruptStore where the store is damaged, NoSpace, SnapshotFailed.
    """

    def __init__(self, store_path: str, target: str, secret: Secret) -> None:
        self._store_path = store_path
        self._path = target
        self._secret = secret
        self._open = ExitStack()
        self.outcome = Outcome()

    def __enter__(self) -> "Snapshot":
        try:
            with _told(self._path):
                refuse_overlap(self._store_path, self._path)
                self._view = self._open.enter_context(StoreView(self._store_path, self._secret))
                self._recover()
                self._target = self._open.enter_context(closing(Target(self._path, self._view)))
        except BaseException:
            self._open.close()
            raise
        self._transfer = Transfer(self._view.objects, self._target.objects)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def bring(self, progress: Progress) -> None:
        """Copy the index and bring the objects that are missing, synced. What is in place is untouched."""
        with _told(self._path):
            with held(self._view.folder):
                for _ in range(_ROUNDS):
                    self._new = _New(
                        self._path, self._target.folder, self._target.take_index(), self._target.objects
                    )
                    missing = self._bring_objects(progress)
                    if not missing:
                        break
                    self._refuse(self._still_missing(missing))
                else:
                    raise NoSpace(
                        f"the disk under the store {self._store_path} is so full that it gives up replaced "
                        f"images at once, faster than they are brought to {self._path}. Make room there"
                    )
            self._refuse(_problems(Check(self._new, Progress()).run_index()))
            self._target.objects.sync_all()

    def verify(self, progress: Progress) -> None:
        """Open every object of the new snapshot. One that is damaged there alone is brought anew."""
        with _told(self._path):
            found = _problems(Check(self._new, progress).run())
            damaged = list(progress.bad_version_ids)
            if damaged:
                for stored in index_walk.current_of(self._new.index, damaged):
                    self._bring_object(stored)
                self._target.objects.sync_all()
                found = _problems(Check(self._new, progress).run())
            self._refuse(found)

    def finish(self) -> Outcome:
        """Put the new index in place, and remove what it does not know; then the run is durable."""
        with _told(self._path):
            outcome, new = self.outcome, self._new.index
            outcome.images = new.number_of_images()
            _, outcome.size_bytes = index_walk.total(new)
            outcome.ways = dict(self._transfer.ways)
            outcome.added = sum(outcome.ways.values())
            outcome.removed = self._target.place_index(new)
            return outcome

    def _recover(self) -> None:
        """A store that nobody has open and that was not closed cleanly recovers first, as by a mount."""
        if not self._view.needs_recovery():
            return
        read_only = not self._view.is_writable
        with closing(open_unlocked(self._store_path, self._secret, read_only=read_only)) as store:
            self.outcome.recovered += store.report

    def _bring_objects(self, progress: Progress) -> list[StoredImage]:
        """Bring what the new index tells of; returns what the store does not have."""
        progress.total_images, progress.total_bytes = index_walk.total(self._new.index)
        progress.images = progress.verified_bytes = 0
        missing = []
        for stored in index_walk.current_after(self._new.index, 0):
            if stored.version.runs and not self._has(stored) and not self._bring_object(stored):
                missing.append(stored)
            progress.images += 1
            progress.verified_bytes += stored.version.stored_size_bytes
            progress.moved()
        return missing

    def _has(self, stored: StoredImage) -> bool:
        """Whether the target has this very object, and not one that an interrupted run left half."""
        version = stored.version
        status = self._target.objects.status(version.version_id)
        if status is None or status.st_size != sealed_size(version.stored_size_bytes):
            return False
        if self._target.old is not None:
            known = self._target.old.version(version.version_id)
            if known is not None and (known.key, known.tag) == (version.key, version.tag):
                return True
        source = self._view.objects.status(version.version_id)
        return (source is not None and os.path.samestat(status, source)) or self._opens(stored)

    def _opens(self, stored: StoredImage) -> bool:
        return is_intact(self._target.objects, stored.version, stored.image_id)

    def _bring_object(self, stored: StoredImage) -> bool:
        """Bring one object; whether the store has it, whole by its size.

        What a repair set aside is known to be damaged, and no reason to have no snapshot.
        """
        version = stored.version
        status = self._view.objects.status(version.version_id)
        if status is None or status.st_size != sealed_size(version.stored_size_bytes):
            if not is_set_aside(path_of(self._new.index, version.ino)):
                return False
            if status is None:
                return True
        try:
            self._transfer.bring(version.version_id)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise SnapshotFailed(
                f"the snapshot {self._path} failed at {path_of(self._new.index, version.ino)}: its "
                f"{status.st_size} bytes are more than a file may have there (FAT32 takes 4 GiB at most). "
                "Give a directory on another file system"
            ) from error
        self.outcome.added_bytes += status.st_size
        return True

    def _still_missing(self, missing: list[StoredImage]) -> list[Finding]:
        """What the store should have by its index of now; the rest was given up on a full disk."""
        with self._view.newest_index() as index:
            return [
                Finding(
                    "image-damaged",
                    Reaction.RESTORE,
                    f"its object {stored.version.version_id} is missing or has the wrong size",
                    path_of(self._new.index, stored.version.ino),
                )
                for stored in missing
                if index_walk.is_current(index, stored.version.version_id)
            ]

    def _refuse(self, problems: list[Finding]) -> None:
        """Raise where the store is damaged: what is in place may have what it has lost."""
        if not problems:
            return
        lines = [f"{found.path or 'the index'}: {found.message}" for found in problems[:_SHOWN_PROBLEMS]]
        if len(problems) > len(lines):
            lines.append(f"and {len(problems) - len(lines)} more")
        error = CorruptStore if any(found.reaction is Reaction.MEND for found in problems) else CorruptImage
        raise error(
            f"the store {self._store_path} is damaged, so no snapshot was taken; {self._path} keeps what it "
            f"has. See `pixstorefs check {shlex.quote(self._store_path)}`. {'; '.join(lines)}"
        )


def refuse_overlap(store_path: str, target: str) -> None:
    """Neither may lie in the other. Both are real paths. Raises InvalidInput."""
    common = os.path.commonpath((store_path, target))
    if common in (store_path, target):
        raise InvalidInput(
            f"the store {store_path} and its snapshot {target} cannot lie in each other: "
            "give a directory beside the store, best on another disk"
        )


def _problems(findings: Iterator[Finding]) -> list[Finding]:
    return [found for found in findings if found.reaction is not Reaction.NOTE]


@contextmanager
def _told(target: str) -> Iterator[None]:
    """Turn the errors of the disk into ours."""
    whole = "What it held before is whole, and another run goes on from here"
    try:
        yield
    except OSError as error:
        if error.errno in FULL_ERRNOS:
            raise NoSpace(f"the disk has no room for the snapshot {target}. {whole}") from error
        place = f" ({error.filename})" if error.filename else ""
        raise SnapshotFailed(f"the snapshot {target} failed: {error.strerror}{place}. {whole}") from error
