"""Unmounting a mount that nobody uses.

Use is any request but those that say nothing about a person: the kernel dropping its caches, and
questions about free space, which desktops and `pixstorefs status` ask of every mount. An open file is use.
Who stands in the mount is the kernel's to know: it refuses to unmount then, but only for this mount
namespace. Copies of the mount in others (containers), and bind mounts, live on and are served.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, cast

import pyfuse3
import trio

from pixstorefs.daemon import mounts

log = logging.getLogger(__name__)

_NOT_USE = frozenset(("forget", "statfs"))

# A program that leaves the mount without having closed anything (a shell that changes its directory)
# makes no request, so a mount that was busy is tried again.
_RETRY_S = 60.0
# After unmounting: the kernel tells the event loop in that time, unless the mount lives on elsewhere.
_LOOP_END_TIMEOUT_S = 5.0


class IdleWatch:
    """When a mount was last used, and its end when that is `limit_s` ago. `is_open`: whether any file is."""

    def __init__(self, limit_s: float, is_open: Callable[[], bool]) -> None:
        self._limit_s = limit_s
        self._is_open = is_open
        self._last_use_s = time.monotonic()

    def watching(self, operations: pyfuse3.Operations) -> pyfuse3.Operations:
        """The same handlers, each call of which counts as use."""
        # Not a subclass: pyfuse3 only ever takes attributes of what it is given, and taking one is all
        # that has to be noticed, for a request of any kind.
        return cast(pyfuse3.Operations, _Watched(operations, self))

    def note_use(self) -> None:
        self._last_use_s = time.monotonic()

    async def end_when_idle(self, mountpoint: str) -> bool:
        """Return when nobody has used the mount, or it cannot be unmounted; whether its loop is to end.

        The rule is that unmounting ends the loop, which cancels this. Where a copy of the mount lives on, the
        loop goes on until nobody has used that for the same time either: to end it at once would take from
        a container what it is writing.
        """
        await self._idle()
        if not await self._unmount(mountpoint):
            return False
        await trio.sleep(_LOOP_END_TIMEOUT_S)
        log.info("%s lives on in another mount namespace or a bind mount, and is served there", mountpoint)
        self.note_use()
        await self._idle()
        log.info("nobody used that for %g s either", self._limit_s)
        return True

    async def _idle(self) -> None:
        """Return when the time is over in which nobody used the mount and nothing is open."""
        while True:
            idle_s = time.monotonic() - self._last_use_s
            if idle_s < self._limit_s:
                await trio.sleep(self._limit_s - idle_s)
            elif self._is_open():
                await trio.sleep(min(self._limit_s, _RETRY_S))
            else:
                return

    async def _unmount(self, mountpoint: str) -> bool:
        """Unmount as soon as nobody is in the way; False where that cannot be done at all."""
        while True:
            try:
                await trio.to_thread.run_sync(mounts.unmount, mountpoint, abandon_on_cancel=True)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    log.warning("%s stays mounted although it is idle: %s", mountpoint, error.strerror)
                    return False
                await trio.sleep(min(self._limit_s, _RETRY_S))
                await self._idle()
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
