"""Extended attributes: those that programs set, and ours that tell about the image.

Ours (`user.pixstore.id`, `.token`, `.format`, `.width`, `.height`) are computed when asked for. They are not
listed, as ceph and CIFS do with theirs: a program that copies all listed attributes must not fail on
attributes that it cannot set.
"""

import errno
import os
import stat
from collections.abc import Callable

from pixstorefs.errors import CorruptImage
from pixstorefs.fs.acl import ACCESS, DEFAULT
from pixstorefs.fs.files import Files
from pixstorefs.fs.metadata import Metadata
from pixstorefs.records import Inode
from pixstorefs.store.measure import Measuring
from pixstorefs.store.store import Store

OWN_PREFIX = b"user.pixstore."
# Which of width and height an attribute is. They are read from the image, which may take long.
MEASURED = {OWN_PREFIX + b"width": 0, OWN_PREFIX + b"height": 1}
# Of `system.` only access control lists, which are more than bytes: see `metadata`.
_NAMESPACES = (b"user.", b"trusted.", b"security.")
_LISTS = (ACCESS, DEFAULT)
_LABEL = b"security.selinux"
# Linux's own limits (xattr(7)); the kernel checks them, too.
NAME_LIMIT_BYTES = 255
VALUE_LIMIT_BYTES = 65536


class Xattrs:
    """Extended attributes of a mount. Errors are OSErrors with the errno that Linux gives."""

    def __init__(self, store: Store, files: Files, metadata: Metadata, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._files = files
        self._metadata = metadata
        self._now_ns = now_ns

    def get(self, ino: int, name: bytes) -> bytes | None:
        """The value of an attribute. Raises EOPNOTSUPP, EIO where ours need a damaged object.

        None where there is no such attribute, and no ENODATA: nearly every answer is that one. For those in
        MEASURED see `to_measure`.
        """
        _check_name(name)
        if name.startswith(OWN_PREFIX):
            return self._own(self._files.inode(ino), name[len(OWN_PREFIX) :])
        value = self._files.xattr(ino, name)
        if value is None and name == _LABEL and not self._store.tree.may_have_xattrs:
            # `ls -l` asks for the label of every file until it hears this: half of its requests.
            raise _error(errno.EOPNOTSUPP)
        return value

    def to_measure(self, ino: int) -> Measuring | None:
        """The saved image whose header tells width and height; None where there is none. Raises EIO."""
        inode = self._files.inode(ino)
        if not stat.S_ISREG(inode.mode) or inode.version_id is None:
            return None
        try:
            image_format = self._store.version(inode).format
            return None if image_format is None else Measuring(self._store, inode, image_format)
        except CorruptImage as error:
            raise _error(errno.EIO) from error

    def names(self, ino: int) -> list[bytes]:
        """Names of the attributes that programs set."""
        unsaved = self._files.unsaved_xattrs(ino)
        return self._store.tree.xattr_names(ino) if unsaved is None else list(unsaved)

    def put(self, ino: int, name: bytes, value: bytes, *, of_group: bool) -> None:
        """Set an attribute; `of_group`: see Metadata.put_access_acl.

        Raises EPERM for ours, EOPNOTSUPP, ERANGE, E2BIG, EINVAL and EACCES for access control lists.
        """
        _check_name(name)
        if name == ACCESS:
            self._metadata.put_access_acl(ino, value, of_group=of_group)
            return
        if name == DEFAULT:
            self._metadata.check_default_acl(ino, value)
        if name.startswith(OWN_PREFIX):
            raise _error(errno.EPERM)
        if len(name) > NAME_LIMIT_BYTES:
            raise _error(errno.ERANGE)
        if len(value) > VALUE_LIMIT_BYTES:
            raise _error(errno.E2BIG)
        unsaved = self._files.unsaved_xattrs(ino)
        image = self._files.image(ino)
        if image is not None:
            image.may_have_capability = True
        changed_ns = self._touched(ino)
        if unsaved is None:
            self._store.tree.put_xattr(ino, name, value, changed_ns)
        else:
            unsaved[name] = value

    def remove(self, ino: int, name: bytes) -> None:
        """Remove an attribute. Raises ENODATA, EOPNOTSUPP, EPERM for ours."""
        if name.startswith(OWN_PREFIX):
            raise _error(errno.EPERM)
        if name in _LISTS and self._files.xattr(ino, name) is None:
            return  # every file has an access list, if only the one that its mode is
        _check_name(name)
        if self._files.xattr(ino, name) is None:
            raise _error(errno.ENODATA)
        unsaved = self._files.unsaved_xattrs(ino)
        changed_ns = self._touched(ino)
        if unsaved is None:
            self._store.tree.delete_xattr(ino, name, changed_ns)
        else:
            del unsaved[name]

    def _touched(self, ino: int) -> int:
        inode = self._files.inode(ino)
        inode.ctime_ns = self._now_ns()
        return inode.ctime_ns

    def _own(self, inode: Inode, name: bytes) -> bytes | None:
        if not stat.S_ISREG(inode.mode) or inode.image_id is None:
            return None
        if name == b"id":
            return inode.image_id.hex().encode()
        if inode.version_id is None:
            return None
        try:
            version = self._store.version(inode)
            if name == b"token":
                return str(version.token).encode()
            if name == b"format" and version.format is not None:
                return version.format.encode()
        except CorruptImage as error:
            raise _error(errno.EIO) from error
        return None


def _check_name(name: bytes) -> None:
    """EOPNOTSUPP outside the namespaces we keep, EINVAL for the mere name of one: FUSE lets both through."""
    if name in _NAMESPACES:
        raise _error(errno.EINVAL)
    if name not in _LISTS and not name.startswith(_NAMESPACES):
        raise _error(errno.EOPNOTSUPP)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
