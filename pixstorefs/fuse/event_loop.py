"""How the mount waits for requests: it polls for a moment before it sleeps, and gives way where others wait.

pyfuse3 asks trio before every request. That costs two rounds of the scheduler, and a sleep where nothing has
come yet, from which a processor takes longer to wake than we take to answer (a round trip: 61 us, without the
rounds 51, without the sleep 23, measured). pyfuse3 looks its trio up in a module global, so that its asyncio
support can put another one there; by the same door comes ours, which goes to the scheduler only where there
is a reason to. Rejected: an Instrument of trio that polls before it sleeps: it does not save the rounds.
"""

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

P = ParamSpec("P")
R = TypeVar("R")

# However many requests come, every other task has its turn after that long.
_TURN_S = 1e-3
_IDLE_WORK_KEPT = 8


class Turns:
    """Who needs the event loop besides the worker that waits for requests; it polls while nobody does."""

    def __init__(self) -> None:
        self.awaited = 0
        self._idle_work: deque[Callable[[], None]] = deque(maxlen=_IDLE_WORK_KEPT)

    def when_idle(self, work: Callable[[], None]) -> None:
        """Do something, short and without errors, when no request waits, that is: while the client works.

        It may never come to it: what was asked for long ago and not done is forgotten.
        """
        self._idle_work.append(work)

    def do_idle_work(self) -> bool:
        """Do what was asked for last; whether there was anything."""
        if not self._idle_work:
            return False
        self._idle_work.pop()()
        return True

    @contextmanager
    def needed(self) -> Iterator[None]:
        """The caller gives way in here, and is to have the loop back as soon as it can go on."""
        self.awaited += 1
        try:
            yield
        finally:
            self.awaited -= 1

    async def in_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do in a thread what waits for the disk, or for the kernel."""
        with self.needed():
            return await trio.to_thread.run_sync(lambda: work(*args, **kwargs))


def poll_for_requests(turns: Turns, busy_poll_s: float, after_first: Callable[[], None]) -> None:
    """Have pyfuse3 wait for requests through us; `busy_poll_s`: how long it polls, 0 for not at all.

    `after_first` is called when the first request, the kernel's offer, has been answered.
    """
    setattr(pyfuse3, "trio", _Trio(turns, busy_poll_s, after_first))  # noqa: B010  its stubs do not tell of the door


class _ReadLock:
    """One worker of pyfuse3 waits for the next request, the others here. Unlike trio's it is free of charge.

    Whoever lets go wakes another worker, which runs when this one gives way: either it waits for something
    else, and the other one reads on; or it has the lock again, and the other one goes back to sleep.
    """

    def __init__(self) -> None:
        self._held = False
        self._waking = False
        self._others = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._others.park()
            self._waking = False
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        if not self._waking and self._others:
            self._waking = True
            self._others.unpark()


class _Lowlevel:
    """What pyfuse3 uses of `trio.lowlevel`, with a `wait_readable` of our own."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self, turns: Turns, busy_poll_s: float, after_first: Callable[[], None]) -> None:
        self._turns = turns
        self._busy_poll_s = busy_poll_s
        self._turn_ends_s = 0.0
        self._comes_soon = True
        self._after_first: Callable[[], None] | None = after_first
        self._first_came = False
        self._poll = select.poll()
        self._registered = -1

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read."""
        if self._after_first is not None and self._first_came:
            self._after_first()
            self._after_first = None
        self._first_came = True
        if fd != self._registered:
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        began_s = time.perf_counter()
        if began_s > self._turn_ends_s:
            await trio.lowlevel.checkpoint()
            began_s = time.perf_counter()
            self._turn_ends_s = began_s + _TURN_S
        if not self._poll_until_readable(began_s):
            await trio.lowlevel.wait_readable(fd)
            woke_s = time.perf_counter()
            self._turn_ends_s = woke_s + _TURN_S
            self._comes_soon = woke_s - began_s < self._busy_poll_s

    def _poll_until_readable(self, began_s: float) -> bool:
        readable = self._poll.poll
        if readable(0):
            return True
        while self._turns.do_idle_work():
            if readable(0):
                return True
        # Where the last request took longer to come, so will the next: a program sends megabytes at a time.
        if self._turns.awaited or not self._comes_soon:
            return False
        deadline_s = began_s + self._busy_poll_s
        while time.perf_counter() < deadline_s:
            # The client may be waiting for this very processor.
            os.sched_yield()
            if readable(0):
                return True
        return False


class _Trio:
    """What pyfuse3 uses of trio."""

    Lock = _ReadLock
    ClosedResourceError = trio.ClosedResourceError
    open_nursery: Any = staticmethod(trio.open_nursery)

    def __init__(self, turns: Turns, busy_poll_s: float, after_first: Callable[[], None]) -> None:
        self.lowlevel = _Lowlevel(turns, busy_poll_s, after_first)
