"""The hold on objects: while a snapshot is taken, the objects of the moment it shows are not unlinked.

A snapshot has the file `hold` of the store from before it reads the index until it has every object. Whoever
is about to unlink retired objects does not wait: what is held stays for a later barrier.
"""

from contextlib import AbstractContextManager

from pixstorefs.disk import hold
from pixstorefs.disk.folder import Folder

HOLD_FILE = "hold"


def held(store: Folder) -> AbstractContextManager[None]:
    """Nothing is unlinked meanwhile, except on a full disk. Waits for who unlinks now.

    Raises OSError, OddFile.
    """
    return hold.held(store, HOLD_FILE)


def unless_held(store: Folder) -> AbstractContextManager[bool]:
    """Whether nobody holds the objects; nobody begins to until the block ends."""
    return hold.unless_held(store, HOLD_FILE)
