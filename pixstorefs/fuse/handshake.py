"""The first exchange with the kernel, in which both sides say what they can do, with two things more said.

Before every write(2) the kernel asks for `security.capability`, unless the file system promises to drop that
and the set-user-id bits itself (FUSE_HANDLE_KILLPRIV_V2, since Linux 5.11). We do; libfuse has no word for it
before 3.17, nor has pyfuse3. And the kernel applies the umask itself, even where a default access control
list takes its place, unless it is told that we do (FUSE_DONT_MASK), which pyfuse3 leaves out. So for this one
exchange libfuse talks to a socket in place of /dev/fuse, and what it answers is handed on with both flags set
(4 KiB writes: 22 us without, 2 us with it, measured). Then it has the device back, and we are out of the way.
Rejected: to say that there are no extended attributes.

Structures and numbers: include/uapi/linux/fuse.h.
"""

import os
import socket
import struct

_FUSE_INIT = 26
_FUSE_DONT_MASK = 1 << 6
_FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
_PROMISES = _FUSE_DONT_MASK | _FUSE_HANDLE_KILLPRIV_V2

# struct fuse_in_header up to its opcode; struct fuse_out_header up to its error code.
_REQUEST_HEADER = struct.Struct("=II")
_ANSWER_HEADER = struct.Struct("=Ii")
# In both fuse_init_in and fuse_init_out the flags follow major, minor and max_readahead.
_FLAGS = struct.Struct("=I")
_REQUEST_FLAGS_AT = 40 + 12
_ANSWER_FLAGS_AT = 16 + 12
# Linux refuses to hand a request to a reader whose buffer could not hold the largest write.
_REQUEST_LIMIT_BYTES = (1 << 20) + 4096


class Handshake:
    """Stands between libfuse and the device `fuse_fd` until the first exchange is over."""

    def __init__(self, fuse_fd: int) -> None:
        """Read the kernel's offer and pass it on. Raises OSError."""
        self._fuse_fd = fuse_fd
        self._device = os.dup(fuse_fd)
        self._socket, libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with libfuse:
            offer = os.read(self._device, _REQUEST_LIMIT_BYTES)
            _, opcode = _REQUEST_HEADER.unpack_from(offer)
            assert opcode == _FUSE_INIT, opcode
            self._offered = _FLAGS.unpack_from(offer, _REQUEST_FLAGS_AT)[0]
            self._socket.send(offer)
            os.dup2(libfuse.fileno(), fuse_fd, inheritable=False)

    def finish(self) -> None:
        """libfuse has answered: tell the kernel, and give libfuse the device back. Raises OSError."""
        with self._socket:
            answer = bytearray(self._socket.recv(4096))
        _, error = _ANSWER_HEADER.unpack_from(answer)
        if not error:
            flags = _FLAGS.unpack_from(answer, _ANSWER_FLAGS_AT)[0]
            flags |= self._offered & _PROMISES
            _FLAGS.pack_into(answer, _ANSWER_FLAGS_AT, flags)
        os.dup2(self._device, self._fuse_fd, inheritable=False)
        os.close(self._device)
        os.write(self._fuse_fd, answer)


def fuse_descriptors() -> set[int]:
    """Every descriptor of /dev/fuse that this process has: pyfuse3 does not tell which one is its own."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found
