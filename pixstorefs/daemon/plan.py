"""What to mount where: the one thing the command line hands to `serve`."""

from dataclasses import dataclass

# Longer than a program takes between two calls (10 to 60 us for cp and rsync), short beside a time slice.
DEFAULT_BUSY_POLL_S = 100e-6


@dataclass(frozen=True, slots=True)
class MountPlan:
    """Both paths are real and absolute: the process that serves changes its directory.

    `durable_close`: close(2) returns when what it saved survives power loss.
    `busy_poll_s`: how long the daemon polls for the next request before it sleeps; 0 for not at all.
    `flags` are mount options passed on to libfuse as they are (noexec, dev, ...).
    """

    store_path: str
    mountpoint: str
    read_only: bool = False
    allow_other: bool = False
    durable_close: bool = False
    busy_poll_s: float = DEFAULT_BUSY_POLL_S
    flags: frozenset[str] = frozenset()
