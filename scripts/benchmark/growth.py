"""What grows with the number of images: one store is filled further and further, and measured at each size.

Small images, because it is their number that matters. The operations on images go through the Python API,
where a millisecond of FUSE does not hide what the index costs; the mount is measured as a user meets it.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import click
from rich.console import Console

import pixstorefs
from pixstorefs.api import ImageStore
from pixstorefs.errors import PixstoreError
from pixstorefs.keys.secrets import create_keyfile

from . import process
from .runner import can_drop_caches
from .sheet import Sheet, Study, number
from .site import DROP_CACHES
from .systems import MountError, Pixstorefs
from .volume import VolumeError, can_loop, lent, volume_at

IMAGE_BYTES = 1000
IMAGES_A_DIRECTORY = 1000
OPERATIONS = 300
LISTINGS = 5
LEAST_IMAGES = OPERATIONS
REFERENCE = 10_000  # what growth is told against
BYTES_AN_IMAGE = 6 * 1024  # on disk: a block, an inode, a row and its copies
SPARE_BYTES = 1 << 30
CHECK_SECONDS = 4 * 3600
EVERYTHING, NAMES_ONLY = "3", "2"  # for /proc/sys/vm/drop_caches: the second leaves the content of files

Sample = dict[str, float]


@dataclass(frozen=True)
class Quantity:
    name: str
    title: str
    unit: str
    factor: float = 1.0


QUANTITIES = (
    Quantity("save", "save an image (API)", "us", 1e6),
    Quantity("read", "read an image (API)", "us", 1e6),
    Quantity("update", "update an image (API)", "us", 1e6),
    Quantity("delete", "delete an image (API)", "us", 1e6),
    Quantity("fill", "fill, an image, everything included (API)", "us", 1e6),
    Quantity("close", "close after changes", "s"),
    Quantity("mount", "mount, from the command to the answer", "s"),
    Quantity("list", "first ls -l of 1,000 images", "ms", 1e3),
    Quantity("stat", "first stat of a file", "us", 1e6),
    Quantity("lookup", "again, after the kernel forgot it", "us", 1e6),
    Quantity("create", "write a file of 1 KB", "us", 1e6),
    Quantity("unlink", "unlink it", "us", 1e6),
    Quantity("resident", "resident memory of the daemon", "MB", 1e-6),
    Quantity("index", "size of the index", "MB", 1e-6),
    Quantity("index-image", "size of the index by images", "bytes"),
    Quantity("check", "check, an image, cold", "us", 1e6),
)


def measure(workdir: str, counts: list[int]) -> Study:
    """One growing store, measured at each of the counts."""
    _check_space(workdir, counts[-1])
    console = Console(stderr=True)
    place = tempfile.mkdtemp(prefix="pixstorefs-bench-", dir=workdir)
    size_bytes = counts[-1] * BYTES_AN_IMAGE + SPARE_BYTES
    samples: dict[int, Sample] = {}
    notes = []
    try:
        with lent(
            volume_at(os.path.join(place, "growth"), size_bytes, can_loop(), bytes_per_inode=4096)
        ) as volume:
            store = GrowingStore(volume.path)
            for count in counts:
                with console.status(f"{count:,} images"):
                    samples[count] = store.grow_to(count)
                console.print(f"{count:,} images measured", highlight=False)
    except KeyboardInterrupt:
        notes.append("interrupted")
    except (PixstoreError, VolumeError, MountError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        if not process.mounts_below(place):
            shutil.rmtree(place, ignore_errors=True)
    if not samples:
        raise click.ClickException("nothing was measured")
    if not can_drop_caches():
        notes.append("only root can drop caches: nothing was cold")
    data = {"images": {count: samples[count] for count in samples}, "operations": OPERATIONS}
    return Study([sheet(samples)], data, notes, complete=len(samples) == len(counts))


class GrowingStore:
    """A store that is filled through the API, and mounted and checked in between."""

    def __init__(self, path: str) -> None:
        self._system = KeyfilePixstorefs()
        self._system.prepare(path)
        self._ids: list[str] = []
        self._paths: list[str] = []
        self._random = random.Random("pixstorefs growth")

    def grow_to(self, count: int) -> Sample:
        """Fill up to `count` images and measure everything."""
        sample = self._measure_api(count)
        _drop_caches()
        sample |= self._measure_mount()
        index = os.path.getsize(os.path.join(self._system.store, "index.db"))
        sample |= {"index": index, "index-image": index / count}
        _drop_caches()
        return sample | {"check": self._check(count)}

    def _measure_api(self, count: int) -> Sample:
        missing = count - len(self._ids)
        images = pixstorefs.open_store(self._system.store, keyfile=self._system.keyfile)
        try:
            began = time.perf_counter()
            self._fill(images, count)
            sample = {"fill": (time.perf_counter() - began) / missing}
            images.sync()
            sample |= self._operate(images, self._random.sample(self._ids, OPERATIONS))
        finally:
            began = time.perf_counter()
            images.close()
        return sample | {"close": time.perf_counter() - began}

    def _fill(self, images: ImageStore, count: int) -> None:
        for index in range(len(self._ids), count):
            record = images.save_image(self._image(), f"{index // IMAGES_A_DIRECTORY:04}")
            self._ids.append(record.id)
            self._paths.append(record.path)

    def _operate(self, images: ImageStore, chosen: list[str]) -> Sample:
        data = self._image()
        added: list[str] = []
        for image_id in chosen:  # from the disk, once: else the larger store would be the colder one
            images.read_image(image_id)
        return {
            "save": median_seconds(lambda _: added.append(images.save_image(data, "more").id), chosen),
            "read": median_seconds(images.read_image, chosen),
            "update": median_seconds(lambda image_id: images.update_image(image_id, data), chosen),
            "delete": median_seconds(images.delete_image, added),
        }

    def _measure_mount(self) -> Sample:
        root = self._system.mountpoint
        folders = sorted({os.path.dirname(path) for path in self._paths})
        listed = [
            os.path.join(root, path) for path in self._random.sample(folders, min(LISTINGS, len(folders)))
        ]
        named = [os.path.join(root, path) for path in self._random.sample(self._paths, OPERATIONS)]
        folder = os.path.join(root, "written")
        written = [os.path.join(folder, f"{index:04}.jpg") for index in range(OPERATIONS)]
        data = self._image()
        took = {}
        try:
            took["mount"] = self._system.mount_timed()
            subprocess.run(["ls", "--version"], capture_output=True, check=True)
            took["list"] = median_seconds(_list, listed)
            took["stat"] = _stat_unknown(named)
            took["lookup"] = _stat_unknown(named)
            os.mkdir(folder)
            took["create"] = median_seconds(lambda path: _write(path, data), written)
            took["unlink"] = median_seconds(os.unlink, written)
            os.rmdir(folder)
            took["resident"] = process.resident_bytes(self._system.daemon_pid() or 0)
        finally:
            self._system.unmount()
        return took

    def _check(self, count: int) -> float:
        """Seconds an image."""
        command = [sys.executable, "-P", "-m", "pixstorefs", "check", self._system.store, "--json"]
        done = subprocess.run(
            [*command, "--keyfile", self._system.keyfile],
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
        report = json.loads(done.stdout)
        if done.returncode or report["images"] < count:
            raise click.ClickException(
                f"the check of the store failed: {done.stdout[-500:]} {done.stderr[-500:]}"
            )
        return report["seconds"] / count

    def _image(self) -> bytes:
        return b"\xff\xd8\xff" + self._random.randbytes(IMAGE_BYTES - 3)


class KeyfilePixstorefs(Pixstorefs):
    """With a keyfile: the cost of argon2id is paid once a mount, and hides what grows."""

    @property
    def keyfile(self) -> str:
        return os.path.join(self.workdir, "keyfile")

    def create_store(self) -> None:
        super().create_store()
        create_keyfile(self.keyfile)

    def command(self) -> list[str]:
        base = [sys.executable, "-P", "-m", "pixstorefs", "mount", "--create", self.store, self.mountpoint]
        return [*base, "--keyfile", self.keyfile, *self.options]

    def mount_timed(self) -> float:
        """Mount; returns the seconds until the command does, which is when the mount answers."""
        seconds = _seconds(lambda: self.run(self.command()))
        self._remember_daemon(None)
        return seconds


def median_seconds(operation: Callable[[str], object], arguments: Iterable[str]) -> float:
    """The median of what an operation takes, each with one of the arguments."""
    return statistics.median(
        _seconds(lambda argument=argument: operation(argument)) for argument in arguments
    )


def _seconds(operation: Callable[[], object]) -> float:
    began = time.perf_counter()
    operation()
    return time.perf_counter() - began


def _stat_unknown(paths: list[str]) -> float:
    """The median of a stat for which the kernel has to ask: it knows the folders and no file."""
    _drop_caches(NAMES_ONLY)
    for parent in {os.path.dirname(path) for path in paths}:
        os.stat(parent)
    return median_seconds(os.stat, paths)


def _list(path: str) -> None:
    subprocess.run(["ls", "-l", path], capture_output=True, check=True)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def _drop_caches(what: str = EVERYTHING) -> None:
    os.sync()
    if can_drop_caches():
        with open(DROP_CACHES, "w", encoding="ascii") as file:
            file.write(what)


def _check_space(workdir: str, count: int) -> None:
    space = os.statvfs(workdir)
    need, free = count * BYTES_AN_IMAGE + SPARE_BYTES // 2, space.f_bavail * space.f_frsize
    if free < need:
        raise click.ClickException(
            f"{workdir} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} are needed; "
            "see --workdir and --scale-images"
        )


def sheet(samples: dict[int, Sample]) -> Sheet:
    """Quantity by number of images, and each larger number beside the reference."""
    counts = list(samples)
    reference = REFERENCE if REFERENCE in samples else counts[0]
    growth = [f"{count:,} / {reference:,}" for count in counts if count > reference]
    caption = (
        f"Images of {IMAGE_BYTES:,} bytes in directories of {IMAGES_A_DIRECTORY:,}; medians of {OPERATIONS} "
        f"operations, of {LISTINGS} listings; mount, listings, the first stat and check after the caches "
        "were dropped."
    )
    sheet = Sheet(caption, ["", "unit", *(f"{count:,}" for count in counts), *growth], 2)
    for quantity in QUANTITIES:
        values = [samples[count][quantity.name] for count in counts]
        grown = [
            number(samples[count][quantity.name] / samples[reference][quantity.name])
            for count in counts
            if count > reference
        ]
        cells = [number(value * quantity.factor) for value in values]
        sheet.lines.append([quantity.title, quantity.unit, *cells, *grown])
    return sheet
