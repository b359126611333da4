"""What of Linux Python does not offer, or not under a name that tells what it is for."""

import contextlib
import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_MS_RDONLY = 1
_MS_REMOUNT = 32
# Options of a mount in mountinfo that a remount has to name again, or it drops them: mount(2).
_MS_KEPT = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}

# use_errno keeps this thread's errno safe from other calls; CDLL releases the GIL, which matters:
# umount2 and syncfs on our own mount return only after our own event loop has answered the kernel.
_libc = ctypes.CDLL(None, use_errno=True)


def umount(mountpoint: str, *, lazy: bool = False) -> None:
    """umount2(2). Needs CAP_SYS_ADMIN; raises OSError as the kernel says it."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(mountpoint), flags) != 0:
        raise _last_error(mountpoint)


def remount(mountpoint: str, options: frozenset[str], *, read_only: bool) -> None:
    """mount(2) with MS_REMOUNT: forbid writing, or allow it again; its other `options` stay.

    Needs CAP_SYS_ADMIN. Raises OSError, with EBUSY while a file is open for writing.
    """
    flags = _MS_REMOUNT | (_MS_RDONLY if read_only else 0)
    flags |= sum(flag for option, flag in _MS_KEPT.items() if option in options)
    if _libc.mount(None, os.fsencode(mountpoint), None, ctypes.c_ulong(flags), None) != 0:
        raise _last_error(mountpoint)


def close_descriptors(*, keep: int) -> None:
    """Close everything above stderr but one descriptor, in a process that was just forked.

    Asked of the kernel: a limit may be a thousand million, and closerange may try each number below it.
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != keep:
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                os.close(descriptor)


def syncfs(path: str) -> None:
    """syncfs(2): start writing back every dirty page of the file system that holds `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise _last_error(path)
    finally:
        os.close(descriptor)


class FileClock:
    """The clock from which the kernel stamps the files that are written.

    It stands still between two ticks, some milliseconds. What we stamp by a finer clock would be ahead of it:
    a file that is written after a directory or an empty file was made would be the older of the two, to make,
    and to `find -newer`. CLOCK_REALTIME_COARSE would do until Linux 6.13, which lets this one run ahead of
    that, when somebody looks. So an inode without a disk, that of a pipe, is stamped, and then asked.
    """

    def __init__(self) -> None:
        self._inode, _ = os.pipe()

    def now_ns(self) -> int:
        """Now, in nanoseconds since 1970."""
        os.utime(self._inode)
        return os.fstat(self._inode).st_ctime_ns


def protect_memory() -> None:
    """Keep keys out of core dumps and away from other processes of the same user (ptrace, /proc/PID/mem)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _last_error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
