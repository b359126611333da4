"""The reserve: room on the disk that only deleting may use, so that a full disk can always be emptied.

Deleting needs room itself: its transaction goes to the log of the index before any object may go. So a store
keeps a few megabytes allocated. They are given back for the transaction of a delete that found the disk full,
and taken again as soon as the barrier after it has unlinked objects; until then nothing else is written.
"""

import logging
import os
import threading

from pixstorefs.disk.files import FULL_ERRNOS, affordable_size
from pixstorefs.disk.folder import Folder, OddFile

log = logging.getLogger(__name__)

RESERVE_FILE = "reserve"
# Room for 170 deletes: each writes 25 KB to the log (measured, 3,000 images). The barrier that gives it back
# comes within a second of the first.
RESERVE_SIZE_BYTES = 4 << 20
# On a small disk not more than this part of it.
_PART_OF_DISK = 16


class Reserve:
    """The reserve of one store, opened when it is first used.

    Thread-safe: drafts ask for it on the thread of the event loop, barriers give and take it on theirs.
    """

    def __init__(self, store: Folder) -> None:
        self._store = store
        self._fd = -1
        self._size_bytes = RESERVE_SIZE_BYTES
        self._whole = False
        self._lock = threading.RLock()

    @property
    def missing_bytes(self) -> int:
        """What the disk has to spare for the reserve before anybody may use it."""
        return 0 if self._whole else self._size_bytes

    def take(self) -> bool:
        """Allocate what is missing; False if the disk has no room for it.

        Where the file system cannot allocate ahead (posix_fallocate(3) then writes zeros) it takes longer.
        A disk that fails, rights that are missing and an odd file in the place of the reserve say nothing of
        the room. Then there is no reserve, and nobody waits for one: "the disk is full" would be false, and
        whoever writes next learns what is wrong.
        """
        if self._whole:
            return True
        with self._lock:
            try:
                self._open()
                os.posix_fallocate(self._fd, 0, self._size_bytes)
            except (OddFile, OSError) as error:
                if isinstance(error, OddFile) or error.errno not in FULL_ERRNOS:
                    log.warning("a full disk may have no room for deleting: %s", error)
                    self._size_bytes, self._whole = 0, True
                elif self._fd >= 0:
                    self.give()  # what it got is of more use to the index
            else:
                self._whole = True
            return self._whole

    def give(self) -> None:
        """Give the room to whoever writes next: the index, which the caller is about to change.

        The file goes, for btrfs refuses to shorten one when a quota is used up, but not to unlink it; and
        what was given up there is free only when the file system has noted that it is.
        """
        with self._lock:
            if not self._size_bytes:
                return
            self._whole = False
            self.close()
            try:
                self._store.unlink(RESERVE_FILE)
            except FileNotFoundError:
                return
            except OSError as error:
                log.warning("the room reserved for deleting cannot be used: %s", error)
                return
            self._note_given()

    def _note_given(self) -> None:
        try:
            self._store.sync_all()
        except OSError as error:
            log.info("the room reserved for deleting may not be free yet: %s", error)

    def close(self) -> None:
        """Close the file; it stays allocated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = self._store.open_own(RESERVE_FILE, os.O_RDWR | os.O_CREAT)
            self._size_bytes = affordable_size(self._store.fd, RESERVE_SIZE_BYTES, _PART_OF_DISK)
