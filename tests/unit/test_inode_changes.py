"""Which call changes which attribute."""

import stat

import pytest

from pixstorefs.fs.attributes import Changes, apply, clear_set_id, new_inode
from pixstorefs.records import Inode


def _inode(mode: int) -> Inode:
    return Inode(7, mode, 1000, 1000, 1, 0, 0, 0, 1, 2, 3)


@pytest.mark.parametrize(("asked", "kept"), [(1 << 70, (1 << 63) - 1), (-(1 << 70), 1 - (1 << 63)), (-5, -5)])
def test_times_beyond_the_index_become_the_nearest(asked: int, kept: int) -> None:
    """A time in the year 4000 is kept as the latest there is, one before 1970 as it is."""
    inode = _inode(stat.S_IFREG | 0o644)
    apply(inode, Changes(atime_ns=asked, mtime_ns=asked), now_ns=9)
    assert (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (kept, kept, 9)


@pytest.mark.parametrize(("had", "left"), [(0o6755, 0o755), (0o2644, 0o2644), (0o4600, 0o600)])
def test_set_group_id_without_execution_is_no_privilege(had: int, left: int) -> None:
    """Set-user-id goes; set-group-id stays on a file that nobody of the group may execute."""
    inode = _inode(stat.S_IFREG | had)
    clear_set_id(inode)
    assert inode.mode == stat.S_IFREG | left


def test_set_group_id_directories_hand_down_their_group() -> None:
    """What is made in a set-group-id directory has its group; directories also the bit (inode(7))."""
    parent = _inode(stat.S_IFDIR | 0o2755)
    child = new_inode(8, stat.S_IFDIR | 0o700, 5, 6, parent, now_ns=1)
    assert (child.uid, child.gid, child.mode) == (5, 1000, stat.S_IFDIR | stat.S_ISGID | 0o700)
    file = new_inode(9, stat.S_IFREG | 0o600, 5, 6, parent, now_ns=1)
    assert (file.gid, file.mode) == (1000, stat.S_IFREG | 0o600)
