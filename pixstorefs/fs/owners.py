"""Whose the files are in one mount: numbers and modes as they are shown, and as they are stored.

A store keeps the numbers of users and groups of the machine it was made on. Restored to another machine, or
to another user of this one, they mean nobody, and who has the key could not read what it opens. So in a mount
for one user the owner of the store, who is that of its root directory, is shown as who mounts; what is shown
so is stored as the owner's, and the store goes back as it came. Everybody else keeps his number.

Rejected: to swap the two numbers, which would lose nothing. In a store of root's that was mounted for all,
the files of the very user who mounts it would then become root's, and be closed to him.
"""

import stat
from dataclasses import dataclass, replace

from pixstorefs.fs.acl import Acl
from pixstorefs.fs.attributes import Changes
from pixstorefs.records import Inode

_PERMISSIONS = 0o777
_MAY_EXECUTE = 0o111


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of users, or of groups: `owner`, who has the store, is shown as `shown`; with `every`, all are."""

    owner: int = 0
    shown: int = 0
    every: bool = False

    def out(self, stored: int) -> int:
        """The owner of a file as it is shown."""
        return self.shown if self.every else self.named_out(stored)

    def named_out(self, stored: int) -> int:
        """Whom an access control list names. To show all of them as one would give one what others may."""
        return self.shown if stored == self.owner else stored

    def into(self, given: int) -> int:
        """What is stored for a number that a program gives."""
        return self.owner if given == self.shown else given


@dataclass(frozen=True, slots=True)
class Owners:
    """How one mount shows owners and modes. Without arguments as they are stored."""

    users: Numbers = Numbers()
    groups: Numbers = Numbers()
    umask: int | None = None

    def mode(self, stored: int) -> int:
        """The mode as it is shown: with `umask` that of something new, whatever is stored."""
        if self.umask is None or stat.S_ISLNK(stored):
            return stored
        executable = stat.S_ISDIR(stored) or stored & _MAY_EXECUTE
        return stored & ~_PERMISSIONS | (0o777 if executable else 0o666) & ~self.umask

    def changes_into(self, inode: Inode, asked: Changes) -> Changes:
        """What to store of a change that a program asks for.

        What is shown already stays as it is stored: a program that copies attributes sets all of them.
        """
        mode, uid, gid = asked.mode, asked.uid, asked.gid
        if mode is not None and stat.S_IMODE(mode) == stat.S_IMODE(self.mode(inode.mode)):
            mode = inode.mode
        if uid is not None:
            uid = inode.uid if uid == self.users.out(inode.uid) else self.users.into(uid)
        if gid is not None:
            gid = inode.gid if gid == self.groups.out(inode.gid) else self.groups.into(gid)
        return replace(asked, mode=mode, uid=uid, gid=gid)

    def acl_out(self, stored: bytes) -> bytes:
        """An access control list as it is shown."""
        if not self._renumbers:
            return stored
        return Acl.parse(stored).renumbered(self.users.named_out, self.groups.named_out).pack()

    def acl_into(self, given: bytes) -> bytes:
        """What is stored for a list that a program gives. Raises OSError EINVAL."""
        if not self._renumbers:
            return given
        return Acl.parse(given).renumbered(self.users.into, self.groups.into).pack()

    @property
    def _renumbers(self) -> bool:
        return self.users.owner != self.users.shown or self.groups.owner != self.groups.shown


def owners_of(
    root: Inode,
    *,
    mounter: tuple[int, int] | None = None,
    uid: int | None = None,
    gid: int | None = None,
    umask: int | None = None,
) -> Owners:
    """How a mount shows the store with this root directory.

    `mounter`: user and group of who mounts for nobody else; None where nobody is to be shown as the owner.
    `uid`, `gid`: every file is theirs. `umask`: see `Owners.mode`.
    """
    me, my_group = root.uid, root.gid
    # One's own store may well be of another group than one's first.
    if mounter is not None and mounter[0] != root.uid:
        me, my_group = mounter
    return Owners(
        Numbers(root.uid, me if uid is None else uid, every=uid is not None),
        Numbers(root.gid, my_group if gid is None else gid, every=gid is not None),
        umask,
    )
