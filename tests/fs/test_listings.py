"""Listing a directory while others change it: what stays is listed exactly once, however small the steps."""

import ctypes
import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

from support import Mount

STABLE = {b"stable-%04d" % number for number in range(5_000)}
LISTINGS = 4
_SMALL_BUFFER_BYTES = 200
_HEAD = struct.Struct("=QqHB")  # linux_dirent64: inode, offset, length, type

# Names between the stable ones come, are renamed and go, saved and unsaved ones, until standard input ends.
_CHANGES = """
import itertools, os, select, sys
os.chdir(sys.argv[1])
kept = []
for number in itertools.count():
    os.symlink("x", f"a-{number}")
    os.rename(f"a-{number}", f"z-{number}")
    kept.append(open(f"new-{number}", "wb"))
    if number >= 20:
        os.unlink(f"z-{number - 20}")
        kept.pop(0).close()
        os.rename(f"new-{number - 20}", "new")
    if number == 20:
        print(flush=True)
    if select.select([sys.stdin], [], [], 0)[0]:
        break
print(number)
"""


def _steps(fd: int, buffer_bytes: int) -> Iterator[list[bytes]]:
    """The names of a directory, as many in a step as one getdents64(2) into a small buffer gives."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(buffer_bytes)
    while True:
        length = libc.getdents64(fd, buffer, buffer_bytes)
        assert length >= 0, os.strerror(ctypes.get_errno())
        if not length:
            return
        names, at = [], 0
        while at < length:
            _, _, size, _ = _HEAD.unpack_from(buffer, at)
            names.append(buffer.raw[at + _HEAD.size : at + size].split(b"\0", 1)[0])
            at += size
        yield names


def _made(mount: Mount, names: set[bytes]) -> bytes:
    """A directory of these names, made in an order that is not theirs."""
    path = os.fsencode(mount.mountpoint / "d")
    os.mkdir(path)
    for name in sorted(names, key=lambda name: name[::-1]):
        os.symlink(b"target", path + b"/" + name)
    return path


def test_what_stays_is_listed_once_while_others_come_and_go(mounted: Mount) -> None:
    """5,000 names, read a few at a time, by cookie, while another process changes the directory."""
    directory = _made(mounted, STABLE)
    with subprocess.Popen(
        [sys.executable, "-c", _CHANGES, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as changing:
        assert changing.stdin
        assert changing.stdout
        changing.stdout.readline()
        listings = []
        for _ in range(LISTINGS):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            listings.append(list(_steps(fd, _SMALL_BUFFER_BYTES)))
            os.close(fd)
        changing.stdin.close()
        changes = int(changing.stdout.read())

    assert changes > LISTINGS
    for steps in listings:
        assert len(steps) > len(STABLE) / 10
        listed = Counter(name for names in steps for name in names)
        assert {name for name in STABLE if listed[name] != 1} == set()
        assert all(count == 1 for name, count in listed.items() if name in (b".", b".."))


def test_a_listing_goes_on_where_it_was_told_to(mounted: Mount) -> None:
    """seekdir(3): what is behind a position stays that, also when names go, and after a remount."""
    directory = _made(mounted, set(sorted(STABLE)[:1000]))
    order = os.listdir(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    positions = []
    steps = _steps(fd, 4096)
    while names := next(steps, None):
        positions.append((os.lseek(fd, 0, os.SEEK_CUR), names))
    for number, (position, names) in enumerate(positions):
        os.unlink(directory + b"/" + names[-1])
        os.lseek(fd, position, os.SEEK_SET)
        rest = [name for names in _steps(fd, 1 << 16) for name in names]
        assert rest == [name for _, names in positions[number + 1 :] for name in names]
    os.close(fd)
    left = [name for name in order if os.path.lexists(directory + b"/" + name)]
    mounted.remount()
    assert os.listdir(directory) == left
    assert len(left) == len(order) - len(positions) > 900
