"""The fence: an owner that lost the store's lock, and does not know it yet, writes into the void.

Who looks before each write can still be cut off in the middle of one: the network brings it to the server an
hour later. It goes to the file that was open then. So whoever breaks a lock puts copies in the place of all
files that are written in place. Objects need none: an owner writes each of them once, under a number that
nobody else hands out. Rejected: asking the server to close what is open, which no file system offers.
"""

import contextlib

from pixstorefs.disk.folder import Folder
from pixstorefs.disk.owner_note import FENCE_FILE
from pixstorefs.objects.journal import JOURNAL_FILE
from pixstorefs.objects.transfer import copy_file
from pixstorefs.trust.barrier_record import RECORD_FILE
from pixstorefs.trust.header import INDEX_FILES

_COPY_SUFFIX = ".fenced"


def fence_if_due(store: Folder) -> bool:
    """Copy the files if a lock was broken; whether it was. A crash begins it anew. Raises OSError, OddFile.

    The caller owns the store, and has opened none of them yet.
    """
    if store.status(FENCE_FILE) is None:
        return False
    for name in (*INDEX_FILES, RECORD_FILE, JOURNAL_FILE):
        if store.file_status(name) is not None:
            store.unlink_if_there(name + _COPY_SUFFIX)
            copy_file(store, name, store, name + _COPY_SUFFIX)
            store.rename(name + _COPY_SUFFIX, name)
    store.sync()
    return True


def end_fence(store: Folder) -> None:
    """The store is recovered: the next opening need not do it again."""
    with contextlib.suppress(OSError):
        store.unlink_if_there(FENCE_FILE)
