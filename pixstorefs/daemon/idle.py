"""Unmounting a mount that nobody uses.

Use is any request but those that say nothing about a person: the kernel dropping its caches, and
questions about free space, which desktops and `pixstorefs status` ask of every mount. What is open and
who stands in the mount is the kernel's to know: it refuses to unmount then.
"""

import errno
import logging
import time
from typing import Any, cast

import pyfuse3
import trio

from pixstorefs.daemon import mounts

log = logging.getLogger(__name__)

_NOT_USE = frozenset(("forget", "statfs"))

# A program that leaves the mount without having closed anything (a shell that changes its directory)
# makes no request, so a mount that was busy is tried again.
_RETRY_S = 60.0


class IdleWatch:
    """When a mount was last used, and its end when that is `limit_s` ago."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last_use_s = time.monotonic()

    def watching(self, operations: pyfuse3.Operations) -> pyfuse3.Operations:
        """The same handlers, each call of which counts as use."""
        # Not a subclass: pyfuse3 only ever takes attributes of what it is given, and taking one is all
        # that has to be noticed, for a request of any kind.
        return cast(pyfuse3.Operations, _Watched(operations, self))

    def note_use(self) -> None:
        self._last_use_s = time.monotonic()

    async def unmount_when_idle(self, mountpoint: str) -> bool:
        """Return when the mount has been unmounted for lack of use, or cannot be; whether it has been.

        The event loop then ends by itself, unless a copy of the mount lives on in another mount namespace.
        """
        while True:
            idle_s = time.monotonic() - self._last_use_s
            if idle_s < self._limit_s:
                await trio.sleep(self._limit_s - idle_s)
                continue
            try:
                await trio.to_thread.run_sync(mounts.unmount, mountpoint, abandon_on_cancel=True)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    log.warning("%s stays mounted although it is idle: %s", mountpoint, error.strerror)
                    return False
                await trio.sleep(min(self._limit_s, _RETRY_S))
            except trio.Cancelled:
                # The rule: the kernel tells the loop, which ends, before the thread can tell us.
                self._tell(mountpoint)
                raise
            else:
                self._tell(mountpoint)
                return True

    def _tell(self, mountpoint: str) -> None:
        log.info("%s was not used for %g s: unmounted", mountpoint, self._limit_s)


class _Watched:
    def __init__(self, operations: pyfuse3.Operations, watch: IdleWatch) -> None:
        self._operations = operations
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        if name not in _NOT_USE:
            self._watch.note_use()
        return getattr(self._operations, name)
