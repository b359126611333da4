"""A look at a store beside its owner: nothing is locked, recovered or changed.

A store that is mounted belongs to its daemon. Others read a copy of its index, and objects never change, so
everything can be verified; what is found missing may have been deleted since the copy was made.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property

from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.lock_file import LOCK_FILE, is_owned
from pixstorefs.index.capture import Moment, capture, open_captured
from pixstorefs.index.database import log_size_bytes
from pixstorefs.index.rows import Index
from pixstorefs.keys.secrets import Secret
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.store.opening import unlock
from pixstorefs.trust.copies import damaged_copies
from pixstorefs.trust.header import INDEX_FILE, read_header
from pixstorefs.trust.proof import prove, witnesses


class StoreView:
    """An index opened for reading and the objects it tells of. Use it as a context manager."""

    def __init__(self, path: str, secret: Secret) -> None:
        """Open all but the index. Raises NotAStore, NewerFormat, CorruptStore, WrongKey, OSError."""
        self.path = path
        header = read_header(path)
        self.folder = Folder.at(path)
        self.header = header.raw
        self.slots, key = unlock(path, header, secret)
        self.store_id = header.store_id
        self.objects = ObjectDirectory(self.folder, header.store_id)
        self.index_key = key
        self._index_path = os.path.join(self.folder.reachable_path() or path, INDEX_FILE)
        self._moment: Moment | None = None
        self.is_writable = self._tried_to_write()

    def __enter__(self) -> "StoreView":
        return self

    def __exit__(self, *_: object) -> None:
        if "index" in self.__dict__:
            self.index.close()
        self.folder.close()

    @cached_property
    def index(self) -> Index:
        """The index as it was when it was first asked for. Raises as `open_captured` does."""
        if self._is_at_rest():
            return Index(self._index_path, self.index_key, self.store_id, read_only=True)
        index, self._moment = self._captured()
        return index

    @contextmanager
    def newest_index(self) -> Iterator[Index]:
        """The index as it is now: what is missing may have gone since `index`. Raises as that does."""
        if self._moment is None or not self._moment.has_passed(self._index_path):
            yield self.index
            return
        index, _ = self._captured()
        with closing(index):
            yield index

    def _captured(self) -> tuple[Index, Moment]:
        return open_captured(self._index_path, self.index_key, self.store_id)

    def _is_at_rest(self) -> bool:
        """Whether nobody can change the index while it is read in its place: on read-only media."""
        return not self.is_writable and not log_size_bytes(self._index_path) and not self.is_owned()

    def damaged_copies(self) -> list[str]:
        """Names of copies of the index that are there and of no use."""
        return damaged_copies(self.path, self.index_key, self.store_id)

    def doubt(self) -> str | None:
        """Why the index is not the newest one, where nobody has the store open and something says so.

        An owner changes index, log and record all the time, and proved its index when it began.
        """
        if self.is_owned():
            return None
        index = self.index
        found = witnesses(self.folder, self._index_path, self.index_key, self.store_id)
        return prove(index, found, has_log=self._moment is not None).doubt

    def copy_index(self, target: str) -> None:
        """Write the index of this moment to the new files `target` and `target`-wal, its log.

        Raises CorruptStore, StoreInUse, OSError.
        """
        capture(self._index_path, target)

    def is_owned(self) -> bool:
        """Whether a process has the store open for writing, or takes it this moment."""
        return is_owned(self.folder)

    def needs_recovery(self) -> bool:
        """Whether the store was not closed cleanly, and nobody has it open."""
        if self.is_owned():
            return False
        with self.newest_index() as index:
            return not index.state().clean

    def _tried_to_write(self) -> bool:
        """Whether the store can be written, which a disk that refuses it may not tell access(2).

        The lock is opened and nothing else: closing a second descriptor of the index would take the locks
        away from who has it open in this process (fcntl(2)).
        """
        try:
            os.close(self.folder.open_file(LOCK_FILE, os.O_RDWR)[0])
        except (FileNotFoundError, OddFile):
            return os.access(self.path, os.W_OK)
        except OSError:
            return False
        return os.access(self.path, os.W_OK)
