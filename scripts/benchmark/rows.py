"""The rows of the table: what is measured, one function each. All values are better when lower."""

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass

from . import process
from .site import GB, Site
from .source import HEADER_BYTES, SMALL_BYTES, Sizes

BLOCK = 128 * 1024
PARALLEL = 4


class Kind(enum.Enum):
    """What a row does, for the goals."""

    INGEST = enum.auto()
    READ = enum.auto()
    WRITE = enum.auto()
    SYNC = enum.auto()
    NAMES = enum.auto()
    LIST = enum.auto()
    STAT = enum.auto()
    RESOURCE = enum.auto()

    @property
    def moves_data(self) -> bool:
        return self in (Kind.INGEST, Kind.READ, Kind.WRITE, Kind.SYNC)

    @property
    def changes(self) -> bool:
        """Whether the system may still be at work when the row ends."""
        return self in (Kind.INGEST, Kind.WRITE, Kind.SYNC, Kind.NAMES, Kind.RESOURCE)


@dataclass(frozen=True)
class Row:
    """One row: its function gives one sample, or nothing where the system has no such thing."""

    name: str
    title: str
    kind: Kind
    unit: str
    cold: bool
    measure: Callable[[Site], float | None]

    @property
    def timed(self) -> bool:
        """Whether it counts in means, minima and goals, which are about time."""
        return self.kind is not Kind.RESOURCE

    def title_for(self, sizes: Sizes) -> str:
        return self.title.format(**sizes.words())


ROWS: dict[str, Row] = {}


def row(title: str, kind: Kind, *, unit: str = "s", cold: bool = False):
    """Register a function as a row, in the order of the run."""

    def register(function: Callable[[Site], float | None]) -> Callable[[Site], float | None]:
        name = function.__name__.replace("_", "-")
        ROWS[name] = Row(name, title, kind, unit, cold, function)
        return function

    return register


@row("ingest {small} (cp -r)", Kind.INGEST)
def ingest_small(site: Site) -> float:
    """cp -r of the small set from memory into a new directory; ends when cp ends."""
    return site.ingest("small")


@row("ingest {large} (cp -r)", Kind.INGEST)
def ingest_large(site: Site) -> float:
    """cp -r of the large set from memory into a new directory; ends when cp ends."""
    return site.ingest("large")


@row("read {small}, cold", Kind.READ, cold=True)
def read_small_cold(site: Site) -> float:
    """One process reads the small set, in blocks of 128 KiB, after the kernel's caches were dropped."""
    site.ensure("small")
    return site.clients(("read", BLOCK, site.path("small")), cold=True)


@row("read {small}, warm", Kind.READ)
def read_small_warm(site: Site) -> float:
    """The same again, after one unmeasured pass."""
    site.ensure("small")
    site.clients(("read", BLOCK, site.path("small")))
    return site.clients(("read", BLOCK, site.path("small")))


@row("read {large}, cold", Kind.READ, cold=True)
def read_large_cold(site: Site) -> float:
    """One process reads the large set, in blocks of 128 KiB, after the kernel's caches were dropped."""
    site.ensure("large")
    return site.clients(("read", BLOCK, site.path("large")), cold=True)


@row("read {large}, warm", Kind.READ)
def read_large_warm(site: Site) -> float:
    """The same again, after one unmeasured pass."""
    site.ensure("large")
    site.clients(("read", BLOCK, site.path("large")))
    return site.clients(("read", BLOCK, site.path("large")))


@row("first 64 KiB of {both}, cold", Kind.READ, cold=True)
def read_headers(site: Site) -> float:
    """One process reads the first 64 KiB of each file of both sets, as EXIF readers and thumbnailers do."""
    site.ensure("small", "large")
    return site.clients(("heads", HEADER_BYTES, site.path("small"), site.path("large")), cold=True)


@row("overwrite {small} (cp -r)", Kind.WRITE)
def overwrite_small(site: Site) -> float:
    """cp -r over the small set that is already there: every image gets a new version."""
    site.ensure("small")
    site.source.warm("small")
    return site.command("cp", "-r", site.source.set_path("small") + "/.", site.path("small"))


@row("rename {small}", Kind.NAMES)
def rename_small(site: Site) -> float:
    """One process gives every file of the small set a new name, in its directory."""
    site.ensure("small")
    return site.clients(("rename", site.path("small")))


@row("delete {small} (rm -r)", Kind.NAMES)
def remove_small(site: Site) -> float:
    """rm -r of the small set."""
    site.ensure("small")
    return site.command("rm", "-r", site.path("small"))


@row("rsync -a {small}", Kind.WRITE)
def rsync_small(site: Site) -> float:
    """rsync -a of the small set into a new directory: a temporary name, times and a rename for each file."""
    return _rsync(site, "small")


@row("rsync -a {large}", Kind.WRITE)
def rsync_large(site: Site) -> float:
    """rsync -a of the large set into a new directory."""
    return _rsync(site, "large")


def _rsync(site: Site, name: str) -> float:
    site.source.warm(name)
    try:
        return site.command("rsync", "-a", site.source.set_path(name) + "/", site.path(f"rsync-{name}") + "/")
    finally:
        site.remove(f"rsync-{name}")


