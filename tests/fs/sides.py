"""A mount and a plain directory on which the same cases run: what one answers, the other must answer.

A case is a function without arguments. It runs in a fresh working directory on each side, so that it needs no
names but relative ones, and users without a right to the directories above can work there, too.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support import Mount, cannot_run

# Users and groups that need not exist.
ALICE, BOB = 61001, 61002
FAMILY, FRIENDS = 62001, 62002

Case = Callable[[], object]

# Longer than a tick of the clock that stamps files (CONFIG_HZ=100), so that a second change is seen.
_TICK_S = 0.011
_OLD_NS = 1_000_000_000_000_000_001


class Sides:
    """Where cases run: in a mount that lets all users in, or root alone, and beside it."""

    def __init__(self, mount: Mount, plain: Path, *, private: bool = False) -> None:
        if os.geteuid() != 0:
            cannot_run("being several users takes root")
        mount.mount("-o", "dev,suid" if private else "allow_other,dev,suid")
        mount.mountpoint.chmod(0o777)
        plain.mkdir(mode=0o777)
        self.mount = mount
        self._roots = (mount.mountpoint, plain)
        self._number = 0

    def outcomes(self, case: Case) -> tuple[object, object]:
        """What the case gives on the mount, and on the plain directory."""
        self._number += 1
        mounted, plain = (self._outcome(case, root / str(self._number)) for root in self._roots)
        return mounted, plain

    @staticmethod
    def _outcome(case: Case, directory: Path) -> object:
        directory.mkdir()
        directory.chmod(0o777)
        before, mask = Path.cwd(), os.umask(0o022)
        os.chdir(directory)
        try:
            return case()
        finally:
            os.umask(mask)
            os.chdir(before)


@contextmanager
def user(uid: int, *groups: int) -> Iterator[None]:
    """Be somebody else: the first group is the primary one, the others are supplementary."""
    previous = os.getgroups(), os.getegid()
    os.setgroups(groups[1:])
    os.setegid(groups[0] if groups else uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(previous[1])
        os.setgroups(previous[0])


def tried(call: Callable[[], object]) -> object:
    """The name of the error that a call gives, "done" where it works."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, error.errno)
    return "done"


def look(path: str | bytes | int = ".") -> tuple[object, ...]:
    """Mode, links, owner, and the size of what is no directory."""
    found = os.stat(path) if isinstance(path, int) else os.lstat(path)
    size = None if stat.S_ISDIR(found.st_mode) else found.st_size
    return oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, size


def times_moved(call: Callable[[], object], *paths: str) -> dict[str, str]:
    """Which times of which file a call moves: of "amc" those of access, modification and change."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, ns=(_OLD_NS, _OLD_NS), follow_symlinks=False)
    before = {path: _times(path) for path in paths}
    time.sleep(_TICK_S)
    tried(call)
    after = {path: _times(path) for path in paths}
    return {
        path: "".join(
            letter for letter, was, now in zip("amc", before[path], after[path], strict=False) if was != now
        )
        for path in paths
        if before[path] and after[path]
    }


def _times(path: str) -> tuple[int, ...]:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ()
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
