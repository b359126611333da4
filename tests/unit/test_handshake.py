"""The first exchange with the kernel: what we add to libfuse's answer, and that it gets the device back."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from pixstorefs.fuse.handshake import Handshake

_DONT_MASK = 1 << 6
_KILLPRIV_V2 = 1 << 28
_LIBFUSE_WANTS = 1 << 16


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end and ours, in place of /dev/fuse: it, too, hands out one request a read."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        yield kernel, device


def _offer(flags: int) -> bytes:
    body = struct.pack("=IIII", 7, 45, 131072, flags) + bytes(48)
    return struct.pack("=IIQQIIIHH", 40 + len(body), 26, 2, 0, 0, 0, 0, 0, 0) + body


def _answer(error: int = 0) -> bytes:
    body = struct.pack("=IIII", 7, 38, 131072, _LIBFUSE_WANTS) + bytes(48)
    return struct.pack("=IiQ", 16 + len(body), error, 2) + (b"" if error else body)


@pytest.mark.parametrize(
    ("offered", "told"),
    [(_KILLPRIV_V2 | _DONT_MASK | 1, _KILLPRIV_V2 | _DONT_MASK), (_DONT_MASK, _DONT_MASK), (1, 0)],
)
def test_what_the_kernel_offers_is_taken(
    sockets: tuple[socket.socket, socket.socket], offered: int, told: int
) -> None:
    """The flag is set where the kernel knows it, and nothing else of the exchange changes."""
    kernel, device = sockets
    kernel.send(_offer(offered))
    handshake = Handshake(device.fileno())
    assert os.read(device.fileno(), 65536) == _offer(offered)
    os.write(device.fileno(), _answer())

    handshake.finish()

    got = kernel.recv(65536)
    assert struct.unpack_from("=I", got, 28)[0] == _LIBFUSE_WANTS | told
    assert got[:28] + got[32:] == _answer()[:28] + _answer()[32:]
    kernel.send(b"the next request")
    assert os.read(device.fileno(), 65536) == b"the next request"


def test_a_refusal_is_handed_on(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Where libfuse answers with an error, the kernel gets it as it is."""
    kernel, device = sockets
    kernel.send(_offer(_KILLPRIV_V2))
    handshake = Handshake(device.fileno())
    os.write(device.fileno(), _answer(-71))

    handshake.finish()

    assert kernel.recv(65536) == _answer(-71)
