"""A mount and a plain directory of ext4, driven side by side: whatever one answers, the other must answer.

The machine draws system calls, does each on both sides and compares results or errnos, now and then the whole
trees, and at the end everything. It keeps no model of what is right: ext4 is.

Left out, because the two cannot be equal by nature:

    inode numbers, st_dev, st_blocks, ctime     a file system's own affair, or the clock's
    sizes of directories                        ext4 counts blocks, a store has none
    times set by the clock                      two calls, two moments: both have to be of this run
    atimes set by reading                       a store does not record them
    names, order and resuming of xattrs beyond  ext4 has 4 KiB for all of an inode's, a store 64 KiB for each
        a few short ones
    SEEK_HOLE, fallocate, O_TMPFILE             pyfuse3 has no handlers for them
    sizes between 16 TiB - 4 KiB and 16 TiB     the limits of ext4 and of a store
    truncate(2) to the size that a file has     ext4 sets its times; POSIX does not ask for it, and the
                                                kernel, which keeps those of a FUSE file, does not

Content is read back through the kernel's cache, which would hide what the daemon keeps: so reads can ask for
the pages to be written back and dropped first, comparing files always does, and a remount drops everything.
"""

import argparse
import contextlib
import ctypes
import errno
import functools
import mmap
import os
import random
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    run_state_machine_as_test,
)
from support import Mount

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_SYMLINK_FOLLOW = -100, 0x100, 0x400
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7
_SEGMENT = 128 << 10
_PAGE = mmap.PAGESIZE
_MAX_HANDLES = 6
# Files up to this size are compared whole; longer ones are sparse and compared wherever either side wrote.
_WHOLE_SIZE_BYTES = 4 << 20
_CHUNK_SIZE_BYTES = 1 << 20
_CHUNK_SEQUENCES = 50
_CLOCK_SLACK_NS = 2_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


# What the machine draws. Names are few, so that operations meet.

_COMMON_PATHS = (b"a", b"b", b"c", b"p", b"p/a", b"p/b", b"p/q", b"p/q/a", b"p/q/b")
_RARE_PATHS = (
    b"p/q/q",
    b"p/" + "Größe.jpg".encode(),
    b"\xff\xfe.jpg",
    b"n" * 255,
    b"p/" + b"n" * 255,
    b"n" * 256,
    b"a/",
    b"p/",
    b"p/q/.",
    b"p/..",
    b"absent/a",
)
paths = st.sampled_from(_COMMON_PATHS * 4 + _RARE_PATHS)
handles = st.integers(0, _MAX_HANDLES - 1)
offsets = st.one_of(
    st.integers(0, 100),
    st.builds(lambda count, more: max(0, count * _PAGE + more), st.integers(0, 40), st.integers(-2, 2)),
    st.builds(lambda count, more: max(0, count * _SEGMENT + more), st.integers(0, 6), st.integers(-3, 3)),
    st.integers(0, 6 * _SEGMENT),
)
far_offsets = st.one_of(st.integers(1 << 20, 1 << 30), st.integers(8, 1 << 13).map(_SEGMENT.__mul__))
lengths = st.one_of(
    st.integers(0, 64),
    st.integers(1, 3 * _PAGE),
    st.integers(_SEGMENT - 2, _SEGMENT + 2),
    st.integers(0, 600 << 10),
)
sizes = st.one_of(offsets, offsets, far_offsets, st.sampled_from((0, 1 << 30, 1 << 45, -1)))
seeds = st.integers(0, 255)
edits = st.tuples(
    st.sampled_from(("write", "write back", "refill", "truncate", "read", "reread")), offsets, lengths, seeds
)
modes = st.sampled_from((0o644, 0o600, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o000, 0o444))
moments = st.one_of(
    st.sampled_from(("now", "omit")),
    # Never about now, so that they can be told from what the clock set. ext4 knows 1901 to 2446, a store
    # 1677 to 2262.
    # Above the earliest second that ext4 can store: there it drops the nanoseconds, and we do not.
    st.integers((1 - (1 << 31)) * 10**9, 1_577_836_800 * 10**9),
    st.integers(5_000_000_000 * 10**9, 9_000_000_000 * 10**9),
)
xattr_names = st.sampled_from((b"user.a", b"user.b", b"user." + b"x" * 100, b"user.", b"none"))
xattr_values = st.binary(max_size=200)
access_modes = st.sampled_from(("O_RDWR", "O_RDWR", "O_RDONLY", "O_WRONLY"))
open_flags = st.sets(
    st.sampled_from(("O_CREAT", "O_TRUNC", "O_APPEND", "O_EXCL", "O_NOFOLLOW", "O_DIRECTORY", "O_SYNC")),
    max_size=3,
).map(lambda names: tuple(sorted(names)))


