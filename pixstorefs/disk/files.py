"""Files on the disk: written whole, or durably, or not at all; read before somebody waits for them."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The disk is full, or the part of it that somebody may use.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
# The file systems cannot do it between them (copy_file_range(2)).
_NO_RANGES = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
_COPY_BYTES = 1 << 20
# What every disk takes at once. Linux reads no more than that for one call, and says nothing
# (force_page_cache_ra in mm/readahead.c).
_READ_AHEAD_PIECE_BYTES = 128 << 10


def sync_directory(path: str) -> None:
    """Make the names in a directory durable (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_ahead(fd: int, offset: int, size_bytes: int) -> None:
    """Have the disk read a range, or what the file has of it, without waiting for it. Raises OSError."""
    end = min(offset + size_bytes, os.fstat(fd).st_size)
    for start in range(offset, end, _READ_AHEAD_PIECE_BYTES):
        os.posix_fadvise(fd, start, min(_READ_AHEAD_PIECE_BYTES, end - start), os.POSIX_FADV_WILLNEED)


def affordable_size(folder: str | int, size_bytes: int, part: int) -> int:
    """That size, or a smaller one where it would be more than one `part`th of the disk. Raises OSError."""
    disk = os.statvfs(folder)
    return min(size_bytes, disk.f_blocks * disk.f_frsize // part)


def fill_with_zeros(fd: int, size_bytes: int) -> None:
    """Make a file that long, its blocks written; a full disk leaves it as long as it was. Raises OSError.

    Written, not only allocated: file systems note the first write of every block in their own journal.
    """
    length_bytes = os.fstat(fd).st_size
    if length_bytes >= size_bytes:
        return
    try:
        os.lseek(fd, length_bytes, os.SEEK_SET)
        write_fully(fd, memoryview(bytes(size_bytes - length_bytes)), lambda: None)
    except OSError:
        os.ftruncate(fd, length_bytes)
        raise


def write_fully(fd: int, data: memoryview, make_room: Callable[[], None]) -> None:
    """Write all of `data` at the file's position, short writes or not.

    On a full disk `make_room` is called once, and writing goes on where it stopped: the bytes that are
    written are the same, so nothing is sealed twice. Raises OSError.
    """
    asked = False
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError as error:
            if error.errno not in FULL_ERRNOS or asked:
                raise
            asked = True
            make_room()


def copy_content(source: int, target: int, size_bytes: int) -> None:
    """Copy that much, or what there is, from a file's position to another's; shared where the disk can.

    Raises OSError.
    """
    try:
        while size_bytes and (copied := os.copy_file_range(source, target, size_bytes)):
            size_bytes -= copied
    except OSError as error:
        if error.errno not in _NO_RANGES:
            raise
    # Some file systems say that there is nothing, and have it all the same.
    while chunk := os.read(source, min(size_bytes, _COPY_BYTES)):
        write_fully(target, memoryview(chunk), lambda: None)
        size_bytes -= len(chunk)


@contextmanager
def removed_on_error(path: str) -> Iterator[None]:
    """Remove a file that could not be completed."""
    try:
        yield
    except BaseException:
        if os.path.lexists(path):
            os.unlink(path)
        raise
