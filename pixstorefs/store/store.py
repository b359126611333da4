"""The store: atomic operations on images and their names. One object, one lock, no FUSE.

Every public method is one atomic step: it happens entirely or raises and changes nothing. Content is sealed
first and becomes an image by one transaction of the index, so the worst a crash leaves is an object that
nobody knows, which recovery sweeps.
"""

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from pixstorefs.errors import CorruptImage, CorruptStore, NoSpace, ReadOnlyStore
from pixstorefs.store.allocation import Allocator
from pixstorefs.store.barrier import Barrier
from pixstorefs.store.copies import Copies, Schedule
from pixstorefs.store.displaced import erase, settle
from pixstorefs.store.draft import Draft
from pixstorefs.store.index import Index, State
from pixstorefs.store.index_database import log_size_bytes
from pixstorefs.store.numbers import Numbers
from pixstorefs.store.objects import Content, ObjectDirectory, ObjectReader, reader_of
from pixstorefs.store.ownership import Ownership
from pixstorefs.store.records import Entry, Inode, Version
from pixstorefs.store.recovery import path_of, recover
from pixstorefs.store.reserve import Reserve

log = logging.getLogger(__name__)

R = TypeVar("R")

_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})

# SQLite's integers are signed.
_LARGEST_INO = (1 << 63) - 1
# How long a close waits for another process that reads the index, to leave an empty log behind.
_LAST_READER_WAIT_MS = 2000