@functools.cache
def _noise() -> bytes:
    return random.Random(1).randbytes((600 << 10) + (256 << 8))


def pattern(number: int, size: int) -> memoryview:
    """Bytes that differ from other patterns nearly everywhere."""
    return memoryview(_noise())[number << 8 : (number << 8) + size]


# System calls that `os` does not have


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def rename(source: bytes, target: bytes, flags: int) -> None:
    """renameat2(2)."""
    _check(_libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flags))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def _timespec(moment: int | str) -> _Timespec:
    if isinstance(moment, int):
        return _Timespec(*divmod(moment, 10**9))
    return _Timespec(0, _UTIME_NOW if moment == "now" else _UTIME_OMIT)


def set_times(at: int | bytes, atime: int | str, mtime: int | str, *, follow_symlinks: bool = True) -> None:
    """utimensat(2) and futimens(3): nanoseconds since 1970, "now" or "omit"."""
    times = (_Timespec * 2)(_timespec(atime), _timespec(mtime))
    if isinstance(at, int):
        _check(_libc.futimens(at, times))
    else:
        _check(_libc.utimensat(_AT_FDCWD, at, times, 0 if follow_symlinks else _AT_SYMLINK_NOFOLLOW))


def link_open(fd: int, path: bytes) -> None:
    """One more name for what is open."""
    source = b"/proc/self/fd/%d" % fd
    _check(_libc.linkat(_AT_FDCWD, source, _AT_FDCWD, path, _AT_SYMLINK_FOLLOW))


def drop_pages(fd: int) -> None:
    """Have the kernel hand over what it has of a file and forget it. The draft behind it stays unsaved."""
    with suppress(OSError):  # not a regular file
        _check(_libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE_AND_WAIT))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


# The two sides


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two directories that should not differ."""

    name: str
    root: bytes

    def path(self, path: bytes) -> bytes:
        """A path below this side's directory."""
        return self.root + b"/" + path


class Site:
    """A mount and a plain directory; every example works in a fresh directory of each."""

    def __init__(self, mount: Mount, plain: Path) -> None:
        self.mount = mount
        self.counts: Counter[str] = Counter()
        self._plain = plain
        plain.mkdir(exist_ok=True)

    def new_sides(self) -> tuple[Side, Side]:
        """Fresh directories. A mount that an example has broken is made anew."""
        try:
            os.listdir(self.mount.mountpoint)
            alive = self.mount.is_mounted
        except OSError:
            alive = False
        if not alive:
            self.mount.close()
            self.mount.mount()
        self.counts["sequences"] += 1
        sides = []
        for name, parent in (("mounted", self.mount.mountpoint), ("plain", self._plain)):
            root = parent / f"sequence-{self.counts['sequences']}"
            root.mkdir()
            sides.append(Side(name, os.fsencode(root)))
        return sides[0], sides[1]


def is_ext4(path: Path) -> bool:
    """Whether a directory is on ext4."""
    device = f"{os.major(path.stat().st_dev)}:{os.minor(path.stat().st_dev)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2] == device:
            return rest.split(" ")[0] == "ext4"
    return False


@dataclass(eq=False, slots=True)
class Handle:
    """What one open(2) on both sides gave."""

    path: bytes
    fds: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Mapping:
    """A shared mapping on both sides, of the file from `offset` on."""

    offset: int
    length: int
    maps: dict[str, mmap.mmap] = field(default_factory=dict)


def outcome_of(operation: Callable[[Side], object], side: Side) -> object:
    """What an operation returns, or the errno it fails with."""
    try:
        return operation(side)
    except OSError as error:
        return f"<{errno.errorcode.get(error.errno or 0, error.errno)}>"


def _described(outcome: object) -> str:
    text = repr(outcome)
    return text if len(text) < 300 else f"{text[:200]}... ({type(outcome).__name__})"


def _difference(mounted: object, plain: object) -> str:
    if isinstance(mounted, bytes) and isinstance(plain, bytes):
        at = next(
            (at for at, pair in enumerate(zip(mounted, plain, strict=False)) if pair[0] != pair[1]),
            min(len(mounted), len(plain)),
        )
        return (
            f"{len(mounted)} and {len(plain)} bytes, different from byte {at} on: "
            f"{mounted[at : at + 16].hex()} and {plain[at : at + 16].hex()}"
        )
    if isinstance(mounted, dict) and isinstance(plain, dict):
        return "; ".join(
            f"{key!r}: {_difference(mounted.get(key), plain.get(key))}"
            for key in sorted(mounted.keys() | plain.keys(), key=repr)
            if mounted.get(key) != plain.get(key)
        )
    return f"{_described(mounted)} mounted, {_described(plain)} on ext4"


