"""The repair: what a check found becomes a store without contradictions. Content is moved, never deleted.

Images that cannot be read go to `/lost+found` in the tree, where what is left of them can still be had;
objects that belong to nobody go to `lost+found/objects` in the store's folder. Every step is one transaction,
so a repair that is killed is finished by the next one, and one of a sound store does nothing.
"""

import os
import stat
import time
from collections.abc import Callable
from contextlib import closing, suppress

from pixstorefs.check.check import is_set_aside
from pixstorefs.check.lost_and_found import LostAndFound, new_directory
from pixstorefs.check.lost_owners import LostOwners
from pixstorefs.check.restore import restore_index
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.lock_file import Ownership
from pixstorefs.errors import CorruptImage, CorruptStore, InvalidInput
from pixstorefs.index import invariants, repairs
from pixstorefs.index.findings import Finding, Reaction, Violation
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import ROOT_INO, Index
from pixstorefs.keys.secrets import Secret
from pixstorefs.objects.directory import OBJECTS_FOLDER, ObjectDirectory
from pixstorefs.objects.reader import reader_of
from pixstorefs.records import Entry, Version
from pixstorefs.store.opening import unlock
from pixstorefs.store.store import Store
from pixstorefs.trust.aside import set_objects_aside
from pixstorefs.trust.fence import fence_if_due
from pixstorefs.trust.header import COPIES_FOLDER, INDEX_FILE, LOST_FOUND, read_header, require_index
from pixstorefs.trust.proof import prove, witnesses

_CYCLE_LIMIT = 1 << 16


def prepare(path: str, secret: Secret, *, break_lock: bool = False) -> list[str]:
    """Mend what opening the store for writing would make worse.

    `break_lock`: a person says that the owner on another machine is gone. Raises as opening a store does.
    """
    header = read_header(path)
    _, key = unlock(path, header, secret)
    ownership = Ownership(path, None, break_lock=break_lock)
    try:
        _require_folders(ownership.folder)
        fence_if_due(ownership.folder)
        done = _restore_if_damaged(path, key, header.store_id, ownership.folder)
        with closing(Index(os.path.join(path, INDEX_FILE), key, header.store_id)) as index:
            if invariants.numbers_are_unused(index):
                with index.transaction():
                    repairs.raise_numbers(index)
                done.append("numbers that were used already will not be used again")
            if invariants.current_versions_are_kept(index):
                with index.transaction():
                    kept = repairs.keep_current(index)
                done.append(f"{kept} images whose content was about to be removed keep it")
            index.sync_log()
    finally:
        ownership.release()
    return done


def _require_folders(store: Folder) -> None:
    """Refuse a store in which something else lies in the place of a folder. Raises OddFile.

    Restoring an index moves and removes what lies in them.
    """
    for name in (COPIES_FOLDER, LOST_FOUND, f"{LOST_FOUND}/{OBJECTS_FOLDER}"):
        with suppress(FileNotFoundError):
            store.folder(name).close()


def _restore_if_damaged(path: str, key: bytes, store_id: bytes, store: Folder) -> list[str]:
    """Replace an index that cannot be read, or is not the newest one, before anything is written to it."""
    index_path = os.path.join(path, INDEX_FILE)
    found = witnesses(store, index_path, key, store_id)
    doubt = None
    try:
        require_index(store)
        with closing(Index(index_path, key, store_id)) as index:
            doubt = prove(index, found).doubt
            damaged = doubt is not None or bool(invariants.integrity_problems(index))
    except CorruptStore:
        damaged = True
    if not damaged:
        return []
    # What has no object on the disk is lost to a restored index, so they have to be there.
    # One that is empty may be that of a store without images; the restored index tells.
    ObjectDirectory(store, store_id).require_folders(0, any_known=True, any_durable=False)
    reasons = [f"the index was older than its images: {doubt}"] if doubt else []
    return reasons + restore_index(path, key, store_id).lines()


