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

from pixstorefs.disk.files import copy_content, removed_on_error
from pixstorefs.objects.directory import OBJECTS_PER_FOLDER, ObjectDirectory

# Where a clone or copy stays until it is complete. Not a number, so it is no object.
_NEW = "object.new"
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# Another file system, or one that cannot; the next way is tried from then on.
_IMPOSSIBLE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)


class Transfer:
    """Brings objects from `source` into `target`. `ways` counts how they came: linked, cloned, copied.

    `folder` is where the target's objects lie.
    """

    def __init__(self, source: ObjectDirectory, target: ObjectDirectory, folder: str) -> None:
        self.ways: Counter[str] = Counter()
        self._source = source
        self._target = target
        self._new = os.path.join(folder, _NEW)
        self._possible: list[tuple[str, Callable[[str, str], None]]] = [
            ("linked", os.link),
            ("cloned", self._clone),
            ("copied", self._copy),
        ]
        self._folders: set[int] = set()

    def bring(self, version_id: int) -> None:
        """Bring one object, in place of what `target` may have under its id. It is not synced.

        Raises FileNotFoundError where `source` has it no more, OSError where `target` cannot take it.
        """
        source, target = self._source.path(version_id), self._target.path(version_id)
        self._make_folder(version_id)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        while True:
            way, bring = self._possible[0]
            try:
                bring(source, target)
            except OSError as error:
                if error.errno == errno.EMLINK:
                    self._copy(source, target)  # too many names, of this one object
                    way = "copied"
                elif error.errno in _IMPOSSIBLE and len(self._possible) > 1:
                    del self._possible[0]
                    continue
                else:
                    raise
            self.ways[way] += 1
            return

    def _make_folder(self, version_id: int) -> None:
        folder = version_id // OBJECTS_PER_FOLDER
        if folder not in self._folders:
            os.makedirs(os.path.dirname(self._target.path(version_id)), 0o700, exist_ok=True)
            self._folders.add(folder)

    def _clone(self, source: str, target: str) -> None:
        self._through_new(source, target, lambda here, there: fcntl.ioctl(there, _FICLONE, here))

    def _copy(self, source: str, target: str) -> None:
        self._through_new(source, target, copy_content)

    def _through_new(self, source: str, target: str, fill: Callable[[int, int], object]) -> None:
        """Under its own name an object is complete, as far as a process that dies can see to that."""
        here = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            with removed_on_error(self._new):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                there = os.open(self._new, flags, 0o600)
                try:
                    fill(here, there)
                finally:
                    os.close(there)
                os.rename(self._new, target)
        finally:
            os.close(here)
