"""The answering part of the adapter: what the kernel is told of an inode, and how long that holds."""

from pyfuse3 import EntryAttributes

from pixstorefs.fs.attributes import blocks
from pixstorefs.fs.files import Files
from pixstorefs.fs.owners import Owners
from pixstorefs.records import Inode
from pixstorefs.store.tree import LISTED_ENTRIES

# The mount is the only writer, so what the kernel caches stays right for as long as it likes.
CACHE_TIMEOUT_S = 86400.0


class Answers:
    """Entries for the kernel."""

    def __init__(self, files: Files, owners: Owners) -> None:
        self._files = files
        self._owners = owners
        # By inode number, about 400 bytes each: the inode that was listed, and what was answered.
        self._kept: dict[int, tuple[Inode, EntryAttributes]] = {}

    def missing(self) -> EntryAttributes:
        """There is no such name: an entry with inode 0, which the kernel caches as well."""
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = CACHE_TIMEOUT_S
        return entry

    def entry(self, inode: Inode) -> EntryAttributes:
        """An inode as programs see it."""
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.generation = self._files.generation(inode.ino)
        entry.entry_timeout = entry.attr_timeout = CACHE_TIMEOUT_S
        entry.st_mode = self._owners.mode(inode.mode)
        entry.st_nlink = self._files.links(inode)
        entry.st_uid = self._owners.users.out(inode.uid)
        entry.st_gid = self._owners.groups.out(inode.gid)
        entry.st_rdev = inode.rdev
        entry.st_size = self._files.size_bytes(inode)
        entry.st_blocks = blocks(inode.stored_size_bytes)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        return entry

    def listed(self, inode: Inode) -> EntryAttributes:
        """The same for a listing, kept for the next one: making it costs more than all the rest of a name.

        A listing that the store keeps has the very same inodes again; after any change it has others.
        """
        if not self._files.are_as_saved:
            return self.entry(inode)
        kept = self._kept.get(inode.ino)
        if kept is not None and kept[0] is inode:
            return kept[1]
        if len(self._kept) >= LISTED_ENTRIES:
            self._kept.clear()
        entry = self.entry(inode)
        self._kept[inode.ino] = inode, entry
        return entry
