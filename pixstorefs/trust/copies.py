"""Copies of the index inside the store, so that a damaged index costs at most what was saved since the last.

Two are kept, `copies/index-1.db` and `copies/index-2.db`. A new one is written beside them, synced, read back
from the disk, and only then replaces the older one (or the one that is damaged or missing): at every moment
there is one that was whole when it was made. They are made at a clean close, every day, every 10,000 saves
and deletes, and soon after the first change of a store that has none. A copy that fails costs a line in the
log and nothing else.
"""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from pixstorefs.disk.folder import Folder
from pixstorefs.disk.temporary import private_folder
from pixstorefs.errors import NoSpace, PixstoreError
from pixstorefs.index import copy as index_copy
from pixstorefs.index.database import LOG_LIMIT_BYTES, log_size_bytes
from pixstorefs.index.rows import Index, State
from pixstorefs.objects.transfer import copy_file
from pixstorefs.trust.header import COPIES_FOLDER, COPY_NAMES

log = logging.getLogger(__name__)

_NEW = "index.new"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a copy is made while the store is open. Tokens count saves and deletes."""

    first_after_s: float = 60.0
    every_s: float = 86_400.0
    every_tokens: int = 10_000
    again_after_failure_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that can be opened. Whether every page of it can be read is not known yet."""

    path: str
    state: State
    made_ns: int

    @property
    def age(self) -> tuple[int, int]:
        """Orders copies, the newest last: by what they hold; by the clock only where that is the same."""
        return self.state.durable_token, self.made_ns


class _GivenUp(Exception):
    """The store is being closed, or the log has grown too long for a copy to hold it."""


