"""The namespace: names, directories, links and renames, saved and pending ones as one tree."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from pixstorefs.fs import acl
from pixstorefs.fs.attributes import new_inode
from pixstorefs.fs.files import Files
from pixstorefs.fs.open_image import OpenImage, PendingName
from pixstorefs.fs.pending import PendingNames
from pixstorefs.records import Entry, Inode
from pixstorefs.store.store import Store

NAME_LIMIT_BYTES = 255
TARGET_LIMIT_BYTES = 4095
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_FIRST_COOKIE = 3
_PAGE_ENTRIES = 64


class Namespace:
    """Names of a mount. Errors are OSErrors with the errno that Linux gives."""

    def __init__(self, store: Store, files: Files, pending: PendingNames, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._files = files
        self._pending = pending
        self._now_ns = now_ns

    # Looking

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode a name stands for; "." and ".." are for the kernel and never come here."""
        _check_name(name)
        pending = self._pending.get(parent, name)
        if pending is not None:
            return pending.inode
        if self._pending.hides(parent, name):
            return None
        inode = self._store.tree.lookup(parent, name)
        return None if inode is None else self._files.as_seen(inode)

    def list(self, ino: int, cookie: int) -> Iterator[tuple[int, bytes, Inode]]:
        """Entries of a directory behind a cookie: (cookie, name, inode), "." and ".." first."""
        if cookie < 1:
            yield 1, b".", self._files.inode(ino)
        if cookie < 2:
            yield 2, b"..", self._files.inode(self._store.tree.parent_of(ino))
        cookie = max(cookie, _FIRST_COOKIE - 1)
        while True:
            saved = self._store.tree.entries(ino, cookie, _PAGE_ENTRIES)
            last = saved[-1][0] if len(saved) == _PAGE_ENTRIES else None
            pending = [item for item in self._pending.behind(ino, cookie) if last is None or item[0] <= last]
            page: Iterable[tuple[int, bytes, Inode]] = saved
            if self._pending.hidden_in(ino):
                page = [item for item in saved if not self._pending.hides(ino, item[1])]
            if pending:
                unsaved = ((at, name, image.inode) for at, name, image in pending)
                page = sorted([*page, *unsaved], key=lambda item: item[0])
            for at, name, inode in page:
                yield at, name, self._files.as_seen(inode)
            if last is None:
                return
            cookie = last

    def read_link(self, ino: int) -> bytes:
        """Where a symlink points. Raises EINVAL."""
        target = self._store.tree.link_target(ino)
        if target is None:
            raise _error(errno.EINVAL)
        return target

    # Making

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int
    ) -> tuple[int, OpenImage]:
        """A new, pending file and a handle of it. Raises EEXIST, ENAMETOOLONG, ENOENT."""
        directory = self._directory_for_new(parent, name)
        now_ns = self._now_ns()
        ino = self._store.numbers.ino()
        image_id = self._store.allocator.new_image_id(ino)
        mode, lists = self._inherited(parent, stat.S_IFREG | stat.S_IMODE(mode), umask)
        inode = new_inode(ino, mode, uid, gid, directory, now_ns, image_id=image_id)
        entry = Entry(self._store.numbers.cookie(), parent, name)
        handle, image = self._files.create(inode, PendingName(entry, lists))
        self._pending.add(image)
        if self._pending.hides(parent, name):
            self._pending.hand_over(parent, name, image)
        self._pending.touch(parent, now_ns)
        return handle, image

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        umask: int,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """A new directory, symlink or special file, saved at once. Raises EEXIST, ENAMETOOLONG, ENOENT."""
        directory = self._directory_for_new(parent, name)
        self._remove_hidden(parent, name)
        mode, lists = self._inherited(parent, mode, umask)
        inode = new_inode(self._store.numbers.ino(), mode, uid, gid, directory, self._now_ns())
        inode.rdev = rdev
        if target is not None:
            if len(target) > TARGET_LIMIT_BYTES:
                raise _error(errno.ENAMETOOLONG)
            inode.size_bytes = len(target)
        self._store.tree.add(inode, parent, name, target, lists)
        self._pending.take_changed_ns(parent)
        return inode

    def _inherited(self, parent: int, mode: int, umask: int) -> tuple[int, dict[bytes, bytes]]:
        """Mode and access control lists of something new: a default list takes the place of the umask."""
        if stat.S_ISLNK(mode):
            return mode, {}
        default = self._store.tree.xattr(parent, acl.DEFAULT)
        if default is None:
            return mode & ~umask, {}
        return acl.inherited(default, mode, directory=stat.S_ISDIR(mode))

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """One more name for a saved file. Raises EEXIST, ENOENT (its last name is gone), EPERM."""
        self._directory_for_new(parent, name)
        inode = self._files.inode(ino)
        if stat.S_ISDIR(inode.mode):
            raise _error(errno.EPERM)
        if self._files.links(inode) == 0:
            raise _error(errno.ENOENT)
        self._remove_hidden(parent, name)
        linked = self._store.tree.link(ino, parent, name, self._now_ns())
        inode.nlink, inode.ctime_ns = linked.nlink, linked.ctime_ns
        self._pending.take_changed_ns(parent)
        return self._files.as_seen(inode)

    # Removing

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove the name of anything but a directory. Raises ENOENT, EISDIR."""
        _check_name(name)
        pending = self._pending.get(parent, name)
        if pending is not None:
            assert pending.pending is not None
            for hidden in list(pending.pending.hides):
                self._remove_hidden(*hidden)
            self._unlink_pending(pending)
            return
        inode = self._existing(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise _error(errno.EISDIR)
        self._remove_saved(parent, name, inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. Raises ENOENT, ENOTDIR, ENOTEMPTY."""
        _check_name(name)
        inode = self._existing(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise _error(errno.ENOTDIR)
        self._check_empty(inode.ino)
        self._empty(inode.ino)
        self._remove_saved(parent, name, inode)

    def _unlink_pending(self, image: OpenImage) -> None:
        assert image.pending is not None
        self._files.prepare_loss(image.inode)
        self._pending.discard(image)
        self._pending.touch(image.pending.entry.parent, self._now_ns())
        image.pending = None
        image.inode.nlink = 0
        self._files.lost_name(image.inode)

    def _remove_saved(self, parent: int, name: bytes, inode: Inode) -> None:
        """Remove a name from the index; `inode` is what it stands for."""
        self._files.prepare_loss(inode)
        removed = self._store.tree.remove(parent, name, self._now_ns())
        self._pending.take_changed_ns(parent)
        self._pending.uncover(parent, name)
        if removed is not None:
            self._files.lost_name(removed)

    def _remove_hidden(self, parent: int, name: bytes) -> None:
        """A hidden name does not wait for who hides it: that one is deleted, or the name taken for good."""
        if self._pending.hides(parent, name):
            inode = self._store.tree.lookup(parent, name)
            if inode is not None:
                self._remove_saved(parent, name, inode)

    def _empty(self, ino: int) -> None:
        """Take away what a directory holds that nobody sees."""
        for name in self._pending.hidden_in(ino):
            self._remove_hidden(ino, name)

    # Renaming

    def pending_of(self, parent: int, name: bytes) -> OpenImage | None:
        """The file of this name if it was never saved."""
        return self._pending.get(parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename, atomically replacing what has the new name.

        Both names of an exchange must be saved (see pending_of). Raises ENOENT, EEXIST, EISDIR, ENOTDIR,
        ENOTEMPTY, EINVAL, ENAMETOOLONG.
        """
        _check_name(name)
        _check_name(new_name)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise _error(errno.EINVAL)
        moved = self._existing(parent, name)
        target = self.lookup(new_parent, new_name)
        if flags == RENAME_EXCHANGE:
            self._exchange(parent, name, new_parent, new_name)
            return
        if target is not None:
            if flags == RENAME_NOREPLACE:
                raise _error(errno.EEXIST)
            if target.ino == moved.ino:
                return
            self._check_replaceable(moved, target)
        image = self._pending.get(parent, name)
        if image is not None:
            self._rename_pending(image, new_parent, new_name, target)
        else:
            self._rename_saved(parent, name, new_parent, new_name, target)

    def _rename_saved(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, target: Inode | None
    ) -> None:
        over = self._pending.get(new_parent, new_name)
        if over is not None or self._pending.hides(new_parent, new_name):
            target = self._store.tree.lookup(new_parent, new_name)  # what the index has there is not seen
        if target is not None:
            self._files.prepare_loss(target)
            self._empty(target.ino)
        moved, replaced = self._store.tree.rename(parent, name, new_parent, new_name, self._now_ns())
        self._pending.uncover(new_parent, new_name)
        self._pending.take_changed_ns(parent)
        self._pending.take_changed_ns(new_parent)
        image = self._files.image(moved.ino)
        if image is not None:
            image.inode.ctime_ns = moved.ctime_ns
        if replaced is not None:
            self._files.lost_name(replaced)
        if over is not None:
            assert over.pending is not None
            for hidden in list(over.pending.hides):
                self._remove_hidden(*hidden)
            self._unlink_pending(over)

    def _rename_pending(
        self, image: OpenImage, new_parent: int, new_name: bytes, target: Inode | None
    ) -> None:
        """Only the mount changes; the index keeps what the file replaces until it is saved."""
        assert image.pending is not None
        old, now_ns = image.pending.entry, self._now_ns()
        over = self._pending.get(new_parent, new_name)
        if over is not None:
            assert over.pending is not None
            cookie = over.pending.entry.cookie
            for hidden in list(over.pending.hides):
                self._pending.hand_over(*hidden, image)
            self._unlink_pending(over)
        else:
            cookie = self._new_cookie(old, new_parent, new_name)
        self._pending.discard(image)
        image.pending.entry = Entry(cookie, new_parent, new_name)
        image.inode.ctime_ns = now_ns
        self._pending.add(image)
        self._pending.touch(old.parent, now_ns)
        self._pending.touch(new_parent, now_ns)
        if self._pending.hides(new_parent, new_name):
            self._pending.hand_over(new_parent, new_name, image)
        elif over is None and target is not None:
            self._files.prepare_loss(target)
            self._pending.hide(new_parent, new_name, target.ino, image)
            target.ctime_ns = now_ns
            self._files.lost_name(target)

    def _new_cookie(self, old: Entry, new_parent: int, new_name: bytes) -> int:
        """The cookie of a pending name by a rename. That of a saved name it leaves stays with that one."""
        if self._pending.hides(old.parent, old.name):
            old = Entry(self._store.numbers.cookie(), old.parent, old.name)
        return self._store.tree.cookie_for(old, new_parent, new_name)

    def _exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        self._existing(new_parent, new_name)
        now_ns = self._now_ns()
        self._store.tree.exchange(parent, name, new_parent, new_name, now_ns)
        for changed in (parent, new_parent):
            self._pending.take_changed_ns(changed)
        for at, moved in ((parent, name), (new_parent, new_name)):
            inode = self._store.tree.lookup(at, moved)
            image = self._files.image(inode.ino) if inode else None
            if image is not None:
                image.inode.ctime_ns = now_ns

    # Checks

    def _existing(self, parent: int, name: bytes) -> Inode:
        inode = self.lookup(parent, name)
        if inode is None:
            raise _error(errno.ENOENT)
        return inode

    def _directory_for_new(self, parent: int, name: bytes) -> Inode:
        _check_name(name)
        directory = self._files.inode(parent)
        if directory.nlink == 0:
            raise _error(errno.ENOENT)
        if self.lookup(parent, name) is not None:
            raise _error(errno.EEXIST)
        return directory

    def _check_empty(self, ino: int) -> None:
        hidden = self._pending.hidden_in(ino)
        # One more than is hidden: then one of them is seen.
        seen = len(self._store.tree.entries(ino, 0, len(hidden) + 1)) > len(hidden)
        if seen or self._pending.has(ino):
            raise _error(errno.ENOTEMPTY)

    def _check_replaceable(self, moved: Inode, target: Inode) -> None:
        if stat.S_ISDIR(target.mode):
            if not stat.S_ISDIR(moved.mode):
                raise _error(errno.EISDIR)
            self._check_empty(target.ino)
        elif stat.S_ISDIR(moved.mode):
            raise _error(errno.ENOTDIR)


def _check_name(name: bytes) -> None:
    if len(name) > NAME_LIMIT_BYTES:
        raise _error(errno.ENAMETOOLONG)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
