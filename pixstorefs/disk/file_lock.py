"""File locks: flock(2) on a file that is open, which no forked child keeps from the next who wants it.

Such a lock ends with the last copy of its descriptor, and a fork makes one. A child that lives on would keep
a store locked that its parent has closed, or has left by dying. So the child closes its copies right after
the fork, which leaves the parent's lock alone, and the parent unlocks before it closes: for a copy in a child
that did not come from Python. What is executed gets none (O_CLOEXEC).

Rejected: to compare pids when a lock is used. A child that never uses it would keep it all the same.
"""

import contextlib
import fcntl
import os
import weakref


class FileLock:
    """The descriptor of an open file, locked or not, until `close`."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor; it is not locked yet."""
        self.fd = fd
        _open.add(self)

    def take(self) -> bool:
        """Lock the file for us alone, without waiting; whether that was possible. Raises OSError."""
        return self._take(fcntl.LOCK_EX)

    def share(self, *, wait: bool) -> bool:
        """Lock the file together with others who share it. Raises OSError."""
        if not wait:
            return self._take(fcntl.LOCK_SH)
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        return True

    def _take(self, kind: int) -> bool:
        try:
            fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Unlock and close the file. The second time, and in a forked child: nothing."""
        if self.fd >= 0:
            # Where there are no locks (NFS), there is none to end either.
            with contextlib.suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)

    def let_go(self) -> None:
        """In a forked child: close the copy, without unlocking what is the parent's."""
        if self.fd >= 0:
            self._close()


_open: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _let_go_of_all() -> None:
    for lock in list(_open):
        lock.let_go()


os.register_at_fork(after_in_child=_let_go_of_all)
