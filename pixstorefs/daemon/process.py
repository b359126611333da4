"""The background process of a mount: fork, detach, and one message back to the command that started it.

The command returns exactly when the mount answers, or fails with the very error the background process
met: no `sleep 1` in anybody's script. Fork comes before any thread exists; nothing that a fork may not
carry along (SQLite, locks, trio) is opened before it.
"""

import faulthandler
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol

from pixstorefs import errors
from pixstorefs.daemon import linux, logs, notify
from pixstorefs.errors import NoRights, PixstoreError

log = logging.getLogger(__name__)

EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h


class Starter(Protocol):
    """Who started the mount and wants to know how it fares: the waiting command, or a service manager."""

    def ready(self, notes: list[str]) -> None:
        """The mount answers. Called once, with lines for the person who mounted."""

    def ending(self) -> None:
        """The mount is over, and what is left is being saved."""


# Serves until the mount ends; returns the exit status of the process.
Body = Callable[[Starter], int]


class StartFailed(Exception):
    """The background process ended before the mount answered, for a reason that is our fault."""

    def __init__(self, message: str, log_path: str) -> None:
        super().__init__(message)
        self.log_path = log_path


def run_in_background(body: Body, log_path: str, *, debug: bool = False) -> list[str]:
    """Run `body` in a process of its own; returns its notes when the mount answers.

    Raises the PixstoreError the process ended with, or StartFailed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_background(body, _Report(write_end), log_path, debug=debug)
    os.close(write_end)
    return _await_report(pid, read_end, log_path)


def run_in_foreground(body: Body, *, debug: bool = False) -> int:
    """Run `body` in this process, logging to stderr; returns its exit status.

    A service manager that waits for it is told when the mount answers, and when it ends.
    """
    logs.to_stderr(debug=debug)
    _leave_surroundings()
    return body(notify.ServiceManager(notify.take_address(os.environ)))


class _Report:
    """The child's end of the pipe: one JSON object, then closed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor
        # Lines that `ready` tells before those it is given.
        self.first_notes: list[str] = []

    def ready(self, notes: list[str]) -> None:
        self._send({"notes": [*self.first_notes, *notes]})

    def ending(self) -> None:
        pass  # the command has gone

    def fail(self, error: PixstoreError) -> None:
        # A kind of error that only some layers tell from the class it derives from is that class here.
        names = (kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        self._send({"error": next(names), "message": str(error)})

    def break_down(self, error: BaseException) -> None:
        self._send({"unexpected": f"{type(error).__name__}: {error}"})

    def _send(self, message: dict[str, object]) -> None:
        if self.descriptor is None:
            return  # the command has had its answer; the log has the rest
        content = json.dumps(message).encode()
        descriptor, self.descriptor = self.descriptor, None
        try:
            os.write(descriptor, content)
        except BrokenPipeError:
            pass  # the command was killed meanwhile; the mount goes on
        os.close(descriptor)


def _be_background(body: Body, report: _Report, log_path: str, *, debug: bool) -> NoReturn:
    """The whole life of the child. It must never return into the command's own code."""
    status = EXIT_UNEXPECTED
    try:
        _detach(report)
        # A service that runs `pixstorefs mount` as one of its steps speaks for itself.
        notify.take_address(os.environ)
        report.first_notes = _start_log(log_path, debug=debug)
        status = body(report)
    except PixstoreError as error:
        status = error.exit_code
        log.info("not mounted: %s", error)  # the command that waits for us says it loudly
        report.fail(error)
    except PermissionError as error:
        status = NoRights.exit_code
        log.info("not mounted: %s", error)
        report.fail(NoRights.to(error))
    except BaseException as error:
        log.critical("the mount broke: %s", error, exc_info=True)
        report.break_down(error)
    finally:
        logging.shutdown()
        os._exit(status)


def _detach(report: _Report) -> None:
    # One fork is enough: a session leader gets a terminal only by opening one, and we open none.
    os.setsid()
    _leave_surroundings()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    # Whatever the caller left open (locks, pipes someone reads to the end) is not ours to keep.
    assert report.descriptor is not None
    linux.close_descriptors(keep=report.descriptor)


def _leave_surroundings() -> None:
    os.chdir("/")  # keep nobody from unmounting the disk the command was started on
    os.umask(0o077)
    # Every open draft and every image that is read has a descriptor. The soft limit is low (1024) for
    # programs that use select(2), which we do not.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _start_log(log_path: str, *, debug: bool) -> list[str]:
    try:
        logs.to_file(log_path, debug=debug)
    except OSError as error:
        # A mount without a log is better than none, but the person should know.
        return [f"no log is written: {log_path}: {error.strerror}"]
    faulthandler.enable()
    return []


def _await_report(pid: int, read_end: int, log_path: str) -> list[str]:
    try:
        with os.fdopen(read_end, "rb") as pipe:
            content = pipe.read()
    except KeyboardInterrupt:
        # The child is in a session of its own, so Ctrl-C did not reach it.
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if not content:
        _, status = os.waitpid(pid, 0)
        raise StartFailed(f"The mount process ended before it was ready ({_ending(status)})", log_path)
    message = json.loads(content)
    if "notes" in message:
        return list(message["notes"])
    os.waitpid(pid, 0)  # so that the store is free when the command returns
    if "unexpected" in message:
        raise StartFailed(message["unexpected"], log_path)
    error = getattr(errors, message["error"])(message["message"])
    assert isinstance(error, PixstoreError)
    raise error


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit status {os.WEXITSTATUS(status)}"
