"""Sync threads: several waits for the disk at once.

Every fsync(2) ends with a flush of the disk's own cache. The kernel joins flushes that are asked for at the
same time, so an object, its folder and the log cost about one wait together and three one after the other
(measured: 0.5 ms against 1.3).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

# An image, its folder and the log: one of the calls is made on the caller's thread.
THREADS = 2

Sync = Callable[[], None]


class SyncThreads:
    """Threads kept for waiting; none is started before it is needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sync")

    def run(self, syncs: Sequence[Sync]) -> None:
        """Make all calls, in any order. Returns when all have returned; raises what one of them raised."""
        begun: list[Future[None]] = []
        try:
            for sync in syncs[1:]:
                try:
                    begun.append(self._pool.submit(sync))
                except RuntimeError:  # stopped, or the interpreter is ending
                    sync()
            syncs[0]()
        finally:
            wait(begun)
        for done in begun:
            done.result()

    def stop(self) -> None:
        """End the threads. `run` goes on working, with one call after the other."""
        self._pool.shutdown()
