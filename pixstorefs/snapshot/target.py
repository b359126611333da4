"""The directory that becomes a snapshot: who may take it, and what is put in its place in which order.

`snapshot.json` comes before everything else, the header, which makes it a store, behind everything that a
store needs, and the new index in place of the old one by a rename. So every moment shows the snapshot before,
the new one, or no store yet.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

from pixstorefs.check.view import StoreView
from pixstorefs.disk.files import sync_directory
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.lock_file import LOCK_FILE, Ownership
from pixstorefs.disk.owner_note import is_about_owners
from pixstorefs.errors import InvalidInput, NotAStore, SnapshotFailed, StoreInUse, StoreNotWritable
from pixstorefs.index import copy as index_copy
from pixstorefs.index import walk as index_walk
from pixstorefs.index.database import DiskRefuses
from pixstorefs.index.digest import digest_of
from pixstorefs.index.displaced import settle
from pixstorefs.index.rows import Index
from pixstorefs.keys import keyring
from pixstorefs.objects.directory import OBJECTS_FOLDER, OBJECTS_PER_FOLDER, ObjectDirectory, number_of
from pixstorefs.objects.layout import LAST_VERSION_ID
from pixstorefs.objects.transfer import copy_file
from pixstorefs.store.numbers import BLOCK
from pixstorefs.trust.barrier_record import remove_record
from pixstorefs.trust.header import COPIES_FOLDER, COPY_NAMES, INDEX_FILE, INDEX_FILES, LOG_SUFFIXES, put_back
from pixstorefs.trust.snapshot_record import RECORD_FILE, SnapshotRecord, read_record, write_record

# Who mounts the snapshot for writing gets version ids that the store itself does not reach.
_GAP = 64 * BLOCK
# A check that copies the index of the snapshot in place.
_READER_WAIT_S = 60.0
_NEW_INDEX = INDEX_FILE + ".new"
_NEW_COPY = "index.new"
_DIGEST_PURPOSE = "snapshot digest"
# What a first run that got nowhere leaves.
_EMPTY = {LOCK_FILE, RECORD_FILE + ".new"}


class Target:
    """The target of one run, owned until `close`. `old`: the index in place, None where there is none."""

    def __init__(self, path: str, source: StoreView) -> None:
        """Take the directory for a snapshot of `source`, making it where it is missing.

        Raises NotAStore, InvalidInput, StoreInUse, CorruptStore where it cannot be taken, OSError.
        """
        self.path = path
        self._index_path = os.path.join(path, INDEX_FILE)
        self._new_path = os.path.join(path, _NEW_INDEX)
        self._source = source
        self._open = ExitStack()
        self.old: Index | None = None
        try:
            self._claim()
        except BaseException:
            self.close()
            raise
        self.objects = ObjectDirectory(self.folder, source.store_id)

    def close(self) -> None:
        """Give the directory free."""
        self._open.close()

    def take_index(self) -> Index:
        """Copy the store's index of this moment; nothing else sees it yet. Raises CorruptStore, OSError.

        It is as a clean close leaves it: nothing displaced, nothing retired, everything durable.
        """
        key, store_id = self._source.index_key, self._source.store_id
        for suffix in ("", *LOG_SUFFIXES):
            self.folder.unlink_if_there(_NEW_INDEX + suffix)
        self._require_here()
        self._source.copy_index(self._new_path)
        with self._blamed(), closing(Index(self._new_path, key, store_id)) as index:
            state = index.state()
            clean = replace(
                state,
                next_version_id=state.next_version_id + _GAP,
                durable_token=state.next_token - 1,
                clean=True,
            )
            with index.transaction():
                settle(index, state.next_token)
                index.forget_retired(state.next_token)
                index.put_state(clean)
            index.checkpoint()
            index.empty_log(checkpointed=True)
        self._remove_logs(_NEW_INDEX)
        return self._open.enter_context(closing(Index(self._new_path, key, store_id, read_only=True)))

    def place_index(self, new: Index) -> int:
        """Put the new index in place, durably; returns how many objects that it does not know are gone.

        The objects that it knows are on the disk. Raises OSError.
        """
        digest = digest_of(new, self._digest_key)
        write_record(self.folder, replace(self._record, digests=(*self._record.digests, digest)))
        index_copy.sync_file(self._new_path)
        self.folder.rename(_NEW_INDEX, INDEX_FILE)
        self.folder.sync()
        # Only now, where it is the first, this is a store.
        put_back(self.folder, self._source.header, self._source.slots)
        self._replace_copies()
        removed = self._remove_unknown(new)
        self.objects.sync_all()
        write_record(self.folder, SnapshotRecord(self._source.store_id, (digest,), finished=True))
        return removed

    # Taking the directory

    def _claim(self) -> None:
        self._refuse_foreign()
        try:
            ownership = Ownership(self.folder, None)
        except StoreNotWritable as error:
            raise SnapshotFailed(f"the snapshot {self.path} cannot be renewed: {error}") from None
        self._open.callback(ownership.release)
        record = read_record(self.folder) or SnapshotRecord(self._source.store_id)
        self._record = replace(record, finished=False)
        if self.folder.status(INDEX_FILE) is not None:
            self.old = self._opened_old()
        # Durable before anything else is there: a directory that is not empty and has none is refused.
        write_record(self.folder, self._record)
        for name in (OBJECTS_FOLDER, COPIES_FOLDER):
            self.folder.made_folder(name).close()

    def _refuse_foreign(self) -> None:
        """Refuse what is neither empty nor a snapshot of this store."""
        if not os.path.lexists(self.path):
            os.makedirs(self.path, 0o700)
            sync_directory(os.path.dirname(self.path))
        if not os.path.isdir(self.path):
            raise NotAStore(f"{self.path} is not a directory: give another place for the snapshot")
        self.folder = self._open.enter_context(closing(Folder.at(self.path)))
        record = read_record(self.folder)
        if record is None and any(
            name not in _EMPTY and not is_about_owners(name) for name in self.folder.names()
        ):
            raise NotAStore(
                f"{self.path} is not empty and no snapshot. Nothing was changed; "
                "give an empty or a new directory for the snapshot"
            )
        if record is not None and record.store_id != self._source.store_id:
            raise InvalidInput(
                f"{self.path} is a snapshot of another store than {self._source.path}. Nothing was changed"
            )

    def _opened_old(self) -> Index:
        """The index in place, with its log emptied. Raises InvalidInput, StoreInUse.

        InvalidInput: somebody changed the tree.
        """
        key, store_id = self._source.index_key, self._source.store_id
        self._require_here()
        with self._blamed(), closing(Index(self._index_path, key, store_id)) as index:
            if digest_of(index, self._digest_key) not in self._record.digests:
                raise InvalidInput(
                    f"the snapshot {self.path} was mounted and changed since it was taken; another one would "
                    "undo that. Nothing was changed. Take the snapshot in another place; this one is a store "
                    "like any other"
                )
            # A log that outlived its database would be applied to the new one.
            with index.log_unread(wait_s=_READER_WAIT_S) as unread:
                if not unread:
                    raise StoreInUse(
                        f"another process is reading the snapshot {self.path}. Nothing was changed; "
                        "try again when it is done"
                    )
                index.empty_log(checkpointed=index.checkpoint())
        self._remove_logs(INDEX_FILE)
        # Of who mounted it; it speaks of the index that is to be replaced.
        remove_record(self.folder)
        return self._open.enter_context(closing(Index(self._index_path, key, store_id, read_only=True)))

    @property
    def _digest_key(self) -> bytes:
        # Not the index key itself, which encrypts.
        return keyring.derive(self._source.index_key, self._source.store_id, _DIGEST_PURPOSE)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """What the disk under the target refuses says nothing of the store. Raises SnapshotFailed."""
        try:
            yield
        except DiskRefuses as error:
            raise SnapshotFailed(
                f"the snapshot {self.path} failed: {error}. Nothing is known to be wrong with the store "
                f"{self._source.path}. Some file systems write files only from front to back (an rclone "
                "mount without --vfs-cache-mode writes): take the snapshot on another disk, and let a tool "
                "carry it there"
            ) from error

    def _require_here(self) -> None:
        """SQLite opens files by path: refuse if that leads elsewhere by now, or they are none."""
        if self.folder.reachable_path() != self.path:
            raise SnapshotFailed(f"{self.path} was moved while the snapshot was taken: start again")
        for name in INDEX_FILES:
            self.folder.require_own(name)

    # Putting it in place

    def _remove_logs(self, index_name: str) -> None:
        for suffix in LOG_SUFFIXES:
            self.folder.unlink_if_there(index_name + suffix)
        self.folder.sync()

    def _replace_copies(self) -> None:
        """One copy of the index in place; others still have keys of images that were deleted since."""
        with closing(self.folder.folder(COPIES_FOLDER)) as copies:
            copies.unlink_if_there(_NEW_COPY)
            copy_file(self.folder, INDEX_FILE, copies, _NEW_COPY)
            copies.rename(_NEW_COPY, COPY_NAMES[0])
            for name in COPY_NAMES[1:]:
                copies.unlink_if_there(name)
            copies.sync()

    def _remove_unknown(self, index: Index) -> int:
        """Remove objects that the index does not know; what is no folder of objects stays."""
        removed = 0
        with closing(self.folder.folder(OBJECTS_FOLDER)) as objects:
            for name in objects.names():
                number = number_of(name, LAST_VERSION_ID // OBJECTS_PER_FOLDER)
                with suppress(OddFile):
                    if number is not None:
                        with closing(objects.folder(name)) as folder:
                            removed += _remove_unknown_in(folder, number, index)
                    elif objects.file_status(name) is not None:
                        objects.unlink(name)  # what an interrupted run left
        return removed


def _remove_unknown_in(folder: Folder, number: int, index: Index) -> int:
    first = number * OBJECTS_PER_FOLDER
    known = {str(known) for known in index_walk.rows_between(index, first, first + OBJECTS_PER_FOLDER)}
    removed = 0
    for name in folder.names():
        if name not in known and folder.file_status(name) is not None:
            folder.unlink(name)
            removed += 1
    return removed