class Repair:
    """The repair of an open store. `run` returns a line for everything it did."""

    def __init__(self, store: Store, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._index = store.index
        self._objects = ObjectDirectory(store.folder, store.index.store_id)
        self._now_ns = now_ns
        self._done: list[str] = []
        self._lost_and_found = LostAndFound(store, self._done, now_ns)
        self._lost_owners = LostOwners(store, self._lost_and_found, self._done)

    def run(self, findings: list[Finding], done_before: list[str]) -> list[str]:
        """Repair what a check of this store found, and write down in the tree what was done."""
        self._done += done_before
        with self._store.lock:
            self._mend_root()
            self._mend_rows()
            self._mend_names()
            self._mend_cycles()
            self._name_the_nameless()
            self._give_image_ids()
            self._settle_versions()
            self._set_images_aside([found for found in findings if found.reaction is Reaction.RESTORE])
            self._mend_rows()
            self._lost_owners.bring_back()
            self._move_strangers([found for found in findings if found.kind == "stray-object"])
            if self._done:
                self._lost_and_found.write_report()
        self._store.sync()
        return self._done

    # Rows that can be put right where they are

    def _mend_root(self) -> None:
        root = self._index.inode(ROOT_INO)
        if root is None:
            now_ns = self._now_ns()
            with self._index.transaction():
                self._index.insert_inode(new_directory(ROOT_INO, 0o755, now_ns), now_ns)
            self._done.append("the root directory was made anew")
        elif not stat.S_ISDIR(root.mode):
            raise InvalidInput(
                "inode 1 is no directory: this is beyond repair. Put index.db back from a backup"
            )

    def _mend_rows(self) -> None:
        for mend, what in (
            (repairs.mend_types, "files whose kind contradicted itself were put right"),
            (repairs.find_names, "names were made known to their files again"),
            (repairs.take_sizes, "images got the size of their content"),
            (repairs.count_links, "link counts were corrected"),
            (repairs.drop_stray_xattrs, "attributes of files that are gone were dropped"),
        ):
            with self._index.transaction():
                changed = mend(self._index)
            if changed:
                self._done.append(f"{changed} {what}")

    # The tree

    def _mend_names(self) -> None:
        for violation in invariants.entries_name_inodes(self._index):
            self._drop_name(violation, "named nothing any more and was dropped")
        for violation in invariants.root_directory(self._index):
            self._drop_name(violation, "stood for the root directory and was dropped")
        for violation in invariants.directories_have_one_name(self._index):
            self._drop_name(violation, "was a second name of a directory and was dropped")
        for broken in (invariants.entries_lie_in_directories, invariants.names_are_valid):
            for violation in broken(self._index):
                assert violation.ino is not None
                assert violation.parent is not None
                assert violation.name is not None
                self._lost_and_found.move(violation.parent, violation.name, violation.ino)

    def _mend_cycles(self) -> None:
        for _ in range(_CYCLE_LIMIT):
            unreachable = invariants.tree_has_no_cycles(self._index)
            if not unreachable:
                return
            assert unreachable[0].ino is not None
            entry = self._entry_in_cycle(unreachable[0].ino)
            found = self._index.entry(entry.parent, entry.name)
            assert found is not None
            self._lost_and_found.move(entry.parent, entry.name, found[1])

    def _entry_in_cycle(self, ino: int) -> Entry:
        """Going up from a directory that the root does not reach: the entry that closes the circle."""
        seen = set()
        while True:
            seen.add(ino)
            entry = self._index.names(ino)[0]
            if entry.parent in seen:
                return entry
            ino = entry.parent

    def _name_the_nameless(self) -> None:
        for violation in invariants.files_have_names(self._index):
            assert violation.ino is not None
            self._lost_and_found.give_name(violation.ino)

    def _drop_name(self, violation: Violation, what: str) -> None:
        if violation.name is None or violation.parent is None:
            return
        with self._index.transaction():
            self._index.delete_entry(violation.parent, violation.name)
        above = path_of(self._index, violation.parent) if violation.parent != ROOT_INO else ""
        self._done.append(f"{above}/{violation.name.decode('utf-8', 'backslashreplace')} {what}")

    # Content

    def _give_image_ids(self) -> None:
        with self._index.transaction():
            images = repairs.give_image_ids(self._index)
        for ino in images:
            self._set_aside(ino)

    def _settle_versions(self) -> None:
        """Versions that are current and no image has: the newest whole one is the image's content."""
        for violation in sorted(
            invariants.versions_are_known(self._index), key=lambda found: found.version_id or 0
        ):
            assert violation.version_id is not None
            assert violation.ino is not None
            inode = self._index.inode(violation.ino)
            stray = self._index.version(violation.version_id)
            if inode is None or inode.image_id is None:
                self._give_up_version(violation.version_id)
                continue
            current = self._index.version(inode.version_id) if inode.version_id is not None else None
            if current is not None and current.ino != inode.ino:
                current = None  # another's, who keeps it
            token = self._store.numbers.token()
            if (
                stray is not None
                and self._is_whole(stray, inode.image_id)
                and (
                    current is None
                    or stray.token > current.token
                    or not self._is_whole(current, inode.image_id)
                )
            ):
                with self._index.transaction():
                    repairs.adopt_version(self._index, stray, current, token)
                self._done.append(f"{path_of(self._index, inode.ino)} has its newest content again")
            else:
                with self._index.transaction():
                    self._index.retire_version(violation.version_id, token)
                self._done.append(f"an older version of {path_of(self._index, inode.ino)} was let go")

    def _give_up_version(self, version_id: int) -> None:
        self._move_object(version_id)
        with self._index.transaction():
            repairs.forget_version(self._index, version_id)

    def _is_whole(self, version: Version, image_id: bytes) -> bool:
        reader = reader_of(self._objects, version, image_id)
        try:
            reader.verify()
        except (CorruptImage, OSError):
            return False
        finally:
            reader.close()
        return True

    def _set_images_aside(self, damaged: list[Finding]) -> None:
        for ino in dict.fromkeys(found.ino for found in damaged if found.ino is not None):
            inode = self._index.inode(ino)
            if inode is None or inode.image_id is None:
                continue
            version_ids = {found.version_id for found in damaged if found.ino == ino}
            if inode.version_id not in version_ids and None not in version_ids:
                continue  # it has other content since
            self._set_aside(ino)

    def _set_aside(self, ino: int) -> None:
        for entry in self._index.names(ino):
            if not is_set_aside(path_of(self._index, entry.parent)):
                self._lost_and_found.move(entry.parent, entry.name, ino)

    def _move_strangers(self, strangers: list[Finding]) -> None:
        for found in strangers:
            assert found.version_id is not None
            self._move_object(found.version_id)

    def _move_object(self, version_id: int) -> None:
        for place in set_objects_aside(self._store.folder, self._objects, [version_id]):
            self._done.append(f"the object {version_id}, which belongs to no image, is now {place}")
