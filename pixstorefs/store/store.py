"""The store: atomic operations on images and their names. One object, one lock, no FUSE.

Every public method, here and of the `tree`, is one atomic step: it happens entirely or raises and changes
nothing. Content is sealed first and becomes an image by one transaction of the index, so the worst a crash
leaves is an object that nobody knows, which recovery sweeps.
"""

import logging
import os
import shlex
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace

from pixstorefs.disk.folder import Folder
from pixstorefs.disk.lock_file import Ownership
from pixstorefs.disk.reserve import Reserve
from pixstorefs.errors import CorruptImage, CorruptStore, PixstoreError, ReadOnlyStore, StoreInUse
from pixstorefs.index import walk as index_walk
from pixstorefs.index.database import LOG_HOLD_FILE, log_size_bytes
from pixstorefs.index.rows import Index, State
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.journal import Journal
from pixstorefs.objects.layout import Content
from pixstorefs.objects.reader import ObjectReader, reader_of
from pixstorefs.printable import ReportLine
from pixstorefs.records import Inode, Version
from pixstorefs.store.allocation import Allocator
from pixstorefs.store.barrier import Barrier
from pixstorefs.store.draft import Draft
from pixstorefs.store.ledger import Ledger
from pixstorefs.store.numbers import Numbers
from pixstorefs.store.recovery import orphans_of, put_back_journaled, recover
from pixstorefs.store.transactions import Transactions
from pixstorefs.store.tree import NewName, Tree
from pixstorefs.trust.aside import keep_index, keep_owned, number_of_owners_aside
from pixstorefs.trust.barrier_record import BarrierRecord, clean_claim
from pixstorefs.trust.copies import Copies, Schedule
from pixstorefs.trust.fence import end_fence, fence_if_due
from pixstorefs.trust.header import INDEX_FILE, require_index
from pixstorefs.trust.proof import Proof, prove, require, witnesses

log = logging.getLogger(__name__)

# How long a close waits for another process that copies the index, to leave an empty log behind; and a
# recovery, which cannot do without.
_READER_AT_CLOSE_WAIT_S = 2.0
_READER_AT_RECOVERY_WAIT_S = 60.0

_BRING_BACK = "pixstorefs check --repair brings it back"