class Copies:
    """Keeps the copies of one open store. Its thread makes them; `finish` makes the last one."""

    def __init__(
        self,
        store_path: str,
        index: Index,
        key: bytes,
        opened: State,
        newest: Copy | None,
        schedule: Schedule | None = None,
        *,
        follow: Callable[[], bool] = lambda: True,
    ) -> None:
        """`opened` is the state that the index had when it was opened, before anything was written.

        `newest` is the newest copy that there is. `follow` makes `index.path` that of the store where it
        lies now, or returns False.
        """
        self._follow = follow
        self._index = index
        self._key = key
        self._schedule = schedule or Schedule()
        self._exists = newest is not None
        self._token = newest.state.durable_token if newest else 0
        self._made_at_s = time.monotonic() - (_age_s(newest) if newest else 0)
        self._retry_at_s = 0.0
        # A copy of a clean close has the very state that the next opening finds.
        self._outdated = newest is None or not opened.clean or newest.state != opened
        self._changed_at_s: float | None = None
        self._newest_token = opened.next_token
        self._wake = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._at_work = threading.Lock()

    @property
    def _folder(self) -> str:
        return os.path.join(os.path.dirname(self._index.path), COPIES_FOLDER)

    def note_change(self) -> None:
        """A transaction was committed (with the store's lock held)."""
        if self._changed_at_s is not None:
            return
        with self._wake:
            self._changed_at_s = time.monotonic()
            self._wake.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
            self._thread.start()

    def note_barrier(self, token: int) -> None:
        """Everything up to `token` is durable (with the store's lock held)."""
        self._newest_token = token
        if self._changed_at_s is not None and token - self._token >= self._schedule.every_tokens:
            with self._wake:
                self._wake.notify_all()

    @property
    def at_rest(self) -> bool:
        """Whether no copy is being made at this moment."""
        return not self._at_work.locked()

    def stop(self) -> None:
        """End the thread; a copy it is making is given up."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> None:
        """At a clean close, after `stop`: a copy of the last state, if the newest one is not that."""
        if self._outdated or self._changed_at_s is not None:
            self._stopped = False
            self._make()

    def _run(self) -> None:
        while self._wait_until_due():
            self._make()

    def _wait_until_due(self) -> bool:
        """Wait until a copy is due; False once stopped."""
        with self._wake:
            while not self._stopped:
                due_at_s = self._due_at_s()
                delay_s = None if due_at_s is None else due_at_s - time.monotonic()
                if delay_s is not None and delay_s <= 0:
                    return True
                self._wake.wait(delay_s)
            return False

    def _due_at_s(self) -> float | None:
        if self._changed_at_s is None:
            return None
        if not self._exists:
            due_at_s = self._changed_at_s + self._schedule.first_after_s
        elif self._newest_token - self._token >= self._schedule.every_tokens:
            due_at_s = 0.0
        else:
            due_at_s = self._made_at_s + self._schedule.every_s
        return max(due_at_s, self._retry_at_s)

    def _make(self) -> None:
        """Make a copy; whatever goes wrong with it is a line in the log."""
        changed_at_s = self._changed_at_s
        self._changed_at_s = None  # what is committed from now on may not be in it
        try:
            with self._at_work:
                state = self._replace_older()
        except _GivenUp:
            log.debug("a copy of the index was given up")
        except (OSError, PixstoreError) as error:
            log.warning("no copy of the index could be made, the older ones stay: %s", error)
        else:
            self._exists, self._outdated = True, False
            self._made_at_s, self._token = time.monotonic(), state.durable_token
            return
        self._changed_at_s = changed_at_s or self._changed_at_s
        self._retry_at_s = time.monotonic() + self._schedule.again_after_failure_s

    def _replace_older(self) -> State:
        if not self._follow():
            raise _GivenUp
        size_bytes = os.stat(self._index.path).st_size + log_size_bytes(self._index.path)
        with (
            private_folder(size_bytes, "a copy of the index") as private,
            closing(Folder.at(private)) as made,
            closing(Folder.at(os.path.dirname(self._index.path))) as store,
            closing(store.made_folder(COPIES_FOLDER)) as copies,
        ):
            _require_room(copies, size_bytes)
            path = os.path.join(private, _NEW)
            with self._index.log_at_rest(wait=True):
                index_copy.take_copy(self._index.path, self._key, path, self._go_on)
            state = index_copy.state_of(path, self._key, self._index.store_id)
            self._place(made, copies)
            store.sync()
        return state

    def _place(self, made: Folder, copies: Folder) -> None:
        """Put a new copy in the place of the older one, when it was read back from the disk."""
        copies.unlink_if_there(_NEW)  # of a process that was killed
        try:
            copy_file(made, _NEW, copies, _NEW)
            index_copy.verify(os.path.join(copies.path, _NEW), self._key, self._index.store_id)
            # A copy that is ahead of its index says that the index is an old one (see `proof`). So what the
            # copy has is durable first. Through a descriptor of its own: Linux tells an error once to each.
            index_copy.sync_file(self._index.path + "-wal")
            copies.rename(_NEW, os.path.basename(self._target()))
        except BaseException:
            copies.unlink_if_there(_NEW)
            raise
        copies.sync()

    def _target(self) -> str:
        copies = {copy.path: copy for copy in _copies_in(self._folder, self._key, self._index.store_id)}
        paths = [os.path.join(self._folder, name) for name in COPY_NAMES]
        return min(paths, key=lambda path: copies[path].age if path in copies else (-1, 0))

    def _go_on(self) -> None:
        if self._stopped or log_size_bytes(self._index.path) > LOG_LIMIT_BYTES:
            raise _GivenUp


def _require_room(copies: Folder, size_bytes: int) -> None:
    """A copy takes at most half of what is left: it must not be what fills the disk."""
    space = os.statvfs(copies.fd)
    if space.f_bavail * space.f_frsize < 2 * size_bytes:
        raise NoSpace(f"the disk has too little room for {size_bytes} bytes more")


def newest_copy(store_path: str, key: bytes, store_id: bytes) -> Copy | None:
    """The newest copy that opens, None where there is none."""
    copies = _copies_in(os.path.join(store_path, COPIES_FOLDER), key, store_id)
    return max(copies, key=lambda copy: copy.age, default=None)


def good_copies(store_path: str, key: bytes, store_id: bytes) -> list[Copy]:
    """The copies whose every page can be read, newest first."""
    good = []
    folder = os.path.join(store_path, COPIES_FOLDER)
    for copy in sorted(_copies_in(folder, key, store_id), key=lambda copy: copy.age, reverse=True):
        try:
            index_copy.verify(copy.path, key, store_id)
        except (OSError, PixstoreError) as error:
            log.info("a copy of the index cannot be used: %s", error)
        else:
            good.append(copy)
    return good


def damaged_copies(store_path: str, key: bytes, store_id: bytes) -> list[str]:
    """Names of copies that are there and of no use."""
    good = {copy.path for copy in good_copies(store_path, key, store_id)}
    paths = [os.path.join(store_path, COPIES_FOLDER, name) for name in COPY_NAMES]
    return [os.path.basename(path) for path in paths if os.path.lexists(path) and path not in good]


def _require_real(folder: str) -> None:
    """Raises OSError if a link lies in the place of the folder: nothing is written elsewhere."""
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)


def _copies_in(folder: str, key: bytes, store_id: bytes) -> list[Copy]:
    found = []
    for name in COPY_NAMES:
        path = os.path.join(folder, name)
        try:
            _require_real(folder)
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                log.info("no copy of the index, and not looked into: %s", path)
                continue
            made_ns = status.st_mtime_ns
            found.append(Copy(path, index_copy.state_of(path, key, store_id), made_ns))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, PixstoreError) as error:
            log.info("a copy of the index cannot be used: %s", error)
    return found


def _age_s(copy: Copy) -> float:
    return max(0.0, (time.time_ns() - copy.made_ns) / 1e9)
