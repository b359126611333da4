"""The run: every repetition goes through the rows, and every row through the systems, in ever new order.

A machine's speed drifts over minutes, more on a virtual one. Interleaved like this the drift meets all
systems alike, and nobody always comes first, or always after the one that leaves most behind. Each repetition
starts from fresh stores on fresh file systems, so that none pays for what an earlier one left.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from . import process
from .results import Results
from .rows import RESOURCE_ROWS, Row
from .site import RowError, Site
from .source import Source
from .systems import MountError, System
from .volume import VolumeError, volume_at

Progress = Callable[[str], None]

MOST_DEATHS = 3  # of one system, before the rest of the run goes on without it
VOLUME_SLACK = 1.5  # cryfs needs up to 1.7 bytes a byte of small files, and ext4 its tables


@contextlib.contextmanager
def watched(system: System, seconds: float) -> Iterator[None]:
    """End the daemon of a system that does not answer in time.

    Whoever asks a hanging mount anything waits beyond the reach of signals, this process too. With the daemon
    gone the kernel answers them all, with an error.
    """
    timer = threading.Timer(seconds, system.abandon)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Run:
    """Mounts the systems, measures, and unmounts whatever happens."""

    def __init__(
        self,
        systems: list[System],
        rows: list[Row],
        source: Source,
        workdir: str,
        *,
        own_file_systems: bool,
        timeout: float,
        progress: Progress,
    ) -> None:
        self.systems, self.rows, self.source, self.progress = systems, rows, source, progress
        self.timeout = timeout
        self.results = Results(rows, [system.name for system in systems])
        self._volumes = {
            system.name: volume_at(
                os.path.join(workdir, system.name),
                int(source.sizes.system_bytes * VOLUME_SLACK),
                own_file_systems and not system.keeps_data_in_memory,
            )
            for system in systems
        }
        self._sites: list[Site] = []
        self._deaths: Counter[str] = Counter()
        self._deadly: set[tuple[str, str]] = set()  # row and system: not tried again

    def measure(self, warmups: int, repetitions: int) -> None:
        """The warm-ups are whole repetitions whose samples are thrown away."""
        for number in range(warmups + repetitions):
            counts = number >= warmups
            label = f"repetition {number - warmups + 1}/{repetitions}" if counts else "warm-up"
            began = time.monotonic()
            self._sites = [site for system in self.systems if (site := self._open(system))]
            for row in self.rows:
                self._measure_row(row, f"{number} {row.name}", label, counts)
            self.stop()
            self.progress(f"{label} took {time.monotonic() - began:.0f} s\n")
        self.results.drop_unmeasured()

    def _open(self, system: System) -> Site | None:
        """A fresh store, mounted and used a little; None, with a note, where that fails."""
        if self._deaths[system.name] >= MOST_DEATHS:
            return None
        self.progress(f"mounting {system.name}")
        volume = self._volumes[system.name]
        try:
            volume.renew()
            system.prepare(volume.path)
            with watched(system, self.timeout):
                system.mount()
                site = Site(system, self.source, volume)
                site.watch_resources = any(row.name in RESOURCE_ROWS for row in self.rows)
                site.warm_up()
        except (MountError, VolumeError, RowError, OSError) as error:
            self._died(system, f"cannot be used: {error}")
            self._close(system)
            return None
        if daemon := system.daemon_pid():
            process.reset_peak(daemon)
        if system.name not in self.results.versions:
            self.results.versions[system.name] = system.version()
        return site

    def _measure_row(self, row: Row, seed: str, label: str, counts: bool) -> None:
        order = list(self._sites)
        random.Random(seed).shuffle(order)
        for site in order:
            if (row.name, site.system.name) in self._deadly:
                continue
            self.progress(f"{label}: {row.name} on {site.system.name}")
            sample = self._sample(row, site)
            if counts:
                self.results.add(row, site.system.name, sample)
            if not site.system.usable():
                self._deadly.add((row.name, site.system.name))
                self._died(site.system, f"its daemon was gone after {row.name}")
                self._replace(site)

    def _sample(self, row: Row, site: Site) -> float | None:
        name, began = site.system.name, time.monotonic()
        try:
            with watched(site.system, self.timeout):
                sample = row.measure(site)
                if row.kind.changes:
                    site.settle()
        except (RowError, OSError) as error:
            late = time.monotonic() - began >= self.timeout
            why = f"no answer within {self.timeout:.0f} s" if late else str(error)
            self.results.note(f"{name}, {row.name}: {why}".replace(site.system.workdir, ""))
            return None
        for why in site.doubts:
            self.results.doubt(row, name, why)
        site.doubts.clear()
        return sample

    def _died(self, system: System, how: str) -> None:
        self._deaths[system.name] += 1
        last = "; left out since" if self._deaths[system.name] >= MOST_DEATHS else ""
        self.results.note(f"{system.name}: {how}{last}".replace(system.workdir or "\0", ""))

    def _replace(self, site: Site) -> None:
        """After its daemon died a system goes on with the next row, on a fresh store."""
        self._sites.remove(site)
        self._close(site.system)
        if successor := self._open(site.system):
            self._sites.append(successor)

    def _close(self, system: System) -> None:
        self.progress(f"unmounting {system.name}")
        try:
            if system.workdir:
                with watched(system, self.timeout):
                    system.unmount()
        except OSError as error:
            self.results.note(f"{system.name} did not unmount: {error}")
        self._volumes[system.name].discard()

    def stop(self) -> None:
        """Unmount everything and delete the stores. Can be called again."""
        self._sites.clear()
        for system in self.systems:
            self._close(system)


def can_drop_caches() -> bool:
    return os.geteuid() == 0 and os.path.exists("/proc/sys/vm/drop_caches")
