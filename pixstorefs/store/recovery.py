"""Recovery: what an unclean stop left behind becomes a consistent store again, in O(recent).

Everything up to `durable_token` is behind a barrier and needs no look. Of what was saved later, power loss
may have kept the row but not the object. What an fsync waited for is put back from the journal. Then each
such version is verified by its tags, and one that is damaged falls back to the version it replaced, whose
object no barrier has removed yet. An image that had none gives its name back to the image it displaced; one
that had neither leaves the tree.

What the record of barriers calls durable, and is damaged all the same, stays in the tree: a power loss does
not explain it. An object without a row is one of a draft that was never saved, and is removed, if the index
is proven to be the newest one. Else it is set aside in `lost+found/objects`. Recovery changes the index in
one transaction and may itself be killed at any point: it then starts anew from the same facts.
"""

import os
from collections.abc import Callable

from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.disk.folder import Folder
from pixstorefs.errors import NoSpace
from pixstorefs.index.displaced import erase, restore, settle
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import ROOT_INO, Index, State
from pixstorefs.objects import journal
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.reader import is_intact
from pixstorefs.printable import ReportLine
from pixstorefs.records import Entry, Inode, Version
from pixstorefs.trust.aside import set_objects_aside
from pixstorefs.trust.header import LOST_FOUND
from pixstorefs.trust.proof import Proof


def recover(
    index: Index,
    objects: ObjectDirectory,
    state: State,
    proof: Proof,
    store: Folder,
    keep_index: Callable[[], object],
) -> list[ReportLine]:
    """Recover after an unclean stop; returns one line for each decision that a person should know.

    `proof` has no doubt. Names that come back take cookies from `state`. `keep_index` sets a copy of the
    index aside. Raises CorruptStore, NoSpace, OSError.
    """
    recovery = _Recovery(index, objects, state, proof)
    with index.transaction():
        recovery.verify_recent()
        index.put_state(state)
        settle(index, state.next_token)
        orphans = orphans_of(index, objects, state)
    report = recovery.report
    if recovery.damaged:
        # Their rows still have the keys, until the next barrier.
        keep_index()
        set_objects_aside(store, objects, recovery.damaged)
    report += _clear_orphans(objects, orphans, state, proof, store)
    objects.sync_unlinked()  # the barrier that follows raises the floor, and no later recovery looks below it
    return report


class _Recovery:
    """Decides on what was saved last, inside one transaction.

    `damaged`: versions that were promised to be durable and were replaced by older ones: to be set aside.
    """

    def __init__(self, index: Index, objects: ObjectDirectory, state: State, proof: Proof) -> None:
        self.report: list[ReportLine] = []
        self.damaged: list[int] = []
        self._index = index
        self._objects = objects
        self._state = state
        self._proof = proof

    def verify_recent(self) -> None:
        """Verify every version that is newer than the last barrier, and fall back where one is damaged."""
        recent = self._index.saved_after(self._state.durable_token, self._state.object_floor)
        # The barrier that follows calls them durable. Synced before they are verified, so that what is
        # verified is what the disk holds, not what the page cache still does.
        self._objects.sync([version.version_id for version in recent if version.runs])
        for version in recent:
            inode = self._index.inode(version.ino)
            if inode is None or inode.image_id is None or inode.version_id != version.version_id:
                continue
            if inode.nlink == 0:
                continue  # displaced: looked at if what displaced it is lost
            if not is_intact(self._objects, version, inode.image_id):
                self.report.append(self._fall_back(inode, version))

    def _fall_back(self, inode: Inode, lost: Version) -> ReportLine:
        path = path_of(self._index, inode.ino)
        return ReportLine.about(path, inode.ino, self._replace(inode, lost))

    def _replace(self, inode: Inode, lost: Version) -> str:
        never_written = self._was_never_written(lost)
        if _revert(self._index, self._objects, inode, lost):
            if never_written:
                return "the last save did not reach the disk; the version before it is back"
            self.damaged.append(lost.version_id)
            return (
                "the last save is damaged; the version before it is back, and what is left of the "
                f"damaged one is in {LOST_FOUND} in the store's folder"
            )
        entries = self._index.names(inode.ino)
        for entry in entries:
            self._index.delete_entry(entry.parent, entry.name)
        restored = restore(self._index, inode.ino, self._usable, self._new_cookie)
        if not never_written:
            self._keep_damaged(inode, entries)
            return "it is damaged, and there is no other version of it. What is left can be read"
        erase(self._index, inode, lost.token)
        if restored:
            return "what replaced it did not reach the disk; the image before it is back"
        return "it was new and its content did not reach the disk; it is gone"

    def _was_never_written(self, lost: Version) -> bool:
        """Whether a version that is not intact is what a power loss leaves, and nobody was promised it."""
        if self._proof.acknowledged_token is None:
            return self._objects.size_bytes(lost.version_id) == 0
        return lost.token > self._proof.acknowledged_token

    def _keep_damaged(self, inode: Inode, entries: list[Entry]) -> None:
        """Give a damaged image back the names that nobody else has got, or a new one."""
        assert inode.image_id is not None
        free = [entry for entry in entries if self._index.entry(entry.parent, entry.name) is None]
        for entry in free or [
            Entry(self._new_cookie(), ROOT_INO, b"damaged-" + inode.image_id.hex().encode())
        ]:
            self._index.insert_entry(entry, inode.ino)
        inode.nlink = max(len(free), 1)
        self._index.update_inode(inode)

    def _usable(self, displaced: Inode, version: Version) -> bool:
        return _on_disk(self._objects, version, displaced) or _revert(
            self._index, self._objects, displaced, version
        )

    def _new_cookie(self) -> int:
        self._state.next_cookie += 1
        return self._state.next_cookie - 1


def orphans_of(index: Index, objects: ObjectDirectory, state: State) -> set[int]:
    """Objects that are newer than the last barrier and have no row. Raises OSError."""
    return set(objects.ids_from(state.object_floor)) - index.known_objects(state.object_floor)


def _clear_orphans(
    objects: ObjectDirectory, orphans: set[int], state: State, proof: Proof, store: Folder
) -> list[ReportLine]:
    """Remove objects of drafts that were never saved; set aside whatever may be something else."""
    # Empty ones were made ahead, for content that nobody had written yet: nothing was lost with them.
    written = {version_id for version_id in orphans if objects.size_bytes(version_id) > 0}
    # A number that was never handed out is no draft's.
    drafts = {version_id for version_id in written if version_id < state.next_version_id}
    if not proof.knows_every_object:
        drafts = set()
    strangers = sorted(written - drafts)
    objects.unlink(orphans - set(strangers))
    report = []
    if drafts:
        report.append(ReportLine(f"removed {len(drafts)} objects of drafts that were never saved"))
    if places := set_objects_aside(store, objects, strangers):
        report.append(
            ReportLine(
                f"{len(places)} objects that the index does not know are now in "
                f"{os.path.dirname(places[0])}: drafts that were never saved, or images whose keys are lost"
            )
        )
    return report


def put_back_journaled(index: Index, objects: ObjectDirectory, store: Folder) -> None:
    """Put back objects that the journal has and the disk has lost; they are durable then.

    Not only of what is recent: a version in the journal counts as durable before its object is.
    Raises NoSpace, OSError.
    """
    for version_id, content in journal.entries(store):
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
            raise NoSpace(f"the disk under {store.path} is full: an image is to be put back") from None


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
