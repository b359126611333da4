"""One machine that shares a store with others: a process with a network mount and an identity of its own.

Run as `unshare --mount --uts python sharing_machine.py HOSTNAME EXPORT FOLDER SHELL`. It reads a command a
line, in JSON, and answers each with a line: {"ok": ...} or {"error": class, "message": ...}.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pixstorefs
from pixstorefs.api import ImageStore
from pixstorefs.daemon import mounts
from pixstorefs.disk import owner_note
from pixstorefs.errors import PixstoreError


def image(name: str) -> bytes:
    """The content of the image of this name (six characters), which tells the name."""
    return b"\xff\xd8\xff" + name.encode() * (1 + sum(name.encode()) * 7 % 9000)


def name_of(content: bytes) -> str:
    """The name of the image that has this content. Raises ValueError where it was never saved so."""
    name = content[3:9].decode()
    if content != image(name):
        raise ValueError("the content is none that was saved")
    return name


# So long sshfs believes what it knows of a file; by itself it does for 20 s.
_REMEMBERS_S = 2


class Machine:
    """The store as this machine sees it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: ImageStore | None = None

    def open(self, break_lock: bool) -> None:
        """Open the store."""
        keyfile = str(self._folder.parent / "key")
        self._store = pixstorefs.open_store(
            str(self._folder / "store"), keyfile=keyfile, create=False, break_lock=break_lock
        )

    def save(self, name: str) -> None:
        """Save an image."""
        assert self._store is not None
        self._store.save_image(image(name))

    def sync(self) -> None:
        """Make durable what was saved."""
        assert self._store is not None
        self._store.sync()

    def names(self) -> list[str]:
        """All images, each read and compared."""
        assert self._store is not None
        return [name_of(self._store.read_image(record.id)) for record in self._store.images()]

    def close(self) -> None:
        """Give the store free."""
        assert self._store is not None
        self._store.close()


def _forget_mounts() -> None:
    """Let go of the copies of other mounts that this namespace got: they would live on in it."""
    for entry in mounts.mounted():
        if entry.is_ours:
            subprocess.run(["umount", "-l", entry.mountpoint], check=False, stderr=subprocess.DEVNULL)


def _become(hostname: str, folder: Path) -> None:
    socket.sethostname(hostname)
    for number, place in enumerate(("/etc/machine-id", "/proc/sys/kernel/random/boot_id")):
        own = folder.parent / f"{hostname}-{number}"
        own.write_text(f"{hostname}-{number}\n")
        subprocess.run(["mount", "--bind", own, place], check=True)


def main(hostname: str, export: str, folder: Path, shell: str) -> None:
    """Answer until the input ends."""
    # In proportion to each other as they are; a round of minutes would find nothing more.
    owner_note.HEARTBEAT_S /= 10
    owner_note.LOOK_AGAIN_S /= 5
    owner_note.BREAK_WAIT_S /= 5
    owner_note._CACHED_S = 1.5 * _REMEMBERS_S
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    _forget_mounts()
    _become(hostname, folder)
    folder.mkdir()
    options = f"dcache_timeout={_REMEMBERS_S},ssh_command={shell}"
    subprocess.run(["sshfs", "-o", options, f"nas:{export}", folder], check=True)
    machine = Machine(folder)
    print(json.dumps({"ok": os.getpid()}), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"ok": getattr(machine, name)(*arguments)}
        except (PixstoreError, OSError, ValueError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)
    # Whatever is left in memory dies with the machine: this is its end, not that of the program.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
