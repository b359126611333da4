"""The store: atomic operations on images and their names. One object, one lock, no FUSE.

Every public method, here and of the `tree`, is one atomic step: it happens entirely or raises and changes
nothing. Content is sealed first and becomes an image by one transaction of the index, so the worst a crash
leaves is an object that nobody knows, which recovery sweeps.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from pixstorefs.disk.lock_file import Ownership
from pixstorefs.disk.reserve import Reserve
from pixstorefs.errors import CorruptImage, CorruptStore, StoreInUse
from pixstorefs.index.database import log_hold_path, log_size_bytes
from pixstorefs.index.rows import Index, State
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.journal import Journal
from pixstorefs.objects.layout import Content
from pixstorefs.objects.reader import ObjectReader, reader_of
from pixstorefs.records import Inode, Version
from pixstorefs.store.allocation import Allocator
from pixstorefs.store.barrier import Barrier
from pixstorefs.store.copies import Copies, Schedule
from pixstorefs.store.draft import Draft
from pixstorefs.store.ledger import Ledger
from pixstorefs.store.numbers import Numbers
from pixstorefs.store.recovery import put_back_journaled, recover
from pixstorefs.store.transactions import Transactions
from pixstorefs.store.tree import NewName, Tree

# How long a close waits for another process that copies the index, to leave an empty log behind; and a
# recovery, which cannot do without.
_READER_AT_CLOSE_WAIT_S = 2.0
_READER_AT_RECOVERY_WAIT_S = 60.0


class Store:
    """An open store. Thread-safe; owned by one process."""

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
    ) -> None:
        """Open and, after an unclean stop, recover it.

        `ownership` is the store's lock, which is released at the end or when this fails; None to read what
        nobody can write. Raises CorruptStore, NewerFormat, OSError.
        """
        self.path = path
        self._closed = False
        self._ownership = ownership
        self._reserve = Reserve(path)
        self._objects = ObjectDirectory(path, store_id)
        try:
            immutable = ownership is None
            if immutable and log_size_bytes(os.path.join(path, "index.db")):
                raise _needs_recovery(path)  # the log, which tells so, cannot be read here
            self.index = Index(os.path.join(path, "index.db"), index_key, store_id, read_only=immutable)
            try:
                self._transactions = Transactions(
                    path, self.index, self._reserve, read_only=read_only, committed=self._note_change
                )
                self.lock = self._transactions.lock
                state = self._recovered(immutable=immutable)
                self.numbers = Numbers(state)
                self.allocator = Allocator(path, self._objects, self.numbers, padding=padding, random=random)
                self._ledger = Ledger(
                    self._transactions, self.numbers, self.allocator, state, self._note_barrier
                )
                self.tree = Tree(self._transactions, self.numbers, self._ledger)
                if not immutable:
                    self._copies = Copies(path, self.index, index_key, state, copies)
                    self._begin()
            except BaseException:
                self._reserve.close()
                self.index.close()
                raise
        except BaseException:
            if ownership:
                ownership.release()
            raise

    def _recovered(self, *, immutable: bool) -> State:
        """The state that the index has, after recovery where there was an unclean stop."""
        state = self.index.state()
        self.report: list[str] = []
        if not state.clean:
            if immutable:
                raise _needs_recovery(self.path)
            with_reserve = self._transactions.with_reserve
            # What stands in the log may have failed to reach the disk, and no sync would tell so twice.
            if not self._empty_log(_READER_AT_RECOVERY_WAIT_S):
                raise StoreInUse(
                    f"another process has been copying the index of the store {self.path} for a minute, and "
                    "the store has to recover: let it come to its end, or end it (fuser "
                    f"{log_hold_path(self.index.path)} tells its pid), and try again"
                )
            with_reserve(lambda: put_back_journaled(self.index, self._objects, self.path))
            self.report = with_reserve(lambda: recover(self.index, self._objects, state))
        return state

    def _empty_log(self, wait_s: float) -> bool:
        """Copy the log into the database, and truncate it; False where another process reads for longer."""
        with self.index.log_unread(wait_s=wait_s) as unread:
            if unread:
                with self.lock:
                    self.index.require_whole_log()
                self._transactions.with_reserve(
                    lambda: self.index.empty_log(checkpointed=self.index.checkpoint())
                )
            return unread

    def _begin(self) -> None:
        self._ledger.begin()
        self._journal = Journal(self.path)
        if not self.read_only:
            # On a full disk what is left is for deleting.
            if self._reserve.take():
                self.index.prepare_log()
            self._journal.open()
        self.index.sync_log()
        self._objects.reserve = self._reserve
        self._barrier = Barrier(self.lock, self._objects, self.index, self._ledger, self._journal)
        self._objects.make_room = self._barrier.make_room
        self._barrier.sync()

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
        """Make everything durable, note the clean stop and give the store free. The second time: nothing.

        Raises OSError where the disk failed; the store is closed all the same and will recover.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._ownership:
                self._copies.stop()
                self._barrier.stop()
                self._barrier.sync()
                self._ledger.end()
                self.index.sync_log()
                self._empty_log(_READER_AT_CLOSE_WAIT_S)
                if not self.read_only:
                    self._copies.finish()
        finally:
            if self._ownership:
                self._journal.close()
            self._reserve.close()
            self.index.close()
            self._objects.close()
            if self._ownership:
                self._ownership.release()

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
