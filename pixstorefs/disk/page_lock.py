"""Page locks: the front of a file stays in the page cache, whatever else needs memory.

Overwriting a part of a page that the cache has lost means reading it from the disk first (measured: a save
took 900 us instead of 500 after the caches were dropped).
"""

import mmap

# mmap(2); Python's module does not have it. The number on x86, ARM and RISC-V: elsewhere nothing is locked.
_MAP_LOCKED = 0x2000


class PageLock:
    """The locked pages of one file, or none. A file that shrinks meanwhile does no harm.

    Nobody reads or writes through the mapping, and only an access of ours could raise SIGBUS: mmap(2) reports
    nothing that goes wrong with bringing the pages in (MAP_LOCKED). mlock(2) would need a mapping, too.
    """

    def __init__(self) -> None:
        self._pages: mmap.mmap | None = None

    def hold(self, fd: int, size_bytes: int) -> bool:
        """Lock that much of a file instead of what was locked before, reading it where the cache has lost it.

        False where that is not allowed (RLIMIT_MEMLOCK), or there is no such file.
        """
        self.release()
        if fd < 0:
            return False
        try:
            flags = mmap.MAP_SHARED | _MAP_LOCKED
            self._pages = mmap.mmap(fd, size_bytes, flags=flags, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            return False
        return True

    def release(self) -> None:
        """The cache may lose them again."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None
