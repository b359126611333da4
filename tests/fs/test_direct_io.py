"""Asynchronous writes past the kernel's cache (O_DIRECT, libaio), while others read the file through it."""

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import struct
import threading
import time

import pytest
from support import Mount, cannot_run

PAGE_BYTES = mmap.PAGESIZE
# The kernel's limit of requests in the background, max_background, unless somebody raised it.
BACKGROUND = 12
# About one in fifteen shows what is looked for (measured); two hundred in a row without one are no chance.
TRIALS = 200
TRIAL_LIMIT_S = 10.0
# io_setup, io_getevents, io_submit: syscalls(2) numbers them for each architecture.
SYSCALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
IOCB_CMD_PWRITE = 1


class AsyncWriter:
    """A file opened with O_DIRECT, and writes of a page each that are waited for later: io_submit(2)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._setup, self._getevents, self._submit = SYSCALLS[platform.machine()]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        assert self._libc.syscall(self._setup, 64, ctypes.byref(self._context)) == 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, PAGE_BYTES)
        self._buffer[:] = b"1" * PAGE_BYTES
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))

    def submit(self, page: int) -> None:
        """Begin to write a page."""
        fields = (0, 0, 0, IOCB_CMD_PWRITE, 0, self._descriptor, self._address, PAGE_BYTES)
        block = ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", *fields, page * PAGE_BYTES, 0, 0, 0))
        pointer = ctypes.c_void_p(ctypes.addressof(block))
        assert self._libc.syscall(self._submit, self._context, ctypes.c_long(1), ctypes.byref(pointer)) == 1

    def wait(self, count: int) -> None:
        """Wait for the end of so many writes."""
        events = ctypes.create_string_buffer(32 * count)
        number = ctypes.c_long(count)
        assert self._libc.syscall(self._getevents, self._context, number, number, events, None) == count
        assert all(event[2] == PAGE_BYTES for event in struct.iter_unpack("<QQqq", events.raw))

    def close(self) -> None:
        os.close(self._descriptor)


def wait_until_it_sleeps(thread: threading.Thread) -> None:
    """Return when a thread waits in the kernel and has done so for a moment."""
    sleeping = 0
    while sleeping < 20:
        with open(f"/proc/self/task/{thread.native_id}/stat", encoding="ascii") as file:
            sleeping = sleeping + 1 if file.read().rpartition(") ")[2][0] in ("S", "D") else 0
        time.sleep(0.01)


def old_page_read_while_it_is_written(pid: int, writer: AsyncWriter, reading: int) -> bool:
    """Write all pages; whether the last was read after the kernel dropped it and before it was written."""
    last = BACKGROUND
    # If the kernel asked the daemon anything before it writes, this thread would wait for ever.
    rescue = threading.Timer(TRIAL_LIMIT_S, os.kill, (pid, signal.SIGCONT))
    rescue.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        for page in range(last):
            writer.submit(page)
        # The queue is full: this one has dropped its page, and waits to be sent until another write is done.
        writing = threading.Thread(target=writer.submit, args=(last,))
        writing.start()
        wait_until_it_sleeps(writing)
        found: list[bytes] = []
        read = threading.Thread(target=lambda: found.append(os.pread(reading, 1, last * PAGE_BYTES)))
        read.start()
        wait_until_it_sleeps(read)
    finally:
        os.kill(pid, signal.SIGCONT)
        rescue.cancel()
    writing.join()
    read.join()
    writer.wait(last + 1)
    return found == [b"0"]


@pytest.mark.parametrize("closed_first", [False, True])
def test_who_opens_a_file_after_an_asynchronous_write_reads_what_was_written(
    mounted: Mount, closed_first: bool
) -> None:
    """The kernel forgets a page before such a write only: read meanwhile, the old one would stay for good."""
    if platform.machine() not in SYSCALLS:
        cannot_run("the numbers of io_submit(2) and its kin are not known here")
    for number in range(TRIALS):  # which of the two requests the daemon serves first is chance
        path = mounted.mountpoint / f"{number}.bin"
        path.write_bytes(b"0" * PAGE_BYTES * (BACKGROUND + 1))
        with contextlib.ExitStack() as files:
            writer = AsyncWriter(path)
            files.callback(writer.close)
            reading = os.open(path, os.O_RDONLY)
            files.callback(os.close, reading)
            # One request for one page, which does not queue behind those in the background.
            os.posix_fadvise(reading, 0, 0, os.POSIX_FADV_RANDOM)
            seen = old_page_read_while_it_is_written(mounted.pid, writer, reading)
            if closed_first:
                files.close()
            assert path.read_bytes() == b"1" * PAGE_BYTES * (BACKGROUND + 1)
        if seen:
            return
    pytest.fail("the page was never read before it was written: the trials show nothing")
