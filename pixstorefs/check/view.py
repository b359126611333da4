"""A look at a store beside its owner: nothing is locked, recovered or changed.

A store that is mounted belongs to its daemon. SQLite lets another process read the index all the same, and
objects never change, so everything can be verified; what is found missing may just have been deleted.
"""

import fcntl
import os
import shutil
import tempfile

from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.disk.lock_file import LOCK_FILE
from pixstorefs.index.copy import take_copy
from pixstorefs.index.database import log_size_bytes
from pixstorefs.index.rows import Index
from pixstorefs.keys.secrets import Secret
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.store.copies import damaged_copies
from pixstorefs.store.header import INDEX_FILE, read_header, require_log
from pixstorefs.store.opening import unlock


class StoreView:
    """An index opened for reading and the objects it tells of. Use it as a context manager."""

    def __init__(self, path: str, secret: Secret) -> None:
        """Open it. Raises NotAStore, NewerFormat, CorruptStore, WrongKey, OSError."""
        self.path = path
        header = read_header(path)
        self.folder = Folder.at(path)
        require_log(self.folder)
        self.header = header.raw
        self.slots, key = unlock(path, header, secret)
        self.store_id = header.store_id
        self.objects = ObjectDirectory(self.folder, header.store_id)
        self.index_key = key
        self._copy: str | None = None
        index_path = os.path.join(self.folder.reachable_path() or path, INDEX_FILE)
        self.is_writable = writable = self._tried_to_write()
        try:
            if not writable and log_size_bytes(index_path):
                index_path = self._copied()
                writable = True
            self._writable_index = writable
            self.index = Index(
                index_path, key, header.store_id, read_only=not writable, beside_owner=writable
            )
        except BaseException:
            self._remove_copy()
            raise

    def __enter__(self) -> "StoreView":
        return self

    def __exit__(self, *_: object) -> None:
        self.index.close()
        self.folder.close()
        self._remove_copy()

    def damaged_copies(self) -> list[str]:
        """Names of copies of the index that are there and of no use."""
        return damaged_copies(self.path, self.index_key, self.store_id)

    def copy_index(self, target: str) -> None:
        """Write the index of this moment to the new file `target`, synced.

        Raises CorruptStore, NoSpace, OSError.
        """
        take_copy(
            self.index.path,
            self.index_key,
            target,
            lambda: None,
            read_only=not self._writable_index,
            beside_owner=self._writable_index,
        )

    def is_owned(self) -> bool:
        """Whether a process has the store open for writing, or takes it this moment."""
        try:
            lock, _ = self.folder.open_file(LOCK_FILE)
        except (OSError, OddFile):
            return False
        try:
            # Asking takes a lock for some microseconds; a mount that meets it tries again.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def needs_recovery(self) -> bool:
        """Whether the store was not closed cleanly, and nobody has it open."""
        return not self.is_owned() and not self.index.state().clean

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

    def _copied(self) -> str:
        """SQLite reads a log only where it may write beside it: on read-only media a copy, as encrypted."""
        self._copy = tempfile.mkdtemp(prefix="pixstorefs-check-")
        for suffix in ("", "-wal"):
            fd, _ = self.folder.open_file(INDEX_FILE + suffix)
            with open(fd, "rb") as source, open(os.path.join(self._copy, INDEX_FILE + suffix), "wb") as copy:
                shutil.copyfileobj(source, copy)
        return os.path.join(self._copy, INDEX_FILE)

    def _remove_copy(self) -> None:
        if self._copy:
            shutil.rmtree(self._copy)
