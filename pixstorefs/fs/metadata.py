"""What an inode has besides content: mode, owner, times and access control lists, which change together."""

import errno
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace

from pixstorefs.errors import NoSpace
from pixstorefs.fs.acl import ACCESS, Acl
from pixstorefs.fs.attributes import Changes, apply
from pixstorefs.fs.files import Files
from pixstorefs.fs.pending import PendingNames
from pixstorefs.records import Inode
from pixstorefs.store.store import Store

log = logging.getLogger(__name__)


class Metadata:
    """Changes of the attributes of inodes. Errors are OSErrors with the errno that Linux gives."""

    def __init__(self, store: Store, files: Files, pending: PendingNames, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._files = files
        self._pending = pending
        self._now_ns = now_ns

    def change(self, ino: int, changes: Changes) -> Inode:
        """chmod(2), chown(2), utimensat(2). A mode goes into the access control list, too. Raises ESTALE."""
        lists: dict[bytes, bytes | None] = {}
        access = None if changes.mode is None else self._files.xattr(ino, ACCESS)
        if access is not None and changes.mode is not None:
            lists[ACCESS] = Acl.parse(access).with_mode(changes.mode).pack()
        return self._apply(ino, changes, lists)

    def put_access_acl(self, ino: int, value: bytes, *, of_group: bool) -> None:
        """Set the access control list, and the mode by it; one that says no more than a mode is not kept.

        `of_group`: whether who asks belongs to the group of the file; else it loses its set-group-id bit, as
        with chmod(2), but which the kernel leaves to us here. Raises EINVAL, ESTALE.
        """
        acl = Acl.parse(value)
        mode = stat.S_IMODE(self._files.inode(ino).mode) & ~0o777 | acl.permission_bits
        if not of_group:
            mode &= ~stat.S_ISGID
        self._apply(ino, Changes(mode=mode), {ACCESS: None if acl.is_minimal else acl.pack()})

    def check_default_acl(self, ino: int, value: bytes) -> None:
        """Whether this can be what a directory hands down. Raises EINVAL, EACCES where it is no directory."""
        Acl.parse(value)
        if not stat.S_ISDIR(self._files.inode(ino).mode):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def _apply(self, ino: int, changes: Changes, xattrs: Mapping[bytes, bytes | None]) -> Inode:
        now_ns = self._now_ns()
        inode = self._files.inode(ino)
        unsaved = self._files.unsaved_xattrs(ino)
        if unsaved is None:
            self._write(inode, changes, xattrs, now_ns)
        else:
            for name, value in xattrs.items():
                unsaved.pop(name, None)
                if value is not None:
                    unsaved[name] = value
        apply(inode, changes, now_ns)
        return inode

    def _write(
        self, inode: Inode, changes: Changes, xattrs: Mapping[bytes, bytes | None], now_ns: int
    ) -> None:
        """Change an inode in the index. Not `inode` itself yet: it stays as it is where this fails."""
        image = self._files.image(inode.ino)
        before: Inode | None = inode
        if image is not None and image.dirty:
            # The times belong to the content that is not saved yet and wait for it.
            changes = Changes(changes.mode, changes.uid, changes.gid)
            if changes == Changes():
                return
            before = self._store.tree.inode(inode.ino)
        if before is None:
            return
        saved = replace(before)
        apply(saved, changes, now_ns)
        is_directory = stat.S_ISDIR(saved.mode)
        if saved == before and not xattrs and not is_directory:
            return  # the kernel's own ctime, after a rename whose time is the same tick
        self._store.tree.update_inode(saved, xattrs)
        if is_directory:
            self._pending.take_changed_ns(saved.ino)

    def write_directory_times(self) -> None:
        """Write down what pending names changed and no save took along (at unmount).

        On a full disk the directories keep the times they had: no image is any the worse for that.
        """
        for ino, changed_ns in self._pending.all_changed().items():
            inode = self._store.tree.inode(ino)
            if inode is not None:
                inode.mtime_ns = inode.ctime_ns = changed_ns
                try:
                    self._store.tree.update_inode(inode)
                except NoSpace as error:
                    log.warning("the last changes of directories are not in their times: %s", error)
                    return
            self._pending.take_changed_ns(ino)
