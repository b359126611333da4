"""Attributes of inodes: which call changes which, as POSIX and Linux have it."""

import stat
from dataclasses import dataclass

from pixstorefs.records import Inode

_BLOCK_SIZE_BYTES = 512
_LATEST_NS = (1 << 63) - 1


@dataclass(slots=True)
class Changes:
    """What a setattr asks for; None leaves the attribute alone. Times in nanoseconds since 1970."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


def apply(inode: Inode, changes: Changes, now_ns: int) -> None:
    """Change permissions, owner and times of an inode; the size is content and not done here.

    Every change sets ctime. Giving anything but a directory to somebody else clears its set-id bits, which
    the kernel leaves to a daemon that has promised to see to it: chown(2), daemon/handshake.
    """
    if changes.mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
    if changes.uid is not None or changes.gid is not None:
        inode.uid = inode.uid if changes.uid is None else changes.uid
        inode.gid = inode.gid if changes.gid is None else changes.gid
        if changes.mode is None and not stat.S_ISDIR(inode.mode):
            clear_set_id(inode)
    if changes.atime_ns is not None:
        inode.atime_ns = _representable(changes.atime_ns)
    if changes.mtime_ns is not None:
        inode.mtime_ns = _representable(changes.mtime_ns)
    inode.ctime_ns = now_ns if changes.ctime_ns is None else _representable(changes.ctime_ns)


def _representable(time_ns: int) -> int:
    """A time within what the index can hold (1677 to 2262): the nearest one, as Linux does on ext4."""
    return max(-_LATEST_NS, min(time_ns, _LATEST_NS))


def clear_set_id(inode: Inode) -> bool:
    """Drop the set-user-id and an effective set-group-id bit of a file; whether there were any."""
    drop = stat.S_ISUID
    if inode.mode & stat.S_IXGRP:
        drop |= stat.S_ISGID
    had = inode.mode & drop
    inode.mode &= ~drop
    return bool(had)


def new_inode(
    ino: int, mode: int, uid: int, gid: int, parent: Inode, now_ns: int, *, image_id: bytes | None = None
) -> Inode:
    """A new inode in directory `parent`: a set-group-id directory hands its group down (inode(7))."""
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    return Inode(
        ino=ino,
        mode=mode,
        uid=uid,
        gid=gid,
        nlink=2 if stat.S_ISDIR(mode) else 1,
        size_bytes=0,
        stored_size_bytes=0,
        rdev=0,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        image_id=image_id,
    )


def blocks(stored_size_bytes: int) -> int:
    """st_blocks: what the content occupies, in units of 512 bytes (stat(2))."""
    return -(-stored_size_bytes // _BLOCK_SIZE_BYTES)