class Store:
    """An open store. Thread-safe; owned by one process: a child that is forked has no part in it."""

    def __init__(
        self,
        path: str,
        store_id: bytes,
        index_key: bytes,
        *,
        ownership: Ownership | None,
        padding: bool,
        read_only: bool = False,
        random: Callable[[int], bytes] = os.urandom,
        copies: Schedule | None = None,
        restored_index: str | None = None,
    ) -> None:
        """Open and, after an unclean stop, recover it.

        `ownership` is the store's lock, which is released at the end or when this fails; None to read what
        nobody can write. `restored_index` is read instead of the store's own, which cannot be used; nothing
        is recovered or proven then. Raises CorruptStore, NewerFormat, OSError.
        """
        self.path = path
        self._index_key = index_key
        self._closed = False
        self._kept = False
        self.forked = False  # since it was opened
        self._pid = os.getpid()
        self._ownership = ownership
        # The one that has the lock, wherever it is by now: nothing below is reached by path again.
        self.folder = ownership.folder if ownership else Folder.at(path)
        self._reserve = Reserve(self.folder)
        self._objects = ObjectDirectory(self.folder, store_id)
        try:
            immutable = ownership is None
            broke_lock = not immutable and fence_if_due(self.folder)
            if restored_index is None:
                require_index(self.folder)
            index_path = restored_index or os.path.join(self.folder.reachable_path() or path, INDEX_FILE)
            if immutable and log_size_bytes(index_path):
                raise _needs_recovery(path)  # the log, which tells so, cannot be read here
            found = witnesses(self.folder, index_path, index_key, store_id)
            self.index = Index(index_path, index_key, store_id, read_only=immutable)
            try:
                self._transactions = Transactions(
                    path,
                    self.index,
                    self._reserve,
                    read_only=read_only,
                    require_owner=self._require_owner,
                    committed=self._note_change,
                )
                self.lock = self._transactions.lock
                self._record = BarrierRecord(self.folder, index_key, store_id)
                self.report: list[ReportLine] = []
                state = self.index.state()
                if restored_index is None and not (read_only and state.clean):
                    self._require_objects()
                if restored_index is None:
                    proof = prove(self.index, found, has_log=not immutable, owner_may_live=broke_lock)
                    require(proof, path)
                    self._recover(state, proof)
                self.numbers = Numbers(state)
                self.allocator = Allocator(self._objects, self.numbers, padding=padding, random=random)
                self._ledger = Ledger(
                    self._transactions, self.numbers, self.allocator, state, self._note_barrier
                )
                self.tree = Tree(self._transactions, self.numbers, self._ledger)
                if not immutable:
                    self._copies = Copies(
                        path, self.index, index_key, state, found.copy, copies, follow=self._follow_if_ours
                    )
                    self._begin()
                if broke_lock:
                    end_fence(self.folder)
                self._tell_what_was_kept()
            except BaseException:
                self._reserve.close()
                self.index.close()
                raise
        except BaseException:
            self._objects.close()
            if ownership:
                ownership.release()
            self.folder.close()
            raise
        _open_stores.add(self)

    def _recover(self, state: State, proof: Proof) -> None:
        """Recover where there was an unclean stop. Numbers that are handed out meanwhile count up `state`."""
        if not state.clean:
            if self._ownership is None:
                raise _needs_recovery(self.path)
            self._record.open()
            with_reserve = self._transactions.with_reserve
            if proof.unread_frames and orphans_of(self.index, self._objects, state):
                # A crash cut a transaction off, most likely; but a damaged part of the log looks the same,
                # and has the keys of these objects.
                with_reserve(self._keep_index)
            # What stands in the log may have failed to reach the disk, and no sync would tell so twice.
            if not self._empty_log(_READER_AT_RECOVERY_WAIT_S, self._record.withdraw_log):
                raise StoreInUse(
                    f"another process has been copying the index of the store {self.path} for a minute, and "
                    "the store has to recover: let it come to its end, or end it (fuser "
                    f"{os.path.join(self.path, LOG_HOLD_FILE)} tells its pid), and try again"
                )
            with_reserve(lambda: put_back_journaled(self.index, self._objects, self.folder))
            self.report = with_reserve(
                lambda: recover(self.index, self._objects, state, proof, self.folder, self._keep_index)
            )
        if not self.read_only:
            self._pass_over_strangers(state)

    def _keep_index(self) -> None:
        keep_index(self.folder, self.index.path, self._index_key, time.time_ns())

    def _pass_over_strangers(self, state: State) -> None:
        """Hand out no number that an object has, though the index never gave it to one."""
        strangers = list(self._objects.ids_from(state.next_version_id))
        if strangers:
            state.next_version_id = max(strangers) + 1
            self.report.append(
                ReportLine(
                    f"{len(strangers)} objects are newer than the index and belong to no image of it: see "
                    f"`pixstorefs check {shlex.quote(self.path)}`"
                )
            )

    def _require_objects(self) -> None:
        state = self.index.state()
        self._objects.require_folders(
            state.next_version_id,
            any_known=index_walk.any_version(self.index),
            any_durable=index_walk.any_version(self.index, up_to_token=state.durable_token),
        )

    def _empty_log(self, wait_s: float, withdraw: Callable[[], bool]) -> bool:
        """Copy the log into the database, and truncate it; False where another process reads for longer."""
        with self.index.log_unread(wait_s=wait_s) as unread:
            if unread:
                with self.lock:
                    self.index.require_whole_log(self._record.withdraw_log)
                self._transactions.with_reserve(
                    lambda: self.index.empty_log(checkpointed=self.index.checkpoint(), withdraw=withdraw)
                )
            return unread

    def _claim_clean(self) -> bool:
        return self._record.write(clean_claim(self._ledger.state), synced=True)

    def _begin(self) -> None:
        # SQLite opens by path: have it open the connection that empties the log as early as the first one.
        self.index.open_checkpointer()
        self._ledger.begin()
        self._record.open()
        self._journal = Journal(self.folder)
        if not self.read_only:
            # On a full disk what is left is for deleting.
            if self._reserve.take():
                self.index.prepare_log()
            self._journal.open()
        self.index.sync_log()
        self._objects.reserve = self._reserve
        self._barrier = Barrier(
            self.lock,
            self._objects,
            self.index,
            self._ledger,
            self._journal,
            self._record,
            self._follow,
            self._require_owner_or_keep,
        )
        self._objects.make_room = self._barrier.make_room
        self._barrier.sync()

    def _require_owner(self, *, now: bool = False) -> None:
        if self._ownership:
            self._ownership.require(now=now)

    def _require_owner_or_keep(self, *, now: bool = False) -> None:
        """If another owner took the store: keep what no barrier covers, and raise ReadOnlyStore."""
        try:
            self._require_owner(now=now)
        except ReadOnlyStore:
            with self.lock:
                self._keep_what_was_saved()
            raise

    def _keep_what_was_saved(self) -> None:
        if self._kept or self.numbers.last_token <= self._ledger.state.durable_token:
            return
        self._kept = True
        try:
            place = keep_owned(self.folder, self.index, self._index_key, time.time_ns())
        except (PixstoreError, OSError) as error:
            log.critical("what was saved last could not be set aside: %s", error)
        else:
            log.critical("what was saved last is set aside in %s: %s", place, _BRING_BACK)

    def _tell_what_was_kept(self) -> None:
        kept = number_of_owners_aside(self.folder)
        if kept:
            self.report.append(
                ReportLine(
                    f"{kept} times an owner lost the store, and what it had saved last is set aside: "
                    f"{_BRING_BACK}"
                )
            )

    def _follow_if_ours(self) -> bool:
        self._require_owner()
        return self._follow()

    def _follow(self) -> bool:
        """The index has files that are opened by path: keep the path that of the store, if it was renamed.

        False if no path leads there any more. Then only what is open can be used.
        """
        path = self.folder.reachable_path()
        # The kernel follows this one wherever the folder is, but SQLite, which resolves it, cannot.
        self.index.path = os.path.join(path or f"/proc/self/fd/{self.folder.fd}", INDEX_FILE)
        return path is not None

    def _note_change(self) -> None:
        self.tree.forget_listed()
        self._barrier.note_change()
        self._copies.note_change()

    def _note_barrier(self, token: int) -> None:
        self._copies.note_barrier(token)

    @property
    def read_only(self) -> bool:
        """Whether changes are refused: asked for, or because the index cannot be written."""
        return self._transactions.read_only

    def require_writable(self) -> None:
        """Raises ReadOnlyStore; for callers that would seal content before they find out."""
        self._transactions.require_writable()

    @property
    def reserve_missing_bytes(self) -> int:
        """Free room on the disk that is not for images: see `reserve`."""
        return self._reserve.missing_bytes if self._ownership else 0

    # Durability

    def make_durable(self) -> None:
        """Return when everything saved so far is durable. Blocks; call it off the event loop.

        Raises OSError or PixstoreError where the disk failed.
        """
        if self._ownership:
            self._barrier.make_durable()

    def sync(self) -> None:
        """The same, and what was replaced or deleted has left the disk."""
        if self._ownership:
            self._barrier.sync()

    def make_room(self) -> None:
        """On a full disk: unlink retired objects now. Blocks; call it off the event loop."""
        if self._ownership:
            self._barrier.make_room()

    def close(self) -> None:
        """Make everything durable, note the clean stop and give the store free.

        The second time, and in a process that was forked since: nothing. Raises OSError where the disk
        failed; the store is closed all the same and will recover. Raises ReadOnlyStore if another owner took
        the store, which then is left as it is.
        """
        if self._closed or self.forked:
            return
        self._closed = True
        try:
            self._follow()
            if self._ownership:
                self._copies.stop()
                self._barrier.stop()
                self._require_owner_or_keep(now=True)
                self._barrier.end()
                self._ledger.end()
                self.index.sync_log()
                self._empty_log(_READER_AT_CLOSE_WAIT_S, self._claim_clean)
                if not self.read_only:
                    self._copies.finish()
        finally:
            with self.lock:  # what another thread is doing with them comes to its end
                self.index.close()
                self._close_files()
            if self._ownership:
                self._ownership.release()
            self.folder.close()
            _open_stores.discard(self)

    def _close_files(self) -> None:
        if self._ownership:
            self._journal.close()
            self._record.close()
        self._reserve.close()
        self._objects.close()

    # A fork

    def require_not_forked(self) -> None:
        """Raises StoreInUse in a process that was forked since the store was opened."""
        if self.forked:
            raise StoreInUse(
                f"the store {self.path} was opened before the fork: open it in this process, if process "
                f"{self._pid} does not need it any more. One process owns a store. Nothing was changed"
            )

    def is_at_rest(self) -> bool:
        """In a forked child: whether no thread of the parent was using the index at the fork."""
        return (
            self.lock.acquire(blocking=False)
            and self.index.is_at_rest()
            and (not self._ownership or self._copies.at_rest)
        )

    def let_go(self, *, at_rest: bool) -> None:
        """In a forked child: close all that is open, and change nothing by it.

        Nobody is waited for: the threads of the parent are not there, and what they held at the fork is held
        for ever. Whatever is still called finds no folder, no log and no lock that it could write to.
        `at_rest`: no store of this process was being used.
        """
        self.forked = True
        self.index.let_go(at_rest=at_rest)
        self._close_files()
        self.folder.close()

    # Content

    def save(self, inode: Inode, draft: Draft, content: Content, new: NewName | None = None) -> int:
        """Make `content`, which `draft` sealed, the current version of an image; returns the token.

        `inode` carries the times to save; its version, size and stored size are set here. With `new` the
        file appears under its name for the first time, replacing what had the name. Raises OSError or
        PixstoreError; the old version is then untouched and the draft holds what it held.
        """
        sealed = content.sealed
        saved = replace(
            inode,
            version_id=sealed.key.version_id,
            size_bytes=content.size_bytes,
            stored_size_bytes=sealed.stored_size_bytes,
        )
        # One hold of the lock for both: a barrier between the commit and the note would call the version
        # durable without having synced its object.
        with self.lock:
            try:
                token = self._commit_version(inode, saved, content, new)
            except BaseException:
                draft.resume(content)
                raise
            self.allocator.saved_object(sealed.key.version_id)
            if sealed.runs:
                self._barrier.note_object(sealed.key.version_id)
        inode.version_id = saved.version_id
        inode.size_bytes = saved.size_bytes
        inode.stored_size_bytes = saved.stored_size_bytes
        return token

    def _commit_version(self, old: Inode, saved: Inode, content: Content, new: NewName | None) -> int:
        with self._transactions.change() as index:
            token = self.numbers.token()
            if old.version_id is not None:
                index.retire_version(old.version_id, token)
            index.insert_version(_version_of(saved, content, token))
            if new is None:
                index.update_inode(saved)
            else:
                self.tree.insert_named(index, saved, new)
            return token

    def open_object(self, inode: Inode) -> ObjectReader:
        """A reader of an image's current version. Raises CorruptImage."""
        version = self.version(inode)
        assert inode.image_id is not None
        return reader_of(self._objects, version, inode.image_id)

    def index_aside(self, path: str) -> Index:
        """Open an index of this store that was set aside, for reading. Raises CorruptStore, OSError."""
        return Index(path, self._index_key, self.index.store_id, read_only=True)

    def read_ahead(self, version_ids: Iterable[int], limit_bytes: int) -> None:
        """Have the disk read the front of some objects, where there are any. From any thread; never fails."""
        for version_id in version_ids:
            self._objects.read_ahead(version_id, limit_bytes)

    def version(self, inode: Inode) -> Version:
        """The current version of an image. Raises CorruptImage where its row is lost."""
        with self.lock:
            version = self.index.version(inode.version_id) if inode.version_id is not None else None
        if version is None:
            raise CorruptImage(f"inode {inode.ino} has lost the key of its content: restore it from a backup")
        return version


# Told of a fork by Python, and not found out by comparing pids at every call: what is open has to be closed
# even in a child that never calls, and a call must not wait for a lock that nobody will release.
_open_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()


def _let_go_of_all() -> None:
    stores = list(_open_stores)
    # All or none: they share SQLite.
    at_rest = all(store.is_at_rest() for store in stores)
    for store in stores:
        store.let_go(at_rest=at_rest)


os.register_at_fork(after_in_child=_let_go_of_all)


def _needs_recovery(path: str) -> CorruptStore:
    return CorruptStore(
        f"the store {path} was not closed cleanly and cannot be written: mount it once where it can be "
        "written, so that it recovers"
    )


def _version_of(inode: Inode, content: Content, token: int) -> Version:
    sealed = content.sealed
    return Version(
        version_id=sealed.key.version_id,
        ino=inode.ino,
        token=token,
        key=sealed.key.key,
        iv=sealed.key.iv,
        tag=sealed.tag,
        size_bytes=content.size_bytes,
        stored_size_bytes=sealed.stored_size_bytes,
        mtime_ns=inode.mtime_ns,
        runs=sealed.runs,
        format=content.format,
    )
