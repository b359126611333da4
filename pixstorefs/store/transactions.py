"""Transactions: every change of the index goes through here, under one lock, and tells who has to know.

What takes room is refused on a full disk before it begins; what gives room back may use the reserve. An index
that cannot be written makes the store read-only, with one line in the log.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pixstorefs.disk.reserve import Reserve
from pixstorefs.errors import CorruptStore, NoSpace, ReadOnlyStore
from pixstorefs.index.rows import Index

log = logging.getLogger(__name__)

R = TypeVar("R")


class Transactions:
    """The transactions of one open index. `lock` is held around every use of it."""

    def __init__(
        self,
        path: str,
        index: Index,
        reserve: Reserve,
        *,
        read_only: bool,
        require_owner: Callable[[], None],
        committed: Callable[[], None],
    ) -> None:
        """`path` of the store is for messages; `committed` is called behind each change.

        `require_owner` raises ReadOnlyStore when the store is another owner's, before a change.
        """
        self.lock = threading.RLock()
        self.index = index
        self.reserve = reserve
        self.read_only = read_only
        self._path = path
        self._require_owner = require_owner
        self._committed = committed

    def require_writable(self) -> None:
        """Raises ReadOnlyStore; for callers that would seal content before they find out."""
        try:
            self._require_owner()
        except ReadOnlyStore:
            self.read_only = True
            raise
        if self.read_only:
            raise ReadOnlyStore("the store is open read-only: nothing was changed")

    @contextmanager
    def change(self) -> Iterator[Index]:
        """One transaction that takes room. Raises NoSpace before it begins, and what `removal` raises."""
        with self.lock:
            self.require_writable()
            if not self.reserve.take():
                raise NoSpace(f"the disk under {self._path} is full: delete something first")
            with self._transaction() as index:
                yield index

    def removal(self, remove: Callable[[Index], R]) -> R:
        """Do `remove` in one transaction, where the disk is full with the room that is reserved.

        Raises ReadOnlyStore, CorruptStore, NoSpace; nothing is changed then.
        """

        def transaction() -> R:
            with self._transaction() as index:
                return remove(index)

        return self.with_reserve(transaction)

    def with_reserve(self, make_room: Callable[[], R]) -> R:
        """Do what makes room; where the disk has none for it, with the room that is reserved."""
        with self.lock:
            try:
                return make_room()
            except NoSpace:
                self.reserve.give()
                return make_room()

    @contextmanager
    def _transaction(self) -> Iterator[Index]:
        self.require_writable()
        with self.lock:
            try:
                with self.index.transaction():
                    yield self.index
            except (CorruptStore, ReadOnlyStore) as error:
                self.read_only = True
                log.critical(
                    "%s. Nothing more is written, what is there can be read: look after the disk, "
                    "then unmount and mount again",
                    error,
                )
                raise
            self._committed()
