"""Signals that ask a mount to end.

trio's own signal receiver covers only the time inside `trio.run`. A mount must also not be cut
short while it recovers a store before, or saves drafts after, so the handlers stay for the whole
life of the process and only note the wish.
"""

import logging
import signal
from types import FrameType

import trio

log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Whether somebody asked this process to end, and a way for the event loop to wait for it."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._event: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def requested(self) -> bool:
        return self.name is not None

    def install(self) -> None:
        for number in _ENDING:
            signal.signal(number, self._note)

    async def wait(self) -> None:
        """Return once a signal has come, now or before the event loop ran."""
        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        if not self.requested:
            await self._event.wait()

    def forget_loop(self) -> None:
        """Call when the event loop has ended: later signals are noted and nothing more."""
        self._token = None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if self._token is not None and self._event is not None:
            self._token.run_sync_soon(self._event.set)
