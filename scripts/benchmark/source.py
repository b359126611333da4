"""What is stored: incompressible files from a fixed seed, at the sizes of photos."""

import os
import random
import shutil
from dataclasses import dataclass

from . import process

SHARED_MEMORY = "/dev/shm"
SMALL_BYTES, LARGE_BYTES, HEADER_BYTES = 100_000, 5_000_000, 64 * 1024
SEED = "pixstorefs benchmark"


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the full sizes times a factor."""

    factor: float = 1.0

    def scaled(self, count: int, least: int = 1) -> int:
        return max(least, round(count * self.factor))

    @property
    def small(self) -> int:
        return self.scaled(2000, 8)

    @property
    def large(self) -> int:
        return self.scaled(200, 2)

    @property
    def folders(self) -> int:
        return self.scaled(50)

    @property
    def files_a_folder(self) -> int:
        return 200

    @property
    def synced(self) -> int:
        return self.scaled(200, 4)

    @property
    def small_writes_bytes(self) -> int:
        return self.scaled(64) << 20

    @property
    def huge_bytes(self) -> int:
        return self.scaled(1024) << 20

    @property
    def source_bytes(self) -> int:
        return self.small * SMALL_BYTES + self.large * LARGE_BYTES

    @property
    def system_bytes(self) -> int:
        """The most that lies in one system at a time: both sets, a second copy of one, a huge file."""
        tree = self.folders * self.files_a_folder * 8192
        return 2 * self.source_bytes + self.huge_bytes + self.small_writes_bytes + tree

    def words(self) -> dict[str, str]:
        """The sizes for the titles of the rows."""
        return {
            "small": f"{self.small:,} x 100 KB",
            "large": f"{self.large:,} x 5 MB",
            "tree": f"{self.folders * self.files_a_folder:,} files",
            "synced": f"{self.synced:,} x 100 KB",
            "both": f"{self.small + self.large:,} files",
            "writes": f"{self.small_writes_bytes >> 20} MiB",
            "huge": f"{self.huge_bytes >> 20:,} MiB",
        }


class Source:
    """The files to copy from, in memory if there is room, and read before use in any case."""

    def __init__(self, workdir: str, sizes: Sizes) -> None:
        self.sizes = sizes
        base = SHARED_MEMORY if _fits_in_memory(sizes.source_bytes) else workdir
        self.path = os.path.join(base, f"pixstorefs-bench-source-{os.getpid()}")

    @property
    def in_memory(self) -> bool:
        return self.path.startswith(SHARED_MEMORY)

    def set_path(self, name: str) -> str:
        return os.path.join(self.path, name)

    def set_bytes(self, name: str) -> int:
        sizes = self.sizes
        return sizes.small * SMALL_BYTES if name == "small" else sizes.large * LARGE_BYTES

    def create(self) -> None:
        counts = {"small": (self.sizes.small, SMALL_BYTES), "large": (self.sizes.large, LARGE_BYTES)}
        for name, (count, size) in counts.items():
            os.makedirs(self.set_path(name))
            for index in range(count):
                data = random.Random(f"{SEED} {name} {index}").randbytes(size)
                with open(os.path.join(self.set_path(name), f"image-{index:05}.jpg"), "wb") as file:
                    file.write(data)

    def warm(self, name: str) -> None:
        """Bring a set into the page cache, for the case that it lies on disk and a cold row came before."""
        if self.in_memory:
            return
        buffer = bytearray(1 << 20)
        for entry in os.scandir(self.set_path(name)):
            with open(entry.path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _fits_in_memory(size: int) -> bool:
    try:
        space = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize > size * 1.2 and process.available_memory() > size * 6
