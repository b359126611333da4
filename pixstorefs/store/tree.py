"""The tree: names and attributes of what is saved. Every change is one transaction."""

import errno
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pixstorefs.index.displaced import erase
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import Index
from pixstorefs.records import Entry, Inode
from pixstorefs.store.ledger import Ledger
from pixstorefs.store.numbers import Numbers
from pixstorefs.store.transactions import Transactions

_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})

# Entries of a directory: (cookie, name, inode).
Listed = tuple[tuple[int, bytes, Inode], ...]

# So many are kept for the next who asks; about 10 MB.
LISTED_ENTRIES = 16_384
# SQLite's integers are signed.
_LARGEST_INO = (1 << 63) - 1


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


class Tree:
    """The saved tree of one open store. Thread-safe."""

    def __init__(self, transactions: Transactions, numbers: Numbers, ledger: Ledger) -> None:
        self._transactions = transactions
        self._index = transactions.index
        self._numbers = numbers
        self._ledger = ledger
        # What was listed since the last change: who looks at a directory mostly looks again.
        self._listed: dict[tuple[int, int, int], Listed] = {}
        self._listed_entries = 0

    # Looking

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode a name stands for."""
        with self._transactions.lock:
            return self._index.lookup(parent, name)

    def inode(self, ino: int) -> Inode | None:
        """The inode with this number, if it has a name."""
        with self._transactions.lock:
            inode = self._index.inode(ino)
        return inode if inode is not None and inode.nlink > 0 else None

    def inode_of_image(self, image_id: bytes) -> Inode | None:
        """The inode of an image."""
        inode = self.inode(int.from_bytes(image_id[:8], "big") & _LARGEST_INO)
        return inode if inode is not None and inode.image_id == image_id else None

    def created_ns(self, ino: int) -> int:
        """When an inode was made."""
        with self._transactions.lock:
            return self._index.created_ns(ino)

    def entries(self, parent: int, after_cookie: int, limit: int) -> Listed:
        """Entries of a directory behind a cookie, in cookie order; others may be given the same ones."""
        asked = (parent, after_cookie, limit)
        with self._transactions.lock:
            page = self._listed.get(asked)
            if page is None:
                page = tuple(self._index.entries(parent, after_cookie, limit))
                entries = max(1, len(page))  # an empty page takes room, too
                if self._listed_entries + entries > LISTED_ENTRIES:
                    self.forget_listed()
                self._listed[asked] = page
                self._listed_entries += entries
            return page

    def forget_listed(self) -> None:
        """Something was changed (with the store's lock held)."""
        self._listed.clear()
        self._listed_entries = 0

    def parent_of(self, ino: int) -> int:
        """The directory that holds a directory; the root's is the root."""
        entries = self.names(ino)
        return entries[0].parent if entries else ino

    def link_target(self, ino: int) -> bytes | None:
        """Where a symlink points."""
        with self._transactions.lock:
            return self._index.link_target(ino)

    def names(self, ino: int) -> list[Entry]:
        """All names of an inode."""
        with self._transactions.lock:
            return self._index.names(ino)

    def path_of(self, ino: int) -> str:
        """A path inside the mount, for messages."""
        with self._transactions.lock:
            return path_of(self._index, ino)

    # Changing

    def add(
        self,
        inode: Inode,
        parent: int,
        name: bytes,
        target: bytes | None = None,
        xattrs: Mapping[bytes, bytes] = _NO_XATTRS,
    ) -> None:
        """A new directory, symlink or special file. Raises FileExistsError."""
        with self._transactions.change() as index:
            if index.entry(parent, name):
                raise FileExistsError(errno.EEXIST, "exists", name)
            index.insert_inode(inode, inode.ctime_ns, target)
            index.insert_entry(Entry(self._numbers.cookie(), parent, name), inode.ino)
            for attribute, value in xattrs.items():
                index.put_xattr(inode.ino, attribute, value)
            index.touch_directory(parent, inode.ctime_ns, int(stat.S_ISDIR(inode.mode)))

    def link(self, ino: int, parent: int, name: bytes, now_ns: int) -> Inode:
        """One more name for a file; returns its inode as it is now."""
        with self._transactions.change() as index:
            inode = self._existing(ino)
            if index.entry(parent, name):
                raise FileExistsError(errno.EEXIST, "exists", name)
            inode.nlink += 1
            inode.ctime_ns = now_ns
            index.update_inode(inode)
            index.mark_linked(ino)
            index.insert_entry(Entry(self._numbers.cookie(), parent, name, linked=True), ino)
            index.touch_directory(parent, now_ns)
            return inode

    def remove(self, parent: int, name: bytes, now_ns: int) -> Inode | None:
        """Remove a name; with the last one the inode goes and the image's key is destroyed.

        Returns the inode as it is now (nlink 0 when it is gone), None where there was no such name.
        """

        def remove(index: Index) -> Inode | None:
            inode = self._drop_name(index, parent, name, now_ns)
            if inode is not None:
                index.touch_directory(parent, now_ns, -int(stat.S_ISDIR(inode.mode)))
            return inode

        return self._transactions.removal(remove)

    def remove_all(self, ino: int, now_ns: int) -> None:
        """Remove a file under all its names."""

        def remove(index: Index) -> None:
            for entry in index.names(ino):
                self._drop_name(index, entry.parent, entry.name, now_ns)
                index.touch_directory(entry.parent, now_ns)

        self._transactions.removal(remove)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, now_ns: int
    ) -> tuple[Inode, Inode | None]:
        """Move a name, replacing what has the new one; returns the moved and the replaced inode."""
        with self._transactions.change() as index:
            found = index.named(parent, name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "no such entry", name)
            entry, moved = found
            cookie = self._cookie_for(index, entry, new_parent, new_name)
            replaced = self._drop_name(index, new_parent, new_name, now_ns, by=moved)
            index.move_entry(entry, Entry(cookie, new_parent, new_name, entry.linked), moved.ino)
            arrived = int(stat.S_ISDIR(moved.mode))
            gone = int(replaced is not None and stat.S_ISDIR(replaced.mode))
            if parent == new_parent:
                index.touch_directory(parent, now_ns, -gone)
            else:
                index.touch_directory(parent, now_ns, -arrived)
                index.touch_directory(new_parent, now_ns, arrived - gone)
            index.touch_inode(moved.ino, now_ns)
            moved.ctime_ns = now_ns
            return moved, replaced

    def cookie_for(self, entry: Entry, new_parent: int, new_name: bytes) -> int:
        """The cookie that an entry gets by a rename."""
        with self._transactions.lock:
            return self._cookie_for(self._index, entry, new_parent, new_name)

    def _cookie_for(self, index: Index, entry: Entry, new_parent: int, new_name: bytes) -> int:
        """A name that is replaced keeps its place: a listing under way would else show it twice."""
        replaced = index.entry(new_parent, new_name)
        if replaced is not None:
            return replaced[0].cookie
        return entry.cookie if entry.parent == new_parent else self._numbers.cookie()

    def exchange(self, parent: int, name: bytes, other_parent: int, other_name: bytes, now_ns: int) -> None:
        """Swap two names (RENAME_EXCHANGE)."""
        with self._transactions.change() as index:
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
        with self._transactions.change() as index:
            index.update_inode(inode)
            for name, value in xattrs.items():
                if value is None:
                    index.delete_xattr(inode.ino, name)
                else:
                    index.put_xattr(inode.ino, name, value)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """The value of an extended attribute."""
        with self._transactions.lock:
            return self._index.xattr(ino, name)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """All extended attributes of an inode."""
        with self._transactions.lock:
            return self._index.xattrs(ino)

    def xattr_names(self, ino: int) -> list[bytes]:
        """Names of the extended attributes of an inode."""
        with self._transactions.lock:
            return self._index.xattr_names(ino)

    @property
    def may_have_xattrs(self) -> bool:
        """Whether any inode may have an extended attribute. False as long as none ever had one."""
        with self._transactions.lock:
            return self._index.has_xattrs

    def put_xattr(self, ino: int, name: bytes, value: bytes, now_ns: int) -> None:
        """Set an extended attribute."""
        with self._transactions.change() as index:
            index.put_xattr(ino, name, value)
            index.touch_inode(ino, now_ns)

    def delete_xattr(self, ino: int, name: bytes, now_ns: int) -> None:
        """Remove an extended attribute."""
        with self._transactions.change() as index:
            index.delete_xattr(ino, name)
            index.touch_inode(ino, now_ns)

    def insert_named(self, index: Index, inode: Inode, new: NewName) -> None:
        """A file that was never saved gets its names, inside the transaction that saves it."""
        for parent, name in (*new.left, (new.entry.parent, new.entry.name)):
            self._drop_name(index, parent, name, inode.ctime_ns, by=inode)
        index.insert_inode(inode, inode.ctime_ns)
        index.insert_entry(new.entry, inode.ino)
        for name, value in new.xattrs.items():
            index.put_xattr(inode.ino, name, value)
        if new.directory_ns is not None:
            index.touch_directory(new.entry.parent, new.directory_ns)

    def _existing(self, ino: int) -> Inode:
        inode = self._index.inode(ino)
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
        token = self._numbers.token()
        displaced = by is not None and inode.image_id is not None and self._ledger.may_be_lost(index, by)
        if displaced and by is not None:
            index.insert_displaced(token, parent, name, inode.ino, by.ino)
        if displaced or inode.nlink > 0:
            index.update_inode(inode)
        else:
            erase(index, inode, token)
        return inode
