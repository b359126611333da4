"""Files that somebody opens with O_DIRECT, and pages of them that the kernel caches.

Before an asynchronous write past its cache (io_submit, io_uring) the kernel drops the pages, and not again
after it. What others read meanwhile stays in the cache with the bytes of before, for good, as every open lets
the kernel keep what it has. So an open must not while such writes are possible, and the first one after them.
A file that was open for reading all the time keeps such a page until somebody opens it anew. Rejected: to
drop the pages in each write. That is a wait for a thread, which may wait for requests of ours.
"""


class DirectHandles:
    """Handles opened with O_DIRECT, by inode number, until the kernel has dropped its pages after them."""

    def __init__(self) -> None:
        # None left in a set: all are closed, and no open has dropped the pages yet.
        self._handles: dict[int, set[int]] = {}

    def note_open(self, ino: int, handle: int) -> None:
        """A handle was opened for writing with O_DIRECT."""
        self._handles.setdefault(ino, set()).add(handle)

    def note_release(self, ino: int, handle: int) -> None:
        """A handle of any kind was closed; its writes are done."""
        if ino in self._handles:
            self._handles[ino].discard(handle)

    def forget(self, ino: int) -> None:
        """The kernel has let go of an inode, and so of its pages."""
        self._handles.pop(ino, None)

    def may_keep_pages(self, ino: int) -> bool:
        """Whether the kernel may keep the pages of a file that is being opened. If not it drops them now."""
        handles = self._handles.get(ino)
        if handles is None:
            return True
        if not handles:
            del self._handles[ino]
        return False
