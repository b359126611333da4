"""Logs: a private, size-capped file for a background mount, stderr in the foreground.

A record is one line, "time LEVEL message", whatever is in the message: file names are chosen by
others, and a newline in one must not be able to forge a record.
"""

import errno
import hashlib
import io
import logging
import logging.handlers
import os
import sys
from typing import IO

import platformdirs

from pixstorefs.printable import printable

_MAX_BYTES = 1 << 20  # a file; three files at most, so a mount never logs more than 3 MiB
_OLD_FILES = 2
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_PRIVATE = 0o600


def directory() -> str:
    """Where the logs of this user are."""
    return platformdirs.user_state_dir("pixstorefs", appauthor=False)


def path_for(mountpoint: str) -> str:
    """The log of the mount on this directory: its name for people, a digest because names repeat."""
    real = os.path.realpath(mountpoint)
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:8]
    return os.path.join(directory(), f"{os.path.basename(real) or 'root'}-{digest}.log")


def to_stderr(*, debug: bool = False) -> None:
    """Log to the terminal, or to whoever started the foreground mount."""
    _install(logging.StreamHandler(sys.stderr), debug=debug)


def to_file(path: str, *, debug: bool = False) -> None:
    """Log to this file, and point descriptor 2 at it: C libraries and the interpreter write there."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    _install(_LogFile(path), debug=debug)


def record_failure(message: str, error: BaseException) -> str | None:
    """Keep the traceback of a command that broke; returns the file, or None where none can be written."""
    path = os.path.join(directory(), "commands.log")
    try:
        os.makedirs(directory(), mode=0o700, exist_ok=True)
        handler = _LogFile(path, capture_stderr=False)
    except OSError:
        return None
    handler.setFormatter(_OneLine(_FORMAT))
    failure = (type(error), error, error.__traceback__)
    handler.handle(logging.LogRecord("pixstorefs", logging.ERROR, "", 0, message, None, failure))
    handler.close()
    return path


def _install(handler: logging.Handler, *, debug: bool) -> None:
    # A log that cannot be written (its disk is full) must not print tracebacks or stop the mount.
    logging.raiseExceptions = False
    handler.setFormatter(_OneLine(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    # Its debug level logs every request, with names; that is never wanted in a file that stays.
    pyfuse3_log = logging.getLogger("pyfuse3")
    pyfuse3_log.setLevel(logging.INFO)
    pyfuse3_log.addFilter(_is_not_about_an_abandoned_request)
    logging.captureWarnings(True)


def _is_not_about_an_abandoned_request(record: logging.LogRecord) -> bool:
    """ENOENT for an answer: nobody waits for it any more, and nothing went wrong.

    So end the last requests of a mount that was unmounted lazily. libfuse says nothing then, pyfuse3 does.
    """
    return not (
        str(record.msg).endswith("fuse_reply_* failed with %s")
        and record.args == (os.strerror(errno.ENOENT),)
    )


class _OneLine(logging.Formatter):
    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        # Tracebacks come with newlines.
        return printable(super().format(record).replace("\n", " | "))


class _LogFile(logging.handlers.RotatingFileHandler):
    def __init__(self, path: str, *, capture_stderr: bool = True) -> None:
        self._capture_stderr = capture_stderr
        super().__init__(
            path, maxBytes=_MAX_BYTES, backupCount=_OLD_FILES, encoding="utf-8", errors="backslashreplace"
        )

    def _open(self) -> io.TextIOWrapper:
        """Open privately from the first moment on; after a rotation descriptor 2 follows the new file."""
        stream: IO[str] = open(  # noqa: SIM115  the handler closes it
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, _PRIVATE),
        )
        if self._capture_stderr:
            os.dup2(stream.fileno(), 2)
        assert isinstance(stream, io.TextIOWrapper)
        return stream
