"""Bringing objects from one store into another: as another name of the same file, as a clone, or as a copy.

Objects are written once and never modified, so two stores may share a file: unlinking it in one leaves it to
the other. A clone (FICLONE) shares the blocks only; where neither is possible the bytes are copied.
"""

import contextlib
import errno
import fcntl
import os
from collections import Counter
from collections.abc import Callable

from pixstorefs.disk.files import write_fully
from pixstorefs.disk.folder import Folder
from pixstorefs.objects.directory import NEW_OBJECT, ObjectDirectory

_CHUNK_SIZE_BYTES = 1 << 20
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# Another file system, or one that cannot; the next way is tried from then on.
_IMPOSSIBLE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)

_Bring = Callable[[Folder, Folder, str], None]


class Transfer:
    """Brings objects from `source` into `target`. `ways` counts how they came: linked, cloned, copied."""

    def __init__(self, source: ObjectDirectory, target: ObjectDirectory) -> None:
        self.ways: Counter[str] = Counter()
        self._source = source
        self._target = target
        self._possible: list[tuple[str, _Bring]] = [
            ("linked", _link),
            ("cloned", _clone),
            ("copied", _copy),
        ]

    def bring(self, version_id: int) -> None:
        """Bring one object, in place of what `target` may have under its id. It is not synced.

        Raises FileNotFoundError if `source` has it no more, OSError or OddFile if `target` cannot take it.
        """
        name = str(version_id)
        with (
            contextlib.closing(self._source.folder_of(version_id)) as source,
            contextlib.closing(self._target.folder_of(version_id, make=True)) as target,
        ):
            target.unlink_if_there(name)
            self.ways[self._bring(source, target, name)] += 1

    def _bring(self, source: Folder, target: Folder, name: str) -> str:
        while True:
            way, bring = self._possible[0]
            try:
                bring(source, target, name)
            except OSError as error:
                if error.errno == errno.EMLINK:
                    _copy(source, target, name)  # too many names, of this one object
                    return "copied"
                if error.errno not in _IMPOSSIBLE or len(self._possible) == 1:
                    raise
                del self._possible[0]
            else:
                return way


def _link(source: Folder, target: Folder, name: str) -> None:
    os.link(name, name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)


def _clone(source: Folder, target: Folder, name: str) -> None:
    _through_new(source, target, name, lambda here, there: fcntl.ioctl(there, _FICLONE, here))


def _copy(source: Folder, target: Folder, name: str) -> None:
    _through_new(source, target, name, _copy_content)


def _through_new(source: Folder, target: Folder, name: str, fill: Callable[[int, int], object]) -> None:
    """Under its own name an object is complete, as far as a process that dies can see to that."""
    here, _ = source.open_file(name)
    try:
        target.unlink_if_there(NEW_OBJECT)
        there = target.create(NEW_OBJECT)
        try:
            fill(here, there)
            target.rename(NEW_OBJECT, name)
        except BaseException:
            target.unlink_if_there(NEW_OBJECT)
            raise
        finally:
            os.close(there)
    finally:
        os.close(here)


def copy_file(source: Folder, name: str, target: Folder, new_name: str) -> None:
    """A new file with the content of another, synced. Raises FileExistsError, OSError, OddFile."""
    here, _ = source.open_file(name)
    try:
        there = target.create(new_name)
        try:
            _copy_content(here, there)
            os.fsync(there)
        finally:
            os.close(there)
    finally:
        os.close(here)


def _copy_content(here: int, there: int) -> None:
    while chunk := os.read(here, _CHUNK_SIZE_BYTES):
        write_fully(there, memoryview(chunk), lambda: None)
