"""File systems of the tests' own, on loop devices, that can fill up, fail, and lose power."""

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support import Mount, cannot_run

# _IOR('X', 125, __u32) with flag 2 (no flush of the journal): XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN. What
# was synced is on the disk afterwards, nothing else is, and every later call fails: what a power cut leaves.
_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2
_UNMOUNT_TIMEOUT_S = 20.0

_EXT4 = ("mkfs.ext4", "-q", "-F", "-E", "lazy_journal_init=0")
_MAKE = {
    "ext4": _EXT4,
    "ext4-1k": (*_EXT4, "-b", "1024"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


class LoopDisk:
    """A file system in a sparse file below `folder`, mounted at `path`.

    In memory nobody waits for the machine's own disk, which shows nothing that this file system does not.
    """

    def __init__(self, folder: Path, kind: str, size_mib: int, *, memory: bool = True) -> None:
        self.path = folder / f"disk-{kind}"
        self._folder = folder
        self._kind = kind
        self._size_mib = size_mib
        self._memory = memory

    @contextlib.contextmanager
    def mounted(self, mount: Mount | None = None) -> Iterator["LoopDisk"]:
        """Make and mount it; without root, loop devices or its mkfs the test cannot run.

        `mount` has its store here: at the end it is ended first.
        """
        if os.geteuid() != 0:
            cannot_run("a file system of the test's own needs root")
        self.path.mkdir()
        # tmpfs needs some room beside the file itself.
        memory = in_memory(self._folder, self._size_mib + 16)
        with memory if self._memory else contextlib.nullcontext(self._folder) as folder:
            self._image = folder / f"{self._kind}.image"
            with open(self._image, "wb") as file:
                file.truncate(self._size_mib << 20)
            self._prepare(*_MAKE[self._kind], self._image)
            self._prepare("mount", "-o", "loop", self._image, self.path)
            try:
                yield self
            finally:
                if mount is not None:
                    mount.close()
                self._unmount()

    def with_quota(self, size_mib: int) -> Path:
        """A folder on a btrfs that takes so much and no more, although the disk has room."""
        folder = self.path / "limited"
        self._prepare("btrfs", "quota", "enable", self.path)
        self._prepare("btrfs", "subvolume", "create", folder)
        self._prepare("btrfs", "qgroup", "limit", f"{size_mib}M", folder)
        return folder

    def cut_power(self) -> None:
        """From now on nothing reaches the disk, and everything on it fails."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(descriptor)

    def refuse_writes(self) -> None:
        """What ext4 does where its disk fails (errors=remount-ro): every write fails, reading goes on."""
        assert self._kind == "ext4"
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", self.path], check=True)
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", self.path], check=True, capture_output=True, text=True
        ).stdout.strip()
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("a failing disk")

    def restart(self) -> None:
        """What a reboot finds: the journal is replayed, the page cache is gone."""
        self._unmount()
        self.remount()

    def remount(self) -> None:
        """Mount it where it was."""
        subprocess.run(["mount", "-o", "loop", self._image, self.path], check=True)

    def _unmount(self) -> None:
        deadline = time.monotonic() + _UNMOUNT_TIMEOUT_S
        while True:
            result = subprocess.run(["umount", self.path], capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return
            assert time.monotonic() < deadline, result.stderr
            time.sleep(0.1)  # a killed daemon still closes its descriptors

    def _prepare(self, *words: object) -> None:
        try:
            result = subprocess.run(
                [str(word) for word in words], capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            cannot_run(f"{error.filename} is missing")
        if result.returncode != 0:
            cannot_run(f"no {self._kind} of our own here: {result.stderr.strip()}")


@contextlib.contextmanager
def in_memory(folder: Path, size_mib: int) -> Iterator[Path]:
    """An empty folder below `folder` on a file system of its own in memory; without root, just a folder."""
    path = folder / "memory"
    path.mkdir()
    if os.geteuid() != 0:
        yield path
        return
    words = ("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs", str(path))
    subprocess.run(words, check=True)
    try:
        yield path
    finally:
        # Lazily: a command that a round had to kill may still be on its way out.
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(directory: Path) -> Path:
    """Take all room that the file system has left; returns the file that has it."""
    filler = directory / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size_bytes in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
    return filler
