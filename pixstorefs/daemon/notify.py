"""Telling a service manager how the mount fares: the protocol of sd_notify(3), without its library.

It is one datagram of `NAME=value` lines to the socket that the variable NOTIFY_SOCKET names; the manager
(systemd, for one) holds back whatever depends on the mount until it has read READY=1.
"""

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

_VARIABLE = "NOTIFY_SOCKET"


def take_address(environ: MutableMapping[str, str]) -> str | None:
    """The manager's socket, or None; it is taken out, for programs we start must not speak for us."""
    return environ.pop(_VARIABLE, None) or None


class ServiceManager:
    """The other end. With no address nobody waits, and everything said is dropped."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def ready(self, notes: list[str]) -> None:
        """The mount answers; `notes` are what its recovery decided."""
        self._tell("READY=1", "STATUS=" + "; ".join(["mounted", *notes]))

    def ending(self) -> None:
        """The mount is over, and what is left is being saved."""
        self._tell("STOPPING=1", "STATUS=unmounted, saving")

    def _tell(self, *assignments: str) -> None:
        if self._address is None:
            return
        # "@" stands for the zero byte of Linux' abstract sockets, which have no file.
        address = b"\0" + os.fsencode(self._address[1:]) if self._address[0] == "@" else self._address
        message = "\n".join(line.replace("\n", " ") for line in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.sendto(os.fsencode(message), address)
        except OSError as error:
            # The mount is good all the same; the line explains why the manager may end it.
            log.warning("the service manager at %s was not told %s: %s", self._address, assignments[0], error)
