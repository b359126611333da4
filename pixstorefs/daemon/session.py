"""The FUSE session: its options, its start with the kernel's own words when refused, its last sync."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyfuse3

from pixstorefs.daemon import linux, mounts
from pixstorefs.daemon.plan import MountPlan
from pixstorefs.errors import FuseUnavailable
from pixstorefs.fuse.handshake import Handshake, fuse_descriptors

_READ_AHEAD_KIB = 1024
# How long the kernel may take to hand over pages it has begun to write back.
_DRAIN_TIMEOUT_S = 30.0
_DRAIN_POLL_S = 0.02
# Where the kernel's own counter cannot be read: long enough for a queue of any size we saw in tests.
_DRAIN_BLIND_S = 1.0

log = logging.getLogger(__name__)


class _Option(str):
    """A mount option with any bytes in it.

    pyfuse3 calls `encode("us-ascii")` on its options, which refuses a store under /home/zoë.
    """

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return os.fsencode(str(self))


def options(plan: MountPlan) -> set[str]:
    """The options of the mount."""
    # libfuse splits options at commas and takes backslashes for escapes, also within values.
    source = plan.store_path.replace("\\", "\\\\").replace(",", "\\,")
    chosen = {
        _Option(f"fsname={source}"),
        f"subtype={mounts.SUBTYPE}",
        *plan.flags,
    }
    if plan.kernel_checks:
        # Modes are then its own business, and it asks us nothing. After every change of a directory, though,
        # it gets the directory's attributes anew.
        chosen.add("default_permissions")
    if plan.read_only:
        chosen.add("ro")
    if plan.allow_other:
        chosen.add("allow_other")
    return chosen


def start(operations: pyfuse3.Operations, mountpoint: str, chosen: set[str]) -> Handshake:
    """Mount; returns the exchange that has to be finished when the first request was answered.

    Raises FuseUnavailable with what libfuse or the helper said.
    """
    others = fuse_descriptors()
    with _captured_stderr() as words:
        try:
            pyfuse3.init(operations, mountpoint, chosen)
        except RuntimeError as error:
            reason = words() or str(error)
            raise FuseUnavailable(f"{mountpoint} could not be mounted: {reason}{_advice(reason)}") from error
    (device,) = fuse_descriptors() - others
    return Handshake(device)


def raise_read_ahead(mountpoint: str) -> None:
    """Let the kernel ask for a megabyte ahead, instead of the 128 KiB it starts with. Only root may."""
    entry = mounts.on(mountpoint)
    if entry is None:
        return
    try:
        with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w", encoding="ascii") as setting:
            setting.write(str(_READ_AHEAD_KIB))
    except OSError as error:
        log.debug("read-ahead stays as it is: %s", error)


def write_back(mountpoint: str) -> None:
    """Have the kernel hand over every page it still caches, open files included. Call it off the loop.

    syncfs starts the writes but, on FUSE, does not wait for them; the connection's counter of requests
    under way tells when they are through.
    """
    try:
        linux.syncfs(mountpoint)
    finally:
        # Also after an error: it may be about one file (the disk is full), and the others are on their way.
        _drain(mountpoint)


def _drain(mountpoint: str) -> None:
    entry = mounts.on(mountpoint)
    counter = f"/sys/fs/fuse/connections/{entry.device.partition(':')[2]}/waiting" if entry else ""
    deadline = time.monotonic() + _DRAIN_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with open(counter, encoding="ascii") as file:
                if int(file.read()) == 0:
                    return
        except (OSError, ValueError):
            time.sleep(_DRAIN_BLIND_S)
            return
        time.sleep(_DRAIN_POLL_S)


def _advice(reason: str) -> str:
    if "user_allow_other" in reason:
        return " (one line in /etc/fuse.conf, written by root, allows it)"
    if "not permitted" in reason:
        return " (in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN)"
    return ""


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Collect what C code and child processes print: libfuse tells its reasons nowhere else."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def words() -> str:
            file.seek(0)
            lines = file.read().decode("utf-8", "replace").splitlines()
            return "; ".join(line.strip() for line in lines if line.strip())

        try:
            yield words
        finally:
            os.dup2(saved, 2)
            os.close(saved)
