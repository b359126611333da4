"""`/lost+found` in the tree of a store: where the repair moves what has no place or cannot be read."""

import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from pixstorefs.errors import InvalidInput
from pixstorefs.index import repairs
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.objects.sealing import Buffer
from pixstorefs.records import Entry, Inode
from pixstorefs.store.draft import Draft
from pixstorefs.store.store import Store
from pixstorefs.store.tree import NewName
from pixstorefs.trust.header import LOST_FOUND

_NAME_LIMIT_BYTES = 255


class LostAndFound:
    """Moves names into the directory, which is made when first needed. `done` gets a line for each.

    The store's lock is held around every call.
    """

    def __init__(self, store: Store, done: list[str], now_ns: Callable[[], int]) -> None:
        self._store = store
        self._index = store.index
        self._done = done
        self._now_ns = now_ns

    def move(self, parent: int, name: bytes, ino: int) -> None:
        """Move a name here; inode, attributes and content stay."""
        inode = self._index.inode(ino)
        found = self._index.entry(parent, name)
        if inode is None or found is None:
            return
        path = path_of(self._index, ino)
        directory = self._directory()
        clean = name.replace(b"/", b"_").replace(b"\0", b"_")
        new_name = self._free_name(directory, _label(inode) + b"-" + clean)
        with self._index.transaction():
            entry = Entry(self._store.numbers.cookie(), directory, new_name, linked=found[0].linked)
            repairs.move_name(self._index, parent, name, entry, ino, self._now_ns())
            repairs.count_links(self._index)
        self._done.append(f"{path} is now {_shown(new_name)}")

    def give_name(self, ino: int) -> None:
        """Name a file here that has no name."""
        inode = self._index.inode(ino)
        assert inode is not None
        directory = self._directory()
        name = self._free_name(directory, _label(inode))
        with self._index.transaction():
            self._index.insert_entry(Entry(self._store.numbers.cookie(), directory, name), ino)
            self._index.touch_directory(directory, self._now_ns())
            repairs.count_links(self._index)
        self._done.append(f"a file without a name is now {_shown(name)}")

    def write_report(self) -> None:
        """Save what was done as a file here, encrypted like every other: it holds names."""
        now_ns = self._now_ns()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns // 10**9))
        text = "".join(f"{line}\n" for line in self._done).encode("utf-8", "backslashreplace")
        mode = stat.S_IFREG | 0o600
        inode = Inode(0, mode, os.getuid(), os.getgid(), 1, 0, 0, 0, now_ns, now_ns, now_ns)
        self._save(f"report-{stamp}.txt".encode(), inode, [(0, text)])

    def save(self, name: bytes, like: Inode, chunks: Iterable[tuple[int, Buffer]]) -> None:
        """Save content as a new file here, with mode, owner and times of an inode that is lost."""
        new_name = self._save(_label(like) + b"-" + name, like, chunks)
        self._done.append(f"an image that an owner saved when it lost the store is {_shown(new_name)}")

    def _save(self, wanted: bytes, like: Inode, chunks: Iterable[tuple[int, Buffer]]) -> bytes:
        """Save a new file. `chunks`: each with its offset in bytes. Returns its name."""
        now_ns = self._now_ns()
        directory = self._directory()
        name = self._free_name(directory, wanted)
        ino = self._store.numbers.ino()
        image_id = self._store.allocator.new_image_id(ino)
        inode = replace(like, ino=ino, image_id=image_id, version_id=None, nlink=1, ctime_ns=now_ns)
        draft = Draft(self._store.allocator, image_id)
        try:
            for offset, chunk in chunks:
                draft.write(offset, chunk)
            entry = Entry(self._store.numbers.cookie(), directory, name)
            self._store.save(inode, draft, draft.seal_at_once(), NewName(entry, {}, now_ns))
        finally:
            draft.close()
        return name

    def _directory(self) -> int:
        found = self._index.lookup(ROOT_INO, LOST_FOUND.encode())
        if found is not None:
            if not stat.S_ISDIR(found.mode):
                raise InvalidInput(f"/{LOST_FOUND} in the store is a file: rename it, then repair again")
            return found.ino
        now_ns = self._now_ns()
        made = new_directory(self._store.numbers.ino(), 0o700, now_ns)
        with self._index.transaction():
            self._index.insert_inode(made, now_ns)
            entry = Entry(self._store.numbers.cookie(), ROOT_INO, LOST_FOUND.encode())
            self._index.insert_entry(entry, made.ino)
            self._index.touch_directory(ROOT_INO, now_ns, 1)
        return made.ino

    def _free_name(self, directory: int, wanted: bytes) -> bytes:
        """A name that is free there, cut where it is too long, between two characters."""
        number, suffix = 1, b""
        while True:
            name = wanted
            if len(wanted) + len(suffix) > _NAME_LIMIT_BYTES:
                name = wanted[: _NAME_LIMIT_BYTES - len(suffix)].decode("utf-8", "ignore").encode()
            if self._index.entry(directory, name + suffix) is None:
                return name + suffix
            number += 1
            suffix = b"-%d" % number


def new_directory(ino: int, permissions: int, now_ns: int) -> Inode:
    """An empty directory of this user."""
    mode = stat.S_IFDIR | permissions
    return Inode(ino, mode, os.getuid(), os.getgid(), 2, 0, 0, 0, now_ns, now_ns, now_ns)


def _label(inode: Inode) -> bytes:
    return inode.image_id.hex().encode() if inode.image_id else b"inode-%d" % inode.ino


def _shown(name: bytes) -> str:
    return f"{LOST_FOUND}/{name.decode('utf-8', 'backslashreplace')}"
