"""The snapshot: another directory becomes a complete store, consistent as of one moment, beside the owner.

Its index is a copy taken in one read transaction; then come the objects it tells of, which stay in the store
meanwhile (see `hold`). The order of writes: objects, synced; the new index in place of the old one, by one
rename; only then objects that no longer belong to an image go. So an interrupted run leaves the snapshot
before it, whole; or where it was the first, a directory that is no store yet. The next one completes either.
Nothing replaces what was there before it is checked.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace

from pixstorefs.errors import CorruptImage, CorruptStore, InvalidInput, NoSpace, NotAStore, SnapshotFailed
from pixstorefs.keys.secrets import Secret
from pixstorefs.store import index_copy, index_walk
from pixstorefs.store.check import Check, Progress, is_set_aside
from pixstorefs.store.copies import NAMES as COPY_NAMES
from pixstorefs.store.displaced import settle
from pixstorefs.store.files import sync_directory
from pixstorefs.store.findings import Finding, Reaction
from pixstorefs.store.header import COPIES_FOLDER, INDEX_FILE, put_back
from pixstorefs.store.hold import held
from pixstorefs.store.index import Index
from pixstorefs.store.index_digest import digest_of
from pixstorefs.store.index_walk import StoredImage
from pixstorefs.store.numbers import BLOCK
from pixstorefs.store.objects import OBJECTS_PER_FOLDER, ObjectDirectory, reader_of
from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.ownership import LOCK_FILE, Ownership
from pixstorefs.store.recovery import path_of
from pixstorefs.store.sealing import sealed_size
from pixstorefs.store.snapshot_record import RECORD_FILE, SnapshotRecord, read_record, write_record
from pixstorefs.store.transfer import Transfer, copy_file
from pixstorefs.store.view import StoreView

# A newer index is taken where a store on a full disk gave objects away in spite of the hold.
_ROUNDS = 5
# Who mounts the snapshot for writing gets version ids that the store itself does not reach.
_GAP = 64 * BLOCK
_LOG_SUFFIXES = ("-wal", "-shm")
# What a first run that got nowhere leaves.
_EMPTY = {LOCK_FILE, RECORD_FILE + ".new"}
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
    index: Index
    objects: ObjectDirectory

    def needs_recovery(self) -> bool:
        return False  # it is made clean

    def damaged_copies(self) -> list[str]:
        return []  # they are made anew


class Snapshot:
    """One run that makes or renews the snapshot of a store: `bring`, `verify` if wanted, `finish`.

    A context manager. It owns the target meanwhile; the store may be in use. Raises what opening the store
    does, InvalidInput, NotAStore or StoreInUse where the target cannot be taken, CorruptImage and
    CorruptStore where the store is damaged, NoSpace, SnapshotFailed.
    """

    def __init__(self, store_path: str, target: str, secret: Secret) -> None:
        self._path = target
        self._index_path = os.path.join(target, INDEX_FILE)
        self._new_path = self._index_path + ".new"
        self._store_path = store_path
        self._secret = secret
        self._open = ExitStack()
        self._old: Index | None = None
        self.outcome = Outcome()

    def __enter__(self) -> "Snapshot":
        try:
            with _told(self._path):
                self._view = self._opened_store()
                self._prepare()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def bring(self, progress: Progress) -> None:
        """Copy the index and bring the objects that are missing, synced. What is in place is untouched."""
        with _told(self._path):
            with held(self._store_path):
                for _ in range(_ROUNDS):
                    self._take_index()
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
            self._objects.sync_all()

    def verify(self, progress: Progress) -> None:
        """Open every object of the new snapshot. One that is damaged there alone is brought anew."""
        with _told(self._path):
            found = _problems(Check(self._new, progress).run())
            damaged = list(progress.bad_version_ids)
            if damaged:
                for stored in index_walk.current_of(self._new.index, damaged):
                    self._bring_object(stored)
                self._objects.sync_all()
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
            self._replace_index(digest_of(new, self._view.index_key))
            outcome.removed = self._remove_unknown()
            self._objects.sync_all()
            write_record(self._path, replace(self._record, finished=True))
            return outcome

    # Store and target

    def _opened_store(self) -> StoreView:
        refuse_overlap(self._store_path, self._path)
        with StoreView(self._store_path, self._secret) as view:
            unclean = view.needs_recovery()
        if unclean:
            writable = os.access(self._store_path, os.W_OK)
            with closing(open_unlocked(self._store_path, self._secret, read_only=not writable)) as store:
                self.outcome.recovered = store.report
        return self._open.enter_context(StoreView(self._store_path, self._secret))

    def _prepare(self) -> None:
        self._claim()
        ownership = Ownership(self._path, None)
        self._open.callback(ownership.release)
        record = read_record(self._path) or SnapshotRecord(self._view.store_id)
        self._record = replace(record, finished=False)
        os.makedirs(os.path.join(self._path, "objects"), 0o700, exist_ok=True)
        os.makedirs(os.path.join(self._path, COPIES_FOLDER), 0o700, exist_ok=True)
        if os.path.lexists(self._index_path):
            self._old = self._opened_old()
        write_record(self._path, self._record)
        self._objects = ObjectDirectory(self._path, self._view.store_id)
        self._transfer = Transfer(self._view.objects, self._objects, os.path.join(self._path, "objects"))

    def _claim(self) -> None:
        """Refuse what is neither empty nor a snapshot of this store."""
        if not os.path.lexists(self._path):
            os.makedirs(self._path, 0o700)
            sync_directory(os.path.dirname(self._path))
        if not os.path.isdir(self._path):
            raise NotAStore(f"{self._path} is not a directory: give another place for the snapshot")
        record = read_record(self._path)
        if record is None and set(os.listdir(self._path)) - _EMPTY:
            raise NotAStore(
                f"{self._path} is not empty and no snapshot. Nothing was changed; "
                "give an empty or a new directory for the snapshot"
            )
        if record is not None and record.store_id != self._view.store_id:
            raise InvalidInput(
                f"{self._path} is a snapshot of another store than {self._store_path}. Nothing was changed"
            )

    def _opened_old(self) -> Index:
        """The index in place, with its log emptied. Raises InvalidInput where somebody changed the tree."""
        key, store_id = self._view.index_key, self._view.store_id
        with closing(Index(self._index_path, key, store_id)) as index:
            digest = digest_of(index, key)
            if digest in self._record.digests:
                # A log that outlived its database would be applied to the new one.
                index.empty_log(checkpointed=index.checkpoint())
        if digest not in self._record.digests:
            raise InvalidInput(
                f"the snapshot {self._path} was mounted and changed since it was taken; another one would "
                "undo that. Nothing was changed. Take the snapshot in another place; this one is a store "
                "like any other"
            )
        self._remove_logs(self._index_path)
        return self._open.enter_context(closing(Index(self._index_path, key, store_id, read_only=True)))

    def _remove_logs(self, index_path: str) -> None:
        for suffix in _LOG_SUFFIXES:
            if os.path.lexists(index_path + suffix):
                os.unlink(index_path + suffix)
        sync_directory(self._path)

    # The new index

    def _take_index(self) -> None:
        """A copy of the index as a clean close would have left it: nothing displaced, nothing retired."""
        key, store_id = self._view.index_key, self._view.store_id
        for path in (self._new_path, *(self._new_path + suffix for suffix in _LOG_SUFFIXES)):
            if os.path.lexists(path):
                os.unlink(path)
        self._view.copy_index(self._new_path)
        with closing(Index(self._new_path, key, store_id)) as index:
            state = index.state()
            with index.transaction():
                settle(index, state.next_token)
                index.forget_retired(state.next_token)
                index.put_state(
                    replace(
                        state,
                        next_version_id=state.next_version_id + _GAP,
                        durable_token=state.next_token - 1,
                        clean=True,
                    )
                )
            index.checkpoint()
            index.empty_log(checkpointed=True)
        self._remove_logs(self._new_path)
        index = self._open.enter_context(closing(Index(self._new_path, key, store_id, read_only=True)))
        self._new = _New(self._path, index, self._objects)

    def _replace_index(self, digest: str) -> None:
        self._record = replace(self._record, digests=(*self._record.digests, digest))
        write_record(self._path, self._record)
        index_copy.sync_file(self._new_path)
        os.rename(self._new_path, self._index_path)
        sync_directory(self._path)
        # Only now, where it is the first, this is a store.
        put_back(self._path, self._view.header, self._view.slots)
        self._replace_copies()
        self._record = replace(self._record, digests=(digest,))

    def _replace_copies(self) -> None:
        """One copy of the index in place; others still have keys of images that were deleted since."""
        folder = os.path.join(self._path, COPIES_FOLDER)
        new = os.path.join(folder, "index.new")
        if os.path.lexists(new):
            os.unlink(new)
        copy_file(self._index_path, new)
        os.rename(new, os.path.join(folder, COPY_NAMES[0]))
        for name in COPY_NAMES[1:]:
            if os.path.lexists(os.path.join(folder, name)):
                os.unlink(os.path.join(folder, name))
        sync_directory(folder)

    # Objects

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
        status = _file_status(self._objects.path(version.version_id))
        if status is None or status.st_size != sealed_size(version.stored_size_bytes):
            return False
        if self._old is not None:
            known = self._old.version(version.version_id)
            if known is not None and (known.key, known.tag) == (version.key, version.tag):
                return True
        source = _file_status(self._view.objects.path(version.version_id))
        return (source is not None and os.path.samestat(status, source)) or self._opens(stored)

    def _opens(self, stored: StoredImage) -> bool:
        reader = reader_of(self._objects, stored.version, stored.image_id)
        try:
            reader.verify()
        except CorruptImage:
            return False
        finally:
            reader.close()
        return True

    def _bring_object(self, stored: StoredImage) -> bool:
        """Bring one object; whether the store has it, whole by its size.

        What a repair set aside is known to be damaged, and no reason to have no snapshot.
        """
        version = stored.version
        status = _file_status(self._view.objects.path(version.version_id))
        if status is None or status.st_size != sealed_size(version.stored_size_bytes):
            if not is_set_aside(path_of(self._new.index, version.ino)):
                return False
            if status is None:
                return True
        try:
            self._transfer.bring(version.version_id)
        except FileNotFoundError:
            return False
        self.outcome.added_bytes += status.st_size
        return True

    def _still_missing(self, missing: list[StoredImage]) -> list[Finding]:
        """What the store should have by its index of now; the rest was given up on a full disk."""
        return [
            Finding(
                "image-damaged",
                Reaction.RESTORE,
                f"its object {stored.version.version_id} is missing or has the wrong size",
                path_of(self._new.index, stored.version.ino),
            )
            for stored in missing
            if index_walk.is_current(self._view.index, stored.version.version_id)
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
            f"has. See `pixstorefs check {self._store_path}`. {'; '.join(lines)}"
        )

    def _remove_unknown(self) -> int:
        """Unlink what belongs to no image of the new index; returns how many objects that were."""
        folders = os.path.join(self._path, "objects")
        removed = 0
        for folder in os.listdir(folders):
            path = os.path.join(folders, folder)
            if not folder.isdecimal():
                if os.path.isfile(path):
                    os.unlink(path)  # what an interrupted run left
                continue
            first = int(folder) * OBJECTS_PER_FOLDER
            known = index_walk.rows_between(self._new.index, first, first + OBJECTS_PER_FOLDER)
            for name in os.listdir(path):
                if not name.isdecimal() or int(name) not in known:
                    os.unlink(os.path.join(path, name))
                    removed += 1
        return removed


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


def _file_status(path: str) -> os.stat_result | None:
    """What lstat(2) tells of a regular file, None where there is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _told(target: str) -> Iterator[None]:
    """Turn the errors of the disk into ours."""
    whole = "What it held before is whole, and another run goes on from here"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"the disk has no room for the snapshot {target}. {whole}") from error
        place = f" ({error.filename})" if error.filename else ""
        raise SnapshotFailed(f"the snapshot {target} failed: {error.strerror}{place}. {whole}") from error
