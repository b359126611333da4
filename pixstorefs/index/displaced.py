"""Displaced images: those whose name went to another one that no barrier has made durable yet.

`write tmp; rename tmp photo` is how careful programs save. The rename may reach the disk and the content of
tmp not; the photo it replaced must then come back. So a displaced image keeps its inode and its key, without
a name, until the next barrier; then it is deleted like any other.
"""

from collections.abc import Callable

from pixstorefs.index.rows import Index
from pixstorefs.records import Entry, Inode, Version


def settle(index: Index, up_to_token: int) -> None:
    """What displaced images until `up_to_token` is durable: delete them (inside a transaction)."""
    for token, ino in index.displaced(up_to_token):
        inode = index.inode(ino)
        if inode is not None and inode.nlink == 0:
            erase(index, inode, token)
    index.forget_displaced(up_to_token)


def erase(index: Index, inode: Inode, token: int) -> None:
    """Delete an inode without names; its keys go now, its objects at the barrier."""
    if inode.version_id is not None:
        index.destroy_retired(inode.ino)
        index.destroy_version(inode.version_id, token)
    index.delete_inode(inode.ino)


def restore(
    index: Index, lost_ino: int, usable: Callable[[Inode, Version], bool], new_cookie: Callable[[], int]
) -> bool:
    """An image was lost: give each name it took back to who had it, or to who had it before that one.

    Returns whether one came back. An image comes back if it is `usable` with its current version, or made so
    with an older one.
    """
    restored = False
    for parent, name, ino in index.displaced_by(lost_ino):
        inode = index.inode(ino)
        version = index.version(inode.version_id) if inode and inode.version_id is not None else None
        if inode is None or version is None or index.entry(parent, name) or index.inode(parent) is None:
            continue
        if usable(inode, version):
            inode.nlink += 1
            index.update_inode(inode)
            index.insert_entry(Entry(new_cookie(), parent, name, linked=inode.nlink > 1), ino)
            restored = True
        elif restore(index, ino, usable, new_cookie):
            restored = True
    return restored
