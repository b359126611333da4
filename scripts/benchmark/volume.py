"""Where the stores lie: a file system of the run's own for each system, made anew for each repetition.

Stores that share a file system meet in it. ext4 without a journal passes over inodes that were deleted within
the last minutes, so what one system deletes slows what the next one creates in the same block group; a sync
waits for everybody's dirty pages; the allocator remembers what an earlier repetition left. A loop device with
a fresh ext4 has none of that, and its counters tell what reached the disk.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from . import process

# The journal and the tables are written now, not by a kernel thread in the middle of somebody's row.
MKFS = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")
LEAST_BYTES = 256 << 20
BYTES_PER_INODE = 8192  # half of the smallest blocks that a peer keeps in files of their own
FLUSHES_FIELD = 15  # of /sys/block/*/stat: flush requests completed
UNMOUNT_SECONDS = 10


class VolumeError(Exception):
    """A file system for the stores could not be made."""


class Directory:
    """Without root: a directory of the file system below, empty at the start of each repetition."""

    def __init__(self, path: str) -> None:
        self.path = path

    def renew(self) -> None:
        """Make it, empty. Raises VolumeError."""
        os.makedirs(self.path)

    def discard(self) -> None:
        """Delete what lies in it; never reach through a mount that is still there."""
        if not process.mounts_below(self.path):
            shutil.rmtree(self.path, ignore_errors=True)

    def flushes(self) -> int | None:
        """How often the disk was told to flush its cache so far; None where nobody counts."""
        return None


class LoopVolume(Directory):
    """An ext4 of its own, with a journal as `mkfs.ext4` makes it, on a loop device over a sparse file."""

    def __init__(self, path: str, size_bytes: int, bytes_per_inode: int = BYTES_PER_INODE) -> None:
        super().__init__(path)
        self.size_bytes = max(size_bytes, LEAST_BYTES)
        self.bytes_per_inode = bytes_per_inode
        self.image = f"{path}.image"
        self._device = ""

    def renew(self) -> None:
        super().renew()
        with open(self.image, "ab") as file:  # blocks of an earlier repetition are used again
            file.truncate(self.size_bytes)
        _run(*MKFS, "-i", str(self.bytes_per_inode), self.image)
        # With direct I/O nothing lies in the page cache twice, so that dropping the caches makes it cold.
        self._device = _run("losetup", "--find", "--show", "--direct-io=on", self.image)
        try:
            _run("mount", "-t", "ext4", self._device, self.path)
        finally:
            _run("losetup", "--detach", self._device)  # the kernel does so when it is unmounted
        os.rmdir(os.path.join(self.path, "lost+found"))

    def discard(self) -> None:
        def unmounted() -> bool:
            if self.path not in process.mount_points():
                return True
            subprocess.run(["umount", self.path], capture_output=True, check=False)
            return self.path not in process.mount_points()

        if not process.wait_until(unmounted, UNMOUNT_SECONDS, step=0.2) and not process.mounts_below(
            self.path
        ):
            # An interrupt may have left a descriptor open in this very process: its end frees the device.
            subprocess.run(["umount", "--lazy", self.path], capture_output=True, check=False)
        if self.path not in process.mount_points():
            super().discard()

    def flushes(self) -> int | None:
        counters = f"/sys/block/{os.path.basename(self._device)}/stat"
        with contextlib.suppress(OSError, IndexError), open(counters, encoding="ascii") as file:
            return int(file.read().split()[FLUSHES_FIELD])
        return None


def can_loop() -> bool:
    """Whether file systems of our own can be made here."""
    return os.geteuid() == 0 and os.path.exists("/dev/loop-control") and bool(shutil.which("mkfs.ext4"))


def volume_at(path: str, size_bytes: int, own_file_system: bool, **options: int) -> Directory:
    """What a store of at most `size_bytes` lies on."""
    return LoopVolume(path, size_bytes, **options) if own_file_system else Directory(path)


@contextlib.contextmanager
def lent(volume: Directory) -> Iterator[Directory]:
    """A volume that is made anew now and discarded at the end."""
    volume.renew()
    try:
        yield volume
    finally:
        volume.discard()


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise VolumeError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise VolumeError(f"{command[0]}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()