def step(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule of the machine that counts how often it runs."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def counted(machine: "DifferentialMachine", **values: Any) -> None:
            machine.count("steps")
            function(machine, **values)

        return stateful.rule(**arguments)(counted)

    return decorate


# What one side shows


def _moment(time_ns: int, began_ns: int) -> object:
    if began_ns - _CLOCK_SLACK_NS <= time_ns <= time.time_ns() + _CLOCK_SLACK_NS:
        return "clock"
    return time_ns


def attributes(status: os.stat_result, began_ns: int) -> dict[str, object]:
    """What of stat(2) has to be equal."""
    mode = status.st_mode
    found: dict[str, object] = {
        "mode": oct(mode),
        "nlink": status.st_nlink,
        "owner": (status.st_uid, status.st_gid),
        "rdev": status.st_rdev,
        "mtime": _moment(status.st_mtime_ns, began_ns),
        "atime": _moment(status.st_atime_ns, began_ns),
    }
    if not stat.S_ISDIR(mode):
        found["size"] = status.st_size
    return found


def xattrs(at: bytes | int) -> dict[bytes, bytes]:
    """All user.* attributes; those of other namespaces are the system's."""
    follow = {"follow_symlinks": False} if isinstance(at, bytes) else {}
    names = [os.fsencode(name) for name in os.listxattr(at, **follow)]
    return {name: os.getxattr(at, name, **follow) for name in names if name.startswith(b"user.")}


def listing(path: bytes) -> dict[bytes, object]:
    """Names and d_types of a directory; every d_ino must be the one that stat tells."""
    with os.scandir(path) as entries:
        found = [(entry.name, entry) for entry in entries]
    assert len({name for name, _ in found}) == len(found), f"a name is listed twice: {found}"
    return {
        name: (
            entry.is_dir(follow_symlinks=False),
            entry.is_file(follow_symlinks=False),
            entry.is_symlink(),
            entry.inode() == entry.stat(follow_symlinks=False).st_ino,
        )
        for name, entry in found
    }


def tree(root: bytes, began_ns: int) -> dict[bytes, dict[str, object]]:
    """Everything below a directory and the directory itself, content apart. `same`: its first name."""
    first_names: dict[int, bytes] = {}
    found = {}
    for path in _walk(root, b"."):
        full = root + b"/" + path
        status = os.lstat(full)
        node = attributes(status, began_ns)
        node["same"] = first_names.setdefault(status.st_ino, path)
        node["xattrs"] = xattrs(full)
        if stat.S_ISLNK(status.st_mode):
            node["target"] = os.readlink(full)
        found[path] = node
    return found


def _walk(root: bytes, path: bytes) -> Iterator[bytes]:
    yield path
    for name, (is_directory, *_) in sorted(listing(root + b"/" + path).items()):  # type: ignore[misc]
        if is_directory:
            yield from _walk(root, path + b"/" + name)
        else:
            yield path + b"/" + name


def list_while_changing(directory: bytes, read_first: int, every: int) -> dict[str, object]:
    """Read a big directory in the middle of changes; tells what readdir(3) promises and did not keep.

    Names that come or go meanwhile may be listed or not; all others exactly once.
    """
    names = [b"%04d" % number + b"-" * 140 for number in range(240)]
    os.mkdir(directory)
    pending = []
    for number, name in enumerate(names):
        if number % 37 == 0:
            pending.append(os.open(directory + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o644))
        else:
            os.symlink(b"target", directory + b"/" + name)
    with os.scandir(directory) as entries:
        listed = Counter(next(entries).name for _ in range(read_first))
        removed, renamed = set(names[::every]), set(names[1::every])
        for name in removed:
            os.unlink(directory + b"/" + name)
        for number, name in enumerate(sorted(renamed)):
            os.rename(directory + b"/" + name, directory + b"/renamed-%d" % number)
            os.symlink(b"target", directory + b"/new-%d" % number)
        listed.update(entry.name for entry in entries)
    for fd in pending:
        os.close(fd)
    kept = set(names) - removed - renamed
    result = {
        "missing": sorted(name for name in kept if name not in listed),
        "twice": sorted(name for name in kept if listed[name] > 1),
        "after": sorted(os.listdir(directory)),
    }
    shutil.rmtree(directory)
    return result


class DifferentialMachine(RuleBasedStateMachine):
    """System calls on both sides of a site."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site
        self._sides = site.new_sides()
        self._began_ns = time.time_ns()
        self._open: list[Handle] = []
        self._mappings: list[Mapping] = []
        # Where anything was written into any file of this example: (offset, size).
        self._written: set[tuple[int, int]] = set()
        self._differed = False
        self._remounted = False
        self._listed = False
        self._scattered = False

    def count(self, what: str) -> None:
        """Count it for the whole site."""
        self._site.counts[what] += 1

    def _both(self, operation: Callable[[Side], object]) -> object:
        """Do it on both sides; the same has to come of it."""
        self._differed = True  # until proven otherwise
        mounted, plain = (outcome_of(operation, side) for side in self._sides)
        self._differed = False
        self.count("operations")
        if isinstance(plain, str) and plain.startswith("<"):
            self.count("failing alike")
        self._compare(mounted, plain)
        return plain

    def _compare(self, mounted: object, plain: object, what: object = "") -> None:
        if mounted != plain:
            self._differed = True
            raise AssertionError(f"{what} {_difference(mounted, plain)}".strip())

    def _pick(self, number: int) -> Handle:
        return self._open[number % len(self._open)]

    def _has_handles(self) -> bool:
        return bool(self._open)

    def _note(self, offset: int, size: int) -> None:
        self._written.add((offset, size))

    def _size(self, handle: Handle) -> int:
        status = os.fstat(handle.fds["plain"])
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    # Steps

    @initialize()
    def beginning(self) -> None:
        """Something to work in."""
        self._both(lambda side: os.mkdir(side.path(b"p"), 0o755))
        self._both(lambda side: os.mkdir(side.path(b"p/q"), 0o755))
        for number, path in enumerate((b"a", b"p/a", b"p/q/a")):
            self.write_file(path=path, number=number, size=number * 200_000)
        self._do_open(b"p/a", os.O_RDWR, 0)
        self._do_open(b"b", os.O_RDWR | os.O_CREAT, 0o640)

    def _do_open(self, path: bytes, flags: int, mode: int) -> Handle | None:
        handle = Handle(path)
        self._open.append(handle)

        def operation(side: Side) -> None:
            # O_NONBLOCK: a FIFO must not wait for its other end. Nothing else heeds it.
            handle.fds[side.name] = os.open(side.path(path), flags | os.O_NONBLOCK, mode)

        self._both(operation)
        if not handle.fds:
            self._open.remove(handle)
            return None
        return handle

    def _do_close(self, handle: Handle) -> None:
        self._open.remove(handle)
        self._both(lambda side: os.close(handle.fds[side.name]))

    @precondition(lambda self: len(self._open) < _MAX_HANDLES)
    @step(path=paths, access=access_modes, more=open_flags, mode=modes)
    def open_file(self, path: bytes, access: str, more: tuple[str, ...], mode: int) -> None:
        flags = getattr(os, access)
        for name in more:
            flags |= getattr(os, name)
        self._do_open(path, flags, mode)

    @precondition(lambda self: len(self._open) < _MAX_HANDLES)
    @step(path=paths, number=seeds, size=lengths, append=st.booleans())
    def create(self, path: bytes, number: int, size: int, append: bool) -> None:
        """A file that stays open, written to or not."""
        handle = self._do_open(path, os.O_RDWR | os.O_CREAT | (os.O_APPEND if append else 0), 0o644)
        if handle is not None and size:
            self._pwrite(handle, pattern(number, size), 0)

    @step(path=paths, number=seeds, size=lengths)
    def write_file(self, path: bytes, number: int, size: int) -> None:
        """What most programs do: truncate, write in order, close."""
        handle = self._do_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        if handle is None:
            return
        for at in range(0, size, 100_000):
            self._pwrite(handle, pattern(number, size)[at : at + 100_000], at)
        self._do_close(handle)

    @precondition(_has_handles)
    @step(handle=handles)
    def close(self, handle: int) -> None:
        self._do_close(self._pick(handle))

    @precondition(_has_handles)
    @step(handle=handles)
    def close_duplicate(self, handle: int) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: os.close(os.dup(fds[side.name])))

    # Content

    def _pwrite(self, handle: Handle, data: memoryview, offset: int) -> None:
        self._note(offset, len(data))
        self._note(self._size(handle), len(data))  # O_APPEND
        self._both(lambda side: os.pwrite(handle.fds[side.name], data, offset))

    @precondition(_has_handles)
    @step(handle=handles, offset=offsets, number=seeds, size=lengths)
    def write(self, handle: int, offset: int, number: int, size: int) -> None:
        self._pwrite(self._pick(handle), pattern(number, size), offset)

    @precondition(_has_handles)
    @step(handle=handles, edits=st.lists(edits, min_size=2, max_size=8))
    def edit(self, handle: int, edits: list[tuple[str, int, int, int]]) -> None:
        """What an editor does with one file: writes, reads and changes of its size in any order."""
        picked = self._pick(handle)
        for kind, offset, size, number in edits:
            if kind in ("write back", "reread"):
                drop_pages(picked.fds["mounted"])
            if kind == "refill":
                self._both(lambda side: os.ftruncate(picked.fds[side.name], 0))
                self._pwrite(picked, pattern(number, size), 0)
            elif kind.startswith("write"):
                self._pwrite(picked, pattern(number, size), offset)
            elif kind == "truncate":
                self._both(lambda side, size=offset: os.ftruncate(picked.fds[side.name], size))  # type: ignore[misc]
            else:
                self._both(lambda side, at=offset, size=size: os.pread(picked.fds[side.name], size, at))  # type: ignore[misc]

    @precondition(_has_handles)
    @step(handle=handles, number=seeds, size=lengths)
    def write_at_end(self, handle: int, number: int, size: int) -> None:
        picked = self._pick(handle)
        self._pwrite(picked, pattern(number, size), self._size(picked))

    @precondition(_has_handles)
    @step(handle=handles, offset=far_offsets, number=seeds, size=st.integers(1, 300))
    def write_far(self, handle: int, offset: int, number: int, size: int) -> None:
        self._pwrite(self._pick(handle), pattern(number, size), offset)

    @precondition(lambda self: self._open and not self._scattered)
    @step(
        handle=handles,
        number=seeds,
        count=st.sampled_from((3, 9, 30, 270)),
        stride=st.sampled_from((1, -1, 2)),
    )
    def write_scattered(self, handle: int, number: int, count: int, stride: int) -> None:
        """Touch many segments, at the most (once: it takes long) more than a draft keeps in memory."""
        self._scattered = count == 270
        picked = self._pick(handle)
        for at in range(count)[::stride]:
            self._pwrite(picked, pattern(number, 3), at * _SEGMENT + at)

    @precondition(_has_handles)
    @step(handle=handles, offset=st.one_of(offsets, sizes), size=lengths, drop=st.booleans())
    def read(self, handle: int, offset: int, size: int, drop: bool) -> None:
        fds = self._pick(handle).fds
        if drop:
            drop_pages(fds["mounted"])
        self._both(lambda side: os.pread(fds[side.name], size, offset))

    @precondition(_has_handles)
    @step(handle=handles)
    def drop_pages(self, handle: int) -> None:
        drop_pages(self._pick(handle).fds["mounted"])

    @precondition(_has_handles)
    @step(handle=handles, size=sizes)
    def truncate_open(self, handle: int, size: int) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: os.ftruncate(fds[side.name], size))

    @step(path=paths, size=sizes)
    def truncate(self, path: bytes, size: int) -> None:
        plain = self._sides[1].path(path)
        if os.path.isfile(plain) and os.path.getsize(plain) == size:
            return
        self._both(lambda side: os.truncate(side.path(path), size))

    @precondition(_has_handles)
    @step(handle=handles, only_data=st.booleans())
    def sync(self, handle: int, only_data: bool) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: (os.fdatasync if only_data else os.fsync)(fds[side.name]))

    @precondition(_has_handles)
    @step(source=handles, destination=handles, start=offsets, to=offsets, size=lengths)
    def copy_range(self, source: int, destination: int, start: int, to: int, size: int) -> None:
        one, other = self._pick(source), self._pick(destination)
        if size == 0:
            return  # Linux answers it before or after it looks at the descriptors, as the file system has it
        self._note(to, size)
        self._both(lambda side: os.copy_file_range(one.fds[side.name], other.fds[side.name], size, start, to))

    @precondition(_has_handles)
    @step(
        handle=handles,
        offset=offsets,
        number=seeds,
        size=lengths,
        msync=st.booleans(),
        keep=st.booleans(),
    )
    def map_and_write(
        self, handle: int, offset: int, number: int, size: int, msync: bool, keep: bool
    ) -> None:
        """Write through a shared mapping, inside the file: beyond its end there is only SIGBUS."""
        picked = self._pick(handle)
        file_size = self._size(picked)
        if not file_size or not size:
            return
        offset %= file_size
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = min(offset + size, file_size) - start
        mapping = Mapping(start, length)

        def make(side: Side) -> None:
            mapping.maps[side.name] = mmap.mmap(picked.fds[side.name], length, offset=start)

        self._both(make)
        if not mapping.maps:
            return
        self._mappings.append(mapping)
        self._write_mapping(mapping, offset - start, number)
        if msync:
            self._both(lambda side: mapping.maps[side.name].flush())
        if not keep:
            self._close_mapping(mapping)

    @precondition(lambda self: self._mappings)
    @step(mapping=handles, number=seeds, close=st.booleans())
    def write_mapping(self, mapping: int, number: int, close: bool) -> None:
        """Once more through a mapping whose file may have changed, or been closed or unlinked meanwhile."""
        picked = self._mappings[mapping % len(self._mappings)]
        sizes = [picked.maps[side.name].size() for side in self._sides]
        self._compare(*sizes, "size of a mapped file:")
        if sizes[0] >= picked.offset + picked.length:
            self._both(lambda side: bytes(picked.maps[side.name]))
            self._write_mapping(picked, picked.length // 2, number)
        if close:
            self._close_mapping(picked)

    def _write_mapping(self, mapping: Mapping, at: int, number: int) -> None:
        data = pattern(number, mapping.length - at)
        self._note(mapping.offset + at, len(data))
        for side in self._sides:
            mapping.maps[side.name][at : at + len(data)] = bytes(data)

    def _close_mapping(self, mapping: Mapping) -> None:
        self._mappings.remove(mapping)
        for each in mapping.maps.values():
            each.close()

    # Names

    @step(
        source=paths,
        destination=paths,
        flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3)),
    )
    def rename(self, source: bytes, destination: bytes, flags: int) -> None:
        self._both(lambda side: rename(side.path(source), side.path(destination), flags))

    @precondition(_has_handles)
    @step(handle=handles, destination=paths, flags=st.sampled_from((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))
    def rename_open(self, handle: int, destination: bytes, flags: int) -> None:
        """Rename what was opened under a name, over something or into the place of something."""
        picked = self._pick(handle)
        outcome = self._both(lambda side: rename(side.path(picked.path), side.path(destination), flags))
        if outcome is None:
            picked.path = destination

    @step(source=paths, destination=paths)
    def link(self, source: bytes, destination: bytes) -> None:
        self._both(lambda side: os.link(side.path(source), side.path(destination), follow_symlinks=False))

    @precondition(_has_handles)
    @step(handle=handles, destination=paths)
    def link_open(self, handle: int, destination: bytes) -> None:
        """Give what is open one more name; impossible once its last one is gone."""
        fds = self._pick(handle).fds
        self._both(lambda side: link_open(fds[side.name], side.path(destination)))

    @step(path=paths)
    def unlink(self, path: bytes) -> None:
        self._both(lambda side: os.unlink(side.path(path)))

    @precondition(_has_handles)
    @step(handle=handles)
    def unlink_open(self, handle: int) -> None:
        path = self._pick(handle).path
        self._both(lambda side: os.unlink(side.path(path)))

    @step(path=paths, mode=modes)
    def mkdir(self, path: bytes, mode: int) -> None:
        self._both(lambda side: os.mkdir(side.path(path), mode))

    @step(path=paths)
    def rmdir(self, path: bytes) -> None:
        self._both(lambda side: os.rmdir(side.path(path)))

    @step(path=paths, contents=st.one_of(paths, st.sampled_from((b"", b"x" * 4095, b"x" * 4096, b"../c"))))
    def symlink(self, path: bytes, contents: bytes) -> None:
        self._both(lambda side: os.symlink(contents, side.path(path)))

    @step(path=paths)
    def readlink(self, path: bytes) -> None:
        self._both(lambda side: os.readlink(side.path(path)))

    @step(path=paths, kind=st.sampled_from((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)), mode=modes)
    def mknod(self, path: bytes, kind: int, mode: int) -> None:
        self._both(lambda side: os.mknod(side.path(path), kind | mode))

    @step(path=paths)
    def list_directory(self, path: bytes) -> None:
        self._both(lambda side: listing(side.path(path)))

    @precondition(lambda self: not self._listed)
    @step(read_first=st.integers(0, 240), every=st.integers(2, 7))
    def list_while_changing(self, read_first: int, every: int) -> None:
        self._listed = True
        self._both(lambda side: list_while_changing(side.path(b"many"), read_first, every))

    # Attributes

    @step(path=paths)
    def look_at(self, path: bytes) -> None:
        self._both(lambda side: self._without_atime(attributes(os.stat(side.path(path)), self._began_ns)))

    @precondition(_has_handles)
    @step(handle=handles)
    def look_at_open(self, handle: int) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: self._without_atime(attributes(os.fstat(fds[side.name]), self._began_ns)))

    def _without_atime(self, found: dict[str, object]) -> dict[str, object]:
        del found["atime"]
        return found

    @step(path=paths, mode=modes)
    def chmod(self, path: bytes, mode: int) -> None:
        self._both(lambda side: os.chmod(side.path(path), self._passable(mode, side.path(path))))

    @precondition(_has_handles)
    @step(handle=handles, mode=modes)
    def chmod_open(self, handle: int, mode: int) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: os.fchmod(fds[side.name], self._passable(mode, fds[side.name])))

    def _passable(self, mode: int, of: bytes | int) -> int:
        """A mode that does not keep us from comparing; nothing keeps root.

        Files get no set-id bits: what root writes, and that is us mostly, takes them on the mount and not
        on ext4 (docs/posix.md).
        """
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(of).st_mode):
                mode &= ~(stat.S_ISUID | stat.S_ISGID)
        return mode if os.geteuid() == 0 else mode | 0o700

    @step(path=paths, uid=st.sampled_from((-1, 0, 1234)), gid=st.sampled_from((-1, 0, 1234)))
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._both(lambda side: os.chown(side.path(path), uid, gid, follow_symlinks=False))

    @step(path=paths, atime=moments, mtime=moments, follow_symlinks=st.booleans())
    def set_times(self, path: bytes, atime: int | str, mtime: int | str, follow_symlinks: bool) -> None:
        self._both(lambda side: set_times(side.path(path), atime, mtime, follow_symlinks=follow_symlinks))

    @precondition(_has_handles)
    @step(handle=handles, atime=moments, mtime=moments)
    def set_times_open(self, handle: int, atime: int | str, mtime: int | str) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: set_times(fds[side.name], atime, mtime))

    @step(
        path=paths,
        name=xattr_names,
        value=xattr_values,
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
        follow_symlinks=st.booleans(),
    )
    def set_xattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow_symlinks: bool) -> None:
        self._both(
            lambda side: os.setxattr(side.path(path), name, value, flags, follow_symlinks=follow_symlinks)
        )

    @precondition(_has_handles)
    @step(handle=handles, name=xattr_names, value=xattr_values)
    def set_xattr_open(self, handle: int, name: bytes, value: bytes) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: os.setxattr(fds[side.name], name, value))

    @step(path=paths, name=xattr_names)
    def get_xattr(self, path: bytes, name: bytes) -> None:
        self._both(lambda side: os.getxattr(side.path(path), name))

    @precondition(_has_handles)
    @step(handle=handles)
    def get_xattrs_open(self, handle: int) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: xattrs(fds[side.name]))

    @step(path=paths, name=xattr_names)
    def remove_xattr(self, path: bytes, name: bytes) -> None:
        self._both(lambda side: os.removexattr(side.path(path), name))

    @precondition(_has_handles)
    @step(handle=handles, name=xattr_names)
    def remove_xattr_open(self, handle: int, name: bytes) -> None:
        fds = self._pick(handle).fds
        self._both(lambda side: os.removexattr(fds[side.name], name))

    # Everything

    @step(contents=st.booleans())
    def compare(self, contents: bool) -> None:
        """Names and attributes, or the bytes, too: that closes what it opened, and a close saves."""
        self._compare_trees()
        if contents:
            self._compare_contents()

    @precondition(lambda self: not self._remounted)
    @step(kill=st.booleans())
    def remount(self, kill: bool) -> None:
        """Close all and mount again, in order or after kill -9: what was closed is saved."""
        self._remounted = True
        self.count("remounts")
        self._close_all()
        self._compare_trees()
        self._differed = True  # until proven otherwise
        if kill:
            self._site.mount.kill()
            self._site.mount.mount()
        else:
            self._site.mount.remount()
        self._differed = False
        self._compare_trees(directory_times=not kill)
        self._compare_contents()

    def _compare_trees(self, *, directory_times: bool = True) -> None:
        self.count("trees compared")
        mounted, plain = (tree(side.root, self._began_ns) for side in self._sides)
        for path, node in plain.items():
            other = mounted.get(path, {})
            if node["atime"] == "clock":  # by reading, most likely
                for each in (node, other):
                    each.pop("atime", None)
            if not directory_times and "size" not in node:
                # A file that came and went unsaved changed its directory in memory only.
                for each in (node, other):
                    each.pop("mtime", None)
        self._compare(mounted, plain, "trees:")

    def _compare_contents(self) -> None:
        """The bytes of every file that has a name, and of every open one."""
        plain_side = self._sides[1]
        for path in _walk(plain_side.root, b"."):
            if not stat.S_ISREG(os.lstat(plain_side.path(path)).st_mode):
                continue
            handle = self._do_open(path, os.O_RDONLY | os.O_NOATIME, 0)
            if handle is not None:
                self._compare_content(handle)
                self._do_close(handle)
        for handle in self._open:
            self._compare_content(handle)

    def _compare_content(self, handle: Handle) -> None:
        self._both(
            lambda side: self._without_atime(attributes(os.fstat(handle.fds[side.name]), 0)).get("size")
        )
        drop_pages(handle.fds["mounted"])
        for offset, size in self._ranges(self._size(handle)):
            self._both(lambda side, at=offset, size=size: os.pread(handle.fds[side.name], size, at))  # type: ignore[misc]

    def _ranges(self, size: int) -> list[tuple[int, int]]:
        """What to read of a file: all, or of a long one the segments that anything was written to."""
        if size <= _WHOLE_SIZE_BYTES:
            return [(at, _CHUNK_SIZE_BYTES) for at in range(0, size, _CHUNK_SIZE_BYTES)]
        segments = {0, (size - 1) // _SEGMENT}
        for offset, length in self._written:
            segments.update(range(offset // _SEGMENT, (offset + length) // _SEGMENT + 1))
        return [(at * _SEGMENT, _SEGMENT) for at in sorted(segments) if at * _SEGMENT < size]

    def _close_all(self) -> None:
        for mapping in list(self._mappings):
            self._close_mapping(mapping)
        for handle in list(self._open):
            self._do_close(handle)

    def teardown(self) -> None:
        """Compare all there is, close it, compare again."""
        try:
            if not self._differed:
                self._compare_trees()
                for handle in self._open:
                    self._compare_content(handle)
                self._close_all()
                self._compare_trees()
                self._compare_contents()
        finally:
            self._clean()

    def _clean(self) -> None:
        for mapping in self._mappings:
            for each in mapping.maps.values():
                each.close()
        for handle in self._open:
            for fd in handle.fds.values():
                with suppress(OSError):
                    os.close(fd)
        for side in self._sides:
            shutil.rmtree(side.root, ignore_errors=self._differed)


def run(site: Site, *, sequences: int, steps: int, seed_number: int | None = None) -> None:
    """Run sequences; raises at the first difference, after making it small.

    Without a seed the sequences are the same in every run.
    """

    def machine() -> DifferentialMachine:
        return DifferentialMachine(site)

    run_state_machine_as_test(
        machine if seed_number is None else seed(seed_number)(machine),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            derandomize=seed_number is None,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def main() -> int:
    """Run the long form in chunks, each on a fresh store; returns the exit status."""
    parser = argparse.ArgumentParser(prog="differential", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="system calls a sequence (default 50)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on ext4, for both sides")
    asked = parser.parse_args()
    if not is_ext4(asked.directory):
        parser.error(f"{asked.directory} is not on ext4, which the mount is compared with")
    print(f"{asked.sequences} sequences of {asked.steps} steps, seed {asked.seed}", flush=True)
    totals: Counter[str] = Counter()
    began = time.monotonic()
    differences = 0
    for first in range(0, asked.sequences, _CHUNK_SEQUENCES):
        count = min(_CHUNK_SEQUENCES, asked.sequences - first)
        difference = _run_chunk(asked.directory, count, asked.steps, asked.seed + first, totals)
        if difference:
            differences += 1
            print(f"seed {asked.seed + first}: {difference}", flush=True)
        elapsed_s = time.monotonic() - began
        print(f"{first + count} of {asked.sequences} sequences asked for, {elapsed_s:.0f} s", flush=True)
    for what, number in totals.items():
        print(f"{what}: {number}")
    print(f"differences: {differences}")
    return 1 if differences else 0


def _run_chunk(parent: Path, sequences: int, steps: int, seed_number: int, totals: Counter[str]) -> str:
    """What differed, or what the daemon complained of; empty if nothing did."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="pixstorefs-differential-") as directory:
        mount = Mount(Path(directory))
        mount.expect_log("recovery: ")
        site = Site(mount, Path(directory, "plain"))
        try:
            mount.mount()
            run(site, sequences=sequences, steps=steps, seed_number=seed_number)
        except Exception as error:
            return "\n".join((f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())))
        finally:
            mount.close()
            totals.update(site.counts)
        return "\n".join(mount.complaints())


if __name__ == "__main__":
    sys.exit(main())
