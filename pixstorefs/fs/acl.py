"""POSIX access control lists (acl(5)): their binary form, and how they and the mode keep in step.

The kernel asks for them as the extended attributes `ACCESS` and `DEFAULT` and decides by them who may do
what. What they do to the mode, and the mode to them, it leaves to the file system: POSIX 1003.1e draft 17,
section 23.1, as Linux has it in fs/posix_acl.c. The binary form is that of linux/posix_acl_xattr.h: a
version, then entries of tag, permissions and id, all little-endian.
"""

import enum
import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_CURRENT_VERSION = 2
_PERMISSIONS = 0o7
_NO_ID = 0xFFFFFFFF


class Tag(enum.IntEnum):
    """Whom an entry is for. The members stand in the order that a list must have."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_NAMED = (Tag.USER, Tag.GROUP)
_TAGS = frozenset(Tag)


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One line of a list. `id` is a uid or gid of a named user or group, else `_NO_ID`."""

    tag: Tag
    permissions: int
    id: int


@dataclass(frozen=True, slots=True)
class Acl:
    """A valid list."""

    entries: tuple[AclEntry, ...]

    @staticmethod
    def parse(value: bytes) -> "Acl":
        """The list in an extended attribute. Raises OSError EINVAL."""
        if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _ENTRY.size:
            raise _invalid()
        if _VERSION.unpack_from(value)[0] != _CURRENT_VERSION:
            raise _invalid()
        acl = Acl(tuple(_entries(value)))
        if not acl._is_valid():
            raise _invalid()
        return acl

    def pack(self) -> bytes:
        """The binary form."""
        entries = (_ENTRY.pack(entry.tag, entry.permissions, entry.id) for entry in self.entries)
        return _VERSION.pack(_CURRENT_VERSION) + b"".join(entries)

    @property
    def is_minimal(self) -> bool:
        """Whether it says no more than a mode: such a list is not stored."""
        return len(self.entries) == 3

    @property
    def permission_bits(self) -> int:
        """The nine bits of the mode that it stands for; the group's are the mask's, if there is one."""
        permissions = {entry.tag: entry.permissions for entry in self.entries}
        group = permissions.get(Tag.MASK, permissions[Tag.GROUP_OBJ])
        return permissions[Tag.USER_OBJ] << 6 | group << 3 | permissions[Tag.OTHER]

    def with_mode(self, mode: int) -> "Acl":
        """The list after a chmod: the mask, which bounds all but user and other, takes the group's bits."""
        tags = {entry.tag for entry in self.entries}
        changed = {
            Tag.USER_OBJ: mode >> 6 & _PERMISSIONS,
            Tag.MASK if Tag.MASK in tags else Tag.GROUP_OBJ: mode >> 3 & _PERMISSIONS,
            Tag.OTHER: mode & _PERMISSIONS,
        }
        return Acl(
            tuple(
                replace(entry, permissions=changed.get(entry.tag, entry.permissions))
                for entry in self.entries
            )
        )

    def renumbered(self, user: Callable[[int], int], group: Callable[[int], int]) -> "Acl":
        """The same with other numbers for those that it names."""
        number = {Tag.USER: user, Tag.GROUP: group}
        return Acl(
            tuple(
                replace(entry, id=number[entry.tag](entry.id)) if entry.tag in number else entry
                for entry in self.entries
            )
        )

    def _is_valid(self) -> bool:
        tags = [entry.tag for entry in self.entries]
        once = all(tags.count(tag) == 1 for tag in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER))
        masks = tags.count(Tag.MASK)
        masked = masks == 1 or (masks == 0 and not any(tag in _NAMED for tag in tags))
        return once and masked and tags == sorted(tags)


def inherited(default: bytes, mode: int, *, directory: bool) -> tuple[int, dict[bytes, bytes]]:
    """Mode and lists of something new, from the mode that was asked for and the default list above it.

    Nobody gets more than both allow. Raises OSError EINVAL where the list is none.
    """
    acl = Acl.parse(default)
    acl = acl.with_mode(mode & acl.permission_bits)
    lists = {} if acl.is_minimal else {ACCESS: acl.pack()}
    if directory:
        lists[DEFAULT] = default
    return mode & ~0o777 | acl.permission_bits, lists


def _entries(value: bytes) -> Iterator[AclEntry]:
    for tag, permissions, number in _ENTRY.iter_unpack(value[_VERSION.size :]):
        if tag not in _TAGS or permissions & ~_PERMISSIONS:
            raise _invalid()
        named = tag in _NAMED
        if named and number == _NO_ID:
            raise _invalid()
        yield AclEntry(Tag(tag), permissions, number if named else _NO_ID)


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
