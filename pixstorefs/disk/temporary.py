"""Private folders for files that are needed for a moment, outside of every store.

Whoever can write to a store can put a link in the place of a folder in it, at any moment. SQLite opens files
by path, so what it writes is written in a folder that nobody else can change, and moved from there.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pixstorefs.errors import NoSpace

# Others write to the same disk meanwhile.
_SPARE_BYTES = 8 << 20
_FOLDERS = ("/tmp", "/var/tmp")  # noqa: S108 (mkdtemp makes a folder of our own there)


@contextmanager
def private_folder(size_bytes: int, what: str) -> Iterator[str]:
    """A new folder (mode 0700) on a disk that has room for so many bytes; it goes with all that is in it.

    Raises NoSpace, which says that `what` needs the room.
    """
    folder = tempfile.mkdtemp(prefix="pixstorefs-", dir=_with_room(size_bytes, what))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def no_room(size_bytes: int, what: str) -> NoSpace:
    """The error to raise where no disk has room for temporary files."""
    size_mb = (size_bytes + _SPARE_BYTES) // 1_000_000 + 1
    return NoSpace(
        f"{what} needs {size_mb} MB for a moment, and neither $TMPDIR nor /tmp nor /var/tmp has them. "
        "Nothing is wrong with the store: name a folder on a disk with room, as in TMPDIR=/mnt/other"
    )


def _with_room(size_bytes: int, what: str) -> str:
    for folder in (os.environ.get("TMPDIR"), *_FOLDERS):
        if folder and _has_room(folder, size_bytes):
            return folder
    raise no_room(size_bytes, what)


def _has_room(folder: str, size_bytes: int) -> bool:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK) and disk.f_bavail * disk.f_frsize >= size_bytes + _SPARE_BYTES
