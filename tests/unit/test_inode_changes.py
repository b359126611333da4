"""Which call changes which attribute."""

import stat

import pytest

from pixstorefs.fs.attributes import Changes, apply, clear_set_id, new_inode
from pixstorefs.store.records import Inode


def _inode(mode: int) -> Inode:
    return Inode(7, mode, 1000, 1000, 1, 0, 0, 0, 1, 2, 3)


@pytest.mark.parametrize(("asked", "kept"), [(1 << 70, (1 << 63) - 1), (-(1 << 70), 1 - (1 << 63)), (-5, -5)])
def test_times_beyond_the_index_become_the_nearest(asked: int, kept: int) -> None:
    """A time in the year 4000 is kept as the latest there is, one before 1970 as it is."""
    inode = _inode(stat.S_IFREG | 0o644)
    apply(inode, Changes(atime_ns=asked, mtime_ns=asked), now_ns=9)
    assert (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (kept, kept, 9)


def test_giving_a_file_away_clears_its_set_id_bits() -> None:
    """chown(2) drops set-user-id and an effective set-group-id, unless the mode is set with it."""
    inode = _inode(stat.S_IFREG | 0o6755)
    apply(inode, Changes(uid=0), now_ns=9)
    assert inode.mode == stat.S_IFREG | 0o755
    apply(inode, Changes(uid=5, mode=0o4755), now_ns=9)
    assert inode.mode == stat.S_IFREG | 0o4755


def test_set_group_id_without_execution_is_no_privilege() -> None:
    """Set-group-id on a file nobody of the group may execute stays, and directories keep theirs."""
    assert not clear_set_id(_inode(stat.S_IFREG | 0o2644))
    assert not clear_set_id(_inode(stat.S_IFDIR | 0o2755))
    assert clear_set_id(_inode(stat.S_IFREG | 0o2755))


def test_set_group_id_directories_hand_down_their_group() -> None:
    """What is made in a set-group-id directory has its group; directories also the bit (inode(7))."""
    parent = _inode(stat.S_IFDIR | 0o2755)
    child = new_inode(8, stat.S_IFDIR | 0o700, 5, 6, parent, now_ns=1)
    assert (child.uid, child.gid, child.mode) == (5, 1000, stat.S_IFDIR | stat.S_ISGID | 0o700)
    file = new_inode(9, stat.S_IFREG | 0o600, 5, 6, parent, now_ns=1)
    assert (file.gid, file.mode) == (1000, stat.S_IFREG | 0o600)
