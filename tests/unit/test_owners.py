"""What is shown for what is stored, and what is stored for what is shown."""

import stat

import pytest

from pixstorefs.fs.attributes import Changes
from pixstorefs.fs.owners import Owners, owners_of
from pixstorefs.records import Inode

OWNER, GROUP, ME, MINE, OTHER = 1005, 1006, 2005, 2006, 3000


def _inode(uid: int = OWNER, gid: int = GROUP, mode: int = stat.S_IFREG | 0o640) -> Inode:
    return Inode(1, mode, uid, gid, 1, 0, 0, 0, 0, 0, 0)


def test_the_owner_is_shown_as_who_mounts() -> None:
    """Both ways, user and group; who mounts and has files of his own keeps those, too."""
    owners = owners_of(_inode(), mounter=(ME, MINE))
    assert [owners.users.out(number) for number in (OWNER, ME, OTHER)] == [ME, ME, OTHER]
    assert [owners.users.into(number) for number in (OWNER, ME, OTHER)] == [OWNER, OWNER, OTHER]
    assert (owners.groups.out(GROUP), owners.groups.into(MINE)) == (MINE, GROUP)


def test_ones_own_store_of_another_group() -> None:
    """Its root may have been given to a group that one is in; nothing is shown as something else."""
    assert owners_of(_inode(), mounter=(OWNER, MINE)) == owners_of(_inode())


@pytest.mark.parametrize("stored", [OWNER, ME, OTHER])
def test_to_give_a_file_to_whom_it_is_shown_as_changes_nothing(stored: int) -> None:
    owners = owners_of(_inode(), mounter=(ME, MINE), uid=ME, umask=0o22)
    inode = _inode(uid=stored)
    assert owners.changes_into(inode, Changes(mode=0o644, uid=ME)) == Changes(inode.mode, stored)
    assert owners.changes_into(inode, Changes(mode=0o600, uid=OTHER)) == Changes(0o600, OTHER)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (stat.S_IFREG | 0o600, stat.S_IFREG | 0o640),
        (stat.S_IFREG | stat.S_ISUID | 0o100, stat.S_IFREG | stat.S_ISUID | 0o750),
        (stat.S_IFDIR | stat.S_ISVTX | 0o000, stat.S_IFDIR | stat.S_ISVTX | 0o750),
        (stat.S_IFLNK | 0o777, stat.S_IFLNK | 0o777),
    ],
)
def test_modes_by_umask(stored: int, shown: int) -> None:
    assert Owners(umask=0o027).mode(stored) == shown
    assert Owners().mode(stored) == stored