@dataclass(frozen=True, slots=True)
class NewName:
    """The name a pending file is saved under for the first time, and the xattrs it got meanwhile.

    `directory_ns`: the mtime and ctime its directory gets from it, None to leave them alone. `left`: other
    names, (directory, name), that it had before and took from saved files: they go with its save.
    """

    entry: Entry
    xattrs: Mapping[bytes, bytes]
    directory_ns: int | None
    left: Collection[tuple[int, bytes]] = ()


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
        self._padding = padding
        self.read_only = read_only
        self.lock = threading.RLock()
        self._random = random
        self._closed = False
        self._ownership = ownership
        self._reserve = Reserve(path)
        self._objects = ObjectDirectory(path, store_id)
        try:
            immutable = self._ownership is None
            if immutable and log_size_bytes(os.path.join(path, "index.db")):
                raise _needs_recovery(path)  # the log, which tells so, cannot be read here
            self.index = Index(os.path.join(path, "index.db"), index_key, store_id, read_only=immutable)
            try:
                self._start(immutable, index_key, copies)
            except BaseException:
                self._reserve.close()
                self.index.close()
                raise
        except BaseException:
            if self._ownership:
                self._ownership.release()
            raise

    def _start(self, immutable: bool, index_key: bytes, copies: Schedule | None) -> None:
        state = self.index.state()
        self.report: list[str] = []
        if not state.clean:
            if immutable:
                raise _needs_recovery(self.path)
            # What stands in the log may have failed to reach the disk, and no sync would tell so twice.
            self._with_reserve(lambda: self.index.empty_log(checkpointed=self.index.checkpoint()))
            self.report = self._with_reserve(lambda: recover(self.index, self._objects, state))
        self.numbers = Numbers(state)
        self.allocator = Allocator(
            self.path, self._objects, self.numbers, padding=self._padding, random=self._random
        )
        if immutable:
            self._state = state
            return
        self._copies = Copies(self.path, self.index, index_key, state, copies)
        self._state = replace(self.numbers.bounded(state), clean=False)
        self._with_reserve(lambda: self._put_state(self._state))
        self.index.sync_log()
        self._objects.reserve = self._reserve
        self._barrier = Barrier(self.lock, self._objects, self.index, self)
        self._objects.make_room = self._barrier.make_room
        self._barrier.sync()

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
                closed = replace(self.numbers.exact(self._state), clean=True)
                self._with_reserve(lambda: self._put_state(closed))
                self.index.sync_log()
                self.index.empty_log(checkpointed=self.index.checkpoint(), wait_ms=_LAST_READER_WAIT_MS)
                if not self.read_only:
                    self._copies.finish()
        finally:
            self._reserve.close()
            self.index.close()
            self._objects.close()
            if self._ownership:
                self._ownership.release()

    def barrier_mark(self) -> tuple[int, int]:
        """What a barrier that begins now covers: newest token and object floor. With the lock held."""
        return self.numbers.last_token, self.allocator.object_floor()

    def barrier_durable(self, token: int) -> None:
        """Everything up to `token` is durable. With the lock held."""
        # Noted on the disk with the unlinking; until then recovery verifies more than it has to.
        self._state = replace(self._state, durable_token=max(token, self._state.durable_token))

    def barrier_retired(self, token: int) -> list[int]:
        """Ids of versions that nobody needs once everything up to `token` is durable. With the lock held."""
        if self.index.displaced(token):
            self._with_reserve(lambda: self._settle(token))
        return self.index.retired(token)

    def barrier_leftovers(self) -> list[int]:
        """Ids of objects that never had a row and could not be removed so far. With the lock held."""
        return self.allocator.leftovers()

    def _settle(self, token: int) -> None:
        with self.index.transaction():
            settle(self.index, token)

    def barrier_passed(self, token: int, floor: int, *, unlinked: bool) -> None:
        """What was retired up to `token` is `unlinked`, if nobody held it. With the lock held."""
        state = replace(
            self.numbers.bounded(self._state),
            # make_room may have recorded a later barrier than the one that ends now.
            durable_token=max(token, self._state.durable_token),
            object_floor=max(floor, self._state.object_floor),
        )

        def note() -> None:
            with self.index.transaction():
                if unlinked:
                    self.index.forget_retired(token)
                self.index.put_state(state)

        self._with_reserve(note)
        self._state = state
        self._reserve.take()
        self._copies.note_barrier(token)

    def require_writable(self) -> None:
        """Raises ReadOnlyStore; for callers that would seal content before they find out."""
        if self.read_only:
            raise ReadOnlyStore("the store is open read-only: nothing was changed")

    def _put_state(self, state: State) -> None:
        with self.index.transaction():
            self.index.put_state(state)

    @property
    def reserve_missing_bytes(self) -> int:
        """Free room on the disk that is not for images: see `reserve`."""
        return self._reserve.missing_bytes if self._ownership else 0

    def _with_reserve(self, delete: Callable[[], R]) -> R:
        """Do what makes room; where the disk has none for it, with the room that is reserved."""
        with self.lock:
            try:
                return delete()
            except NoSpace:
                self._reserve.give()
                return delete()

    @contextmanager
    def _change(self) -> Iterator[Index]:
        """One transaction of the index that takes room, under the lock; the barrier learns of it."""
        with self.lock:
            self.require_writable()
            if not self._reserve.take():
                raise NoSpace(f"the disk under {self.path} is full: delete something first")
            with self._transaction() as index:
                yield index

    @contextmanager
    def _transaction(self) -> Iterator[Index]:
        """The same for one that may find the disk full. An index that fails makes the store read-only."""
        self.require_writable()
        with self.lock:
            try:
                with self.index.transaction():
                    yield self.index
            except (CorruptStore, ReadOnlyStore) as error:
                self.read_only = True
                log.critical(
                    "%s. Nothing more is written, what is there can be read: look after the disk, "
                    "then unmount and mount again",
                    error,
                )
                raise
            self._barrier.note_change()
            self._copies.note_change()

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
        with self._change() as index:
            token = self.numbers.token()
            if old.version_id is not None:
                index.retire_version(old.version_id, token)
            index.insert_version(_version_of(saved, content, token))
            if new is None:
                index.update_inode(saved)
            else:
                self._insert_named(index, saved, new)
            return token

    def _insert_named(self, index: Index, inode: Inode, new: NewName) -> None:
        for parent, name in (*new.left, (new.entry.parent, new.entry.name)):
            self._drop_name(index, parent, name, inode.ctime_ns, by=inode)
        index.insert_inode(inode, inode.ctime_ns)
        index.insert_entry(new.entry, inode.ino)
        for name, value in new.xattrs.items():
            index.put_xattr(inode.ino, name, value)
        if new.directory_ns is not None:
            index.touch_directory(new.entry.parent, new.directory_ns)

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

    # Names and attributes

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode a name stands for."""
        with self.lock:
            return self.index.lookup(parent, name)

    def inode(self, ino: int) -> Inode | None:
        """The inode with this number, if it has a name."""
        with self.lock:
            inode = self.index.inode(ino)
        return inode if inode is not None and inode.nlink > 0 else None

    def inode_of_image(self, image_id: bytes) -> Inode | None:
        """The inode of an image."""
        inode = self.inode(int.from_bytes(image_id[:8], "big") & _LARGEST_INO)
        return inode if inode is not None and inode.image_id == image_id else None

    def created_ns(self, ino: int) -> int:
        """When an inode was made."""
        with self.lock:
            return self.index.created_ns(ino)

    def entries(self, parent: int, after_cookie: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Entries of a directory behind a cookie, in cookie order."""
        with self.lock:
            return self.index.entries(parent, after_cookie, limit)

    def parent_of(self, ino: int) -> int:
        """The directory that holds a directory; the root's is the root."""
        entries = self.names(ino)
        return entries[0].parent if entries else ino

    def link_target(self, ino: int) -> bytes | None:
        """Where a symlink points."""
        with self.lock:
            return self.index.link_target(ino)

    def names(self, ino: int) -> list[Entry]:
        """All names of an inode."""
        with self.lock:
            return self.index.names(ino)

    def path_of(self, ino: int) -> str:
        """A path inside the mount, for messages."""
        with self.lock:
            return path_of(self.index, ino)

    def add(
        self,
        inode: Inode,
        parent: int,
        name: bytes,
        target: bytes | None = None,
        xattrs: Mapping[bytes, bytes] = _NO_XATTRS,
    ) -> None:
        """A new directory, symlink or special file. Raises FileExistsError."""
        with self._change() as index:
            if index.entry(parent, name):
                raise FileExistsError(errno.EEXIST, "exists", name)
            index.insert_inode(inode, inode.ctime_ns, target)
            index.insert_entry(Entry(self.numbers.cookie(), parent, name), inode.ino)
            for attribute, value in xattrs.items():
                index.put_xattr(inode.ino, attribute, value)
            index.touch_directory(parent, inode.ctime_ns, int(stat.S_ISDIR(inode.mode)))

    def link(self, ino: int, parent: int, name: bytes, now_ns: int) -> Inode:
        """One more name for a file; returns its inode as it is now."""
        with self._change() as index:
            inode = self._existing(ino)
            if index.entry(parent, name):
                raise FileExistsError(errno.EEXIST, "exists", name)
            inode.nlink += 1
            inode.ctime_ns = now_ns
            index.update_inode(inode)
            index.mark_linked(ino)
            index.insert_entry(Entry(self.numbers.cookie(), parent, name, linked=True), ino)
            index.touch_directory(parent, now_ns)
            return inode

    def remove(self, parent: int, name: bytes, now_ns: int) -> Inode | None:
        """Remove a name; with the last one the inode goes and the image's key is destroyed.

        Returns the inode as it is now (nlink 0 when it is gone), None where there was no such name.
        """
        return self._with_reserve(lambda: self._remove(parent, name, now_ns))

    def _remove(self, parent: int, name: bytes, now_ns: int) -> Inode | None:
        with self._transaction() as index:
            inode = self._drop_name(index, parent, name, now_ns)
            if inode is not None:
                index.touch_directory(parent, now_ns, -int(stat.S_ISDIR(inode.mode)))
            return inode

    def remove_all(self, ino: int, now_ns: int) -> None:
        """Remove a file under all its names."""
        self._with_reserve(lambda: self._remove_all(ino, now_ns))

    def _remove_all(self, ino: int, now_ns: int) -> None:
        with self._transaction() as index:
            for entry in index.names(ino):
                self._drop_name(index, entry.parent, entry.name, now_ns)
                index.touch_directory(entry.parent, now_ns)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, now_ns: int
    ) -> tuple[Inode, Inode | None]:
        """Move a name, replacing what has the new one; returns the moved and the replaced inode."""
        with self._change() as index:
            found = index.entry(parent, name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "no such entry", name)
            entry, ino = found
            moved = self._existing(ino)
            cookie = self._cookie_for(index, entry, new_parent, new_name)
            replaced = self._drop_name(index, new_parent, new_name, now_ns, by=moved)
            index.delete_entry(parent, name)
            index.insert_entry(Entry(cookie, new_parent, new_name, entry.linked), ino)
            directory = int(stat.S_ISDIR(moved.mode))
            index.touch_directory(parent, now_ns, -directory)
            gone = int(replaced is not None and stat.S_ISDIR(replaced.mode))
            index.touch_directory(new_parent, now_ns, directory - gone)
            moved.ctime_ns = now_ns
            if replaced is None or replaced.ino != ino:
                index.update_inode(moved)
            return moved, replaced

    def cookie_for(self, entry: Entry, new_parent: int, new_name: bytes) -> int:
        """The cookie that an entry gets by a rename."""
        with self.lock:
            return self._cookie_for(self.index, entry, new_parent, new_name)

    def _cookie_for(self, index: Index, entry: Entry, new_parent: int, new_name: bytes) -> int:
        """A name that is replaced keeps its place: a listing under way would else show it twice."""
        replaced = index.entry(new_parent, new_name)
        if replaced is not None:
            return replaced[0].cookie
        return entry.cookie if entry.parent == new_parent else self.numbers.cookie()

    def exchange(self, parent: int, name: bytes, other_parent: int, other_name: bytes, now_ns: int) -> None:
        """Swap two names (RENAME_EXCHANGE)."""
        with self._change() as index:
            one, other = index.entry(parent, name), index.entry(other_parent, other_name)
            if one is None or other is None:
                raise FileNotFoundError(errno.ENOENT, "no such entry", name)
            index.delete_entry(parent, name)
            index.delete_entry(other_parent, other_name)
            index.insert_entry(replace(one[0], linked=other[0].linked), other[1])
            index.insert_entry(replace(other[0], linked=one[0].linked), one[1])
            links = 0
            for ino, sign in ((one[1], -1), (other[1], 1)):
                inode = self._existing(ino)
                inode.ctime_ns = now_ns
                index.update_inode(inode)
                links += sign * int(stat.S_ISDIR(inode.mode))
            index.touch_directory(parent, now_ns, links if parent != other_parent else 0)
            index.touch_directory(other_parent, now_ns, -links if parent != other_parent else 0)

    def update_inode(self, inode: Inode, xattrs: Mapping[bytes, bytes | None] = _NO_XATTRS) -> None:
        """Save changed attributes, and with them extended ones (None: removed)."""
        with self._change() as index:
            index.update_inode(inode)
            for name, value in xattrs.items():
                if value is None:
                    index.delete_xattr(inode.ino, name)
                else:
                    index.put_xattr(inode.ino, name, value)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """The value of an extended attribute."""
        with self.lock:
            return self.index.xattr(ino, name)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """All extended attributes of an inode."""
        with self.lock:
            return self.index.xattrs(ino)

    def xattr_names(self, ino: int) -> list[bytes]:
        """Names of the extended attributes of an inode."""
        with self.lock:
            return self.index.xattr_names(ino)

    def put_xattr(self, ino: int, name: bytes, value: bytes, now_ns: int) -> None:
        """Set an extended attribute."""
        with self._change() as index:
            index.put_xattr(ino, name, value)
            index.touch_inode(ino, now_ns)

    def delete_xattr(self, ino: int, name: bytes, now_ns: int) -> None:
        """Remove an extended attribute."""
        with self._change() as index:
            index.delete_xattr(ino, name)
            index.touch_inode(ino, now_ns)

    def _existing(self, ino: int) -> Inode:
        inode = self.index.inode(ino)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such inode", str(ino))
        return inode

    def _drop_name(
        self, index: Index, parent: int, name: bytes, now_ns: int, by: Inode | None = None
    ) -> Inode | None:
        """Take a name away; the inode goes with its last one, unless what replaces it may yet be lost."""
        inode = index.lookup(parent, name)
        if inode is None:
            return None
        index.delete_entry(parent, name)
        inode.nlink -= 2 if stat.S_ISDIR(inode.mode) else 1
        inode.ctime_ns = now_ns
        token = self.numbers.token()
        displaced = by is not None and inode.image_id is not None and self._may_be_lost(index, by)
        if displaced and by is not None:
            index.insert_displaced(token, parent, name, inode.ino, by.ino)
        if displaced or inode.nlink > 0:
            index.update_inode(inode)
        else:
            erase(index, inode, token)
        return inode

    def _may_be_lost(self, index: Index, inode: Inode) -> bool:
        version = index.version(inode.version_id) if inode.version_id is not None else None
        return version is not None and bool(version.runs) and version.token > self._state.durable_token


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