@row("4 clients copy and read {small}", Kind.WRITE)
def parallel_clients(site: Site) -> float:
    """Four processes at once: each copies a quarter of the small set into one directory, then reads it."""
    site.source.warm("small")
    folder = site.make("parallel")
    source = site.source.set_path("small")
    took = site.clients(*(("copy-and-read", source, folder, part, PARALLEL) for part in range(PARALLEL)))
    site.remove("parallel")
    return took


@row("write {writes} in 4 KiB writes", Kind.WRITE)
def small_writes(site: Site) -> float:
    """One process writes one file in blocks of 4 KiB and closes it."""
    return _write(site, site.sizes.small_writes_bytes, 4096)


@row("write one {huge} file", Kind.WRITE)
def huge_write(site: Site) -> float:
    """One process writes one file in blocks of 1 MiB and closes it."""
    return _write(site, site.sizes.huge_bytes, 1 << 20)


def _write(site: Site, size: int, block: int) -> float:
    name = f"file-{block}"
    took = site.clients(("write", os.path.join(site.make(name), "file.tif"), size, block))
    if block == 4096:
        site.remove(name)
    return took


@row("read one {huge} file, cold", Kind.READ, cold=True)
def huge_read(site: Site) -> float:
    """One process reads that file in blocks of 1 MiB, after the kernel's caches were dropped."""
    name, size = f"file-{1 << 20}", site.sizes.huge_bytes
    try:
        if not os.path.isdir(site.path(name)):
            _write(site, size, 1 << 20)
        return site.clients(("read", 1 << 20, site.path(name)), cold=True)
    finally:
        site.remove(name)


@row("write, fsync and close {synced}", Kind.SYNC)
def fsync_each(site: Site) -> float:
    """One process writes files one after the other and calls fsync on each before it closes it."""
    folder, count = site.make("synced"), site.sizes.synced
    flushed = site.flushes()
    took = site.clients(("fsync", folder, count, SMALL_BYTES))
    if site.system.keeps_data_in_memory:
        site.doubts.append("it has nothing to sync")
    elif flushed is not None and (flushes := site.flushes() - flushed) < count:
        site.doubts.append(f"{count} calls of fsync made the disk flush {flushes} times: it does not sync")
    site.remove("synced")
    return took


@row("ls -lR {tree}, cold", Kind.LIST, cold=True)
def list_cold(site: Site) -> float:
    """ls -lR of directories of 200 almost empty files each, after the kernel's caches were dropped."""
    site.ensure("tree")
    return site.command("ls", "-lR", site.path("tree"), cold=True)


@row("ls -lR {tree}, warm", Kind.LIST)
def list_warm(site: Site) -> float:
    """The same again, after one unmeasured pass."""
    site.ensure("tree")
    site.command("ls", "-lR", site.path("tree"))
    return site.command("ls", "-lR", site.path("tree"))


@row("find {tree}, cold", Kind.LIST, cold=True)
def find_cold(site: Site) -> float:
    """find over the same tree, after the kernel's caches were dropped."""
    site.ensure("tree")
    return site.command("find", site.path("tree"), cold=True)


@row("find {tree}, warm", Kind.LIST)
def find_warm(site: Site) -> float:
    """The same again, after one unmeasured pass."""
    site.ensure("tree")
    site.command("find", site.path("tree"))
    return site.command("find", site.path("tree"))


@row("stat {tree}, three times", Kind.STAT)
def stat_storm(site: Site) -> float:
    """One process asks for the attributes of every file of the tree, three times over, after a listing."""
    site.ensure("tree")
    site.command("ls", "-lR", site.path("tree"))
    return site.clients(("stat", 3, site.path("tree")))


@row("daemon CPU per GB, ingest of {large}", Kind.RESOURCE, unit="s/GB")
def daemon_cpu_ingest(site: Site) -> float | None:
    """CPU time of the daemon and its children while it took in the large set and settled, a GB."""
    return site.cost_of("large", "cpu")


@row("daemon CPU per GB, cold read of {large}", Kind.RESOURCE, unit="s/GB", cold=True)
def daemon_cpu_read(site: Site) -> float | None:
    """CPU time of the daemon and its children while one process reads the large set cold, a GB."""
    daemon = site.system.daemon_pid()
    if daemon is None:
        return None
    site.ensure("large")
    used = process.cpu_seconds(daemon)
    site.clients(("read", BLOCK, site.path("large")), cold=True)
    return (process.cpu_seconds(daemon) - used) / site.source.set_bytes("large") * GB


@row("bytes on disk per byte, {small}", Kind.RESOURCE, unit="ratio")
def disk_small(site: Site) -> float | None:
    """What the store grew by on disk for each byte of the small set."""
    return site.cost_of("small", "disk")


@row("bytes on disk per byte, {large}", Kind.RESOURCE, unit="ratio")
def disk_large(site: Site) -> float | None:
    """What the store grew by on disk for each byte of the large set."""
    return site.cost_of("large", "disk")


@row("peak memory of the daemon", Kind.RESOURCE, unit="MB")
def peak_memory(site: Site) -> float | None:
    """The largest resident size of the daemon during the repetition's rows (not for systems in memory)."""
    daemon = site.system.daemon_pid()
    if daemon is None or site.system.keeps_data_in_memory:
        return None
    return process.peak_bytes(daemon) / 1e6


RESOURCE_ROWS = ("daemon-cpu-ingest", "disk-small", "disk-large")
