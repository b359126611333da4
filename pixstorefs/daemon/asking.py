"""Questions to file systems that may never answer: a child process asks each, and we wait only for a while.

A FUSE file system answers only while its daemon runs: a stopped one keeps whoever asks waiting. Rejected:

- A thread. The kernel lets nobody go, not even by SIGKILL, whose request the daemon has already taken, and a
  process ends only with its last thread.
- /sys/fs/fuse/connections/N/waiting. It asks nothing of the daemon, but only the user who mounted may read
  it, a container has no such folder, and it is 0 while a stopped daemon has nothing to do.
"""

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from pixstorefs.daemon import linux

K = TypeVar("K")
_Question = Callable[[], Any]

# Far longer than a daemon that is at work holds up a question, and about as long as a person waits.
ANSWER_DEADLINE_S = 5.0


def ask(questions: dict[K, _Question], deadline_s: float = ANSWER_DEADLINE_S) -> dict[K, Any]:
    """Ask all questions at once; returns the answers that come within the time, one deadline for all.

    A question gets absolute paths and gives what JSON can hold. One that fails has no answer.
    Call it while this process has one thread: it forks.
    """
    asked = {key: _Child(question) for key, question in questions.items()}
    deadline_s += time.monotonic()
    return {key: child.answer for key, child in asked.items() if child.wait(deadline_s)}


class _Child:
    """The process that asks one question."""

    def __init__(self, question: _Question) -> None:
        self.answer: Any = None
        self._descriptor, write_end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _answer(question, write_end)
        os.close(write_end)

    def wait(self, deadline_s: float) -> bool:
        """Whether it answered by then, told by time.monotonic. Ends it either way."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        try:
            if poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                return self._take_answer()
            os.kill(self._pid, signal.SIGKILL)
            # It may go on to wait for the daemon all the same; init takes it then. It holds nothing of ours.
            os.waitpid(self._pid, os.WNOHANG)
            return False
        finally:
            os.close(self._descriptor)

    def _take_answer(self) -> bool:
        with os.fdopen(os.dup(self._descriptor), "rb") as pipe:
            content = pipe.read()
        os.waitpid(self._pid, 0)
        if content:
            self.answer = json.loads(content)
        return bool(content)


def _answer(question: _Question, write_end: int) -> NoReturn:
    """The whole life of a child. It keeps no descriptor of ours: a pipe we write to has to end with us."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        linux.close_descriptors(keep=write_end)
        os.chdir("/")
        # An answer that does not fit into a pipe would be written in parts; none comes near its 64 KiB.
        with suppress(OSError, ValueError, MemoryError):
            os.write(write_end, json.dumps(question()).encode())
    finally:
        os._exit(0)
