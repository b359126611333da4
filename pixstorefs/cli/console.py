"""What the command line says, and where: results on stdout, everything about the run on stderr.

On a terminal through rich, in colour. Elsewhere as plain text and one line a message, so that a log
or a script gets what was said; rich, which would wrap it, is then not even imported. Each line is made
printable here, because names and paths in it were chosen by others.
"""

import io
import os
import sys
from collections.abc import Sequence

from pixstorefs.errors import OutputFailed
from pixstorefs.printable import printable

_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells count


def open_standard_descriptors() -> None:
    """Fill closed descriptors 0 to 2, or the next file we open becomes somebody's standard output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Python has no stream at all for what was closed when it started.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    # Python's stderr does so by itself: what the locale has no letters for is shown by its escape.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flushed(status: int) -> int:
    """Write out what is buffered; the exit status of a command that ends with `status`.

    Where that fails nothing is left for Python to try again at its end: it would say so in its own words, and
    end with 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 1
    return status


def result(*lines: str) -> None:
    """Lines on stdout: what the command was asked for. Raises OutputFailed."""
    try:
        print(*map(printable, lines), sep="\n", flush=True)  # noqa: T201
    except BrokenPipeError:
        # Whoever reads has enough (`| head -1`), and wants no complaint.
        sys.exit(flushed(_EXIT_BROKEN_PIPE))
    except OSError as problem:
        raise OutputFailed(f"what was asked for cannot be written: {problem.strerror}") from None


def error(*lines: str) -> None:
    """Why the command ends without having done its work."""
    _say(lines, "red")


def note(message: str) -> None:
    """What a person should know although all went well: a new keyfile, a recovery."""
    _say((message,), "yellow")


def plain(*lines: str) -> None:
    """Lines on stderr without name and colour."""
    print(*map(printable, lines), sep="\n", file=sys.stderr)  # noqa: T201


def traceback(problem: BaseException) -> None:
    """The whole story, for --debug."""
    import traceback as tracebacks

    for line in "".join(tracebacks.format_exception(problem)).splitlines():
        plain(line)


def unexpected(problem: Exception, *, debug: bool) -> int:
    """Tell of an error that is our fault: one line, the traceback into the log; returns the exit status."""
    from pixstorefs.daemon import logs
    from pixstorefs.daemon.process import EXIT_UNEXPECTED, StartFailed

    if debug:
        traceback(problem)
    if isinstance(problem, StartFailed):
        error(f"{problem}. This should not happen; the log has the details: {problem.log_path}")
        return EXIT_UNEXPECTED
    what = f"{type(problem).__name__}: {problem}"
    path = logs.record_failure("a command broke", problem)
    where = f"the log has the details: {path}" if path else "--debug shows the details"
    error(f"{what}. This should not happen; {where}")
    return EXIT_UNEXPECTED


def _say(lines: Sequence[str], colour: str) -> None:
    message = "\n".join(map(printable, lines))
    if not sys.stderr.isatty():
        print(f"pixstorefs: {message}", file=sys.stderr)  # noqa: T201
        return
    from rich.console import Console
    from rich.text import Text

    text = Text("pixstorefs: ", style=f"bold {colour}").append(message, style=colour)
    # soft_wrap leaves the breaking of lines to the terminal, so that paths can be copied in one piece.
    Console(stderr=True).print(text, soft_wrap=True)
