"""Recovery: what an unclean stop left behind becomes a consistent store again, in O(recent).

Everything up to `durable_token` is behind a barrier and needs no look. Of what was saved later, power loss
may have kept the row but not the object. What an fsync waited for is put back from the journal. Then each
such version is verified by its tags, and one that is damaged falls back to the version it replaced, whose
object no barrier has removed yet; an image that had none gives its name back to the image it displaced; one
that had neither leaves the tree. Objects without a row (drafts that were never saved) are swept. Recovery
changes the index in one transaction and may itself be killed at any point: it then starts anew from the same
facts.
"""

from collections.abc import Callable

from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.errors import NoSpace
from pixstorefs.index.displaced import erase, restore, settle
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import Index, State
from pixstorefs.objects import journal
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.reader import is_intact
from pixstorefs.records import Inode, Version


def recover(index: Index, objects: ObjectDirectory, state: State) -> list[str]:
    """Recover after an unclean stop; returns one line for each decision that a person should know.

    Names that come back take cookies from `state`.
    """
    report: list[str] = []

    def new_cookie() -> int:
        state.next_cookie += 1
        return state.next_cookie - 1

    with index.transaction():
        recent = index.saved_after(state.durable_token, state.object_floor)
        # The barrier that follows calls them durable. Synced before they are verified, so that what is
        # verified is what the disk holds, not what the page cache still does.
        objects.sync([version.version_id for version in recent if version.runs])
        for version in recent:
            inode = index.inode(version.ino)
            if inode is None or inode.image_id is None or inode.version_id != version.version_id:
                continue
            if inode.nlink == 0:
                continue  # displaced: looked at if what displaced it is lost
            if not is_intact(objects, version, inode.image_id):
                report.append(_fall_back(index, objects, inode, version, new_cookie))
        index.put_state(state)
        settle(index, state.next_token)
        orphans = set(objects.ids_from(state.object_floor)) - index.known_objects(state.object_floor)
    # Empty ones were made ahead, for content that nobody had written yet: nothing was lost with them.
    drafts = sum(objects.size_bytes(version_id) > 0 for version_id in orphans)
    objects.unlink(orphans)
    objects.sync_unlinked()  # the barrier that follows raises the floor, and no later recovery looks below it
    if drafts:
        report.append(f"removed {drafts} objects of drafts that were never saved")
    return report


def put_back_journaled(index: Index, objects: ObjectDirectory, store_path: str) -> None:
    """Put back objects that the journal has and the disk has lost; they are durable then.

    Not only of what is recent: a version in the journal counts as durable before its object is.
    Raises NoSpace, OSError.
    """
    for version_id, content in journal.entries(store_path):
        version = index.version(version_id)
        inode = index.inode(version.ino) if version is not None else None
        if version is None or inode is None or inode.image_id is None or not version.runs:
            continue
        objects.sync([version_id])
        if is_intact(objects, version, inode.image_id):
            continue
        # Not for one that was cut off, or written over in part: what is left of the object may be more.
        if not is_intact(objects, version, inode.image_id, copy=content):
            continue
        try:
            objects.put_back(version_id, content)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            raise NoSpace(f"the disk under {store_path} is full: an image is to be put back") from None


def _on_disk(objects: ObjectDirectory, version: Version, inode: Inode) -> bool:
    """Whether a version that is to come back is intact, and durable from now on."""
    assert inode.image_id is not None
    if version.runs:
        objects.sync([version.version_id])
    return is_intact(objects, version, inode.image_id)


def _revert(index: Index, objects: ObjectDirectory, inode: Inode, lost: Version) -> bool:
    """Retire a lost version and make the newest intact one before it current, if there is one."""
    index.retire_version(lost.version_id, lost.token)
    for version in index.fallbacks(inode.ino):
        if version.version_id != lost.version_id and _on_disk(objects, version, inode):
            index.reinstate_version(version, inode)
            return True
    return False


def _fall_back(
    index: Index, objects: ObjectDirectory, inode: Inode, lost: Version, new_cookie: Callable[[], int]
) -> str:
    path = path_of(index, inode.ino)
    if _revert(index, objects, inode, lost):
        return f"{path}: the last save did not reach the disk; the version before it is back"

    def usable(displaced: Inode, version: Version) -> bool:
        return _on_disk(objects, version, displaced) or _revert(index, objects, displaced, version)

    for entry in index.names(inode.ino):
        index.delete_entry(entry.parent, entry.name)
    restored = restore(index, inode.ino, usable, new_cookie)
    erase(index, inode, lost.token)
    if restored:
        return f"{path}: what replaced it did not reach the disk; the image before it is back"
    return f"{path}: it was new and its content did not reach the disk; it is gone"
