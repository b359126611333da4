"""The run: every repetition goes through the rows, and every row through the systems in turn.

A machine's speed drifts over minutes, more on a virtual one. Interleaved like this the drift meets all
systems alike, and the first place within a row rotates, so that nobody always comes first.
"""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import process
from .rows import RESOURCE_ROWS, Row, geometric_mean
from .site import RowError, Site
from .source import Source
from .systems import MountError, System

Progress = Callable[[str], None]


@dataclass
class Results:
    """Samples by row and system, and what could not be measured."""

    rows: list[Row]
    systems: list[str]
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row, system: str, sample: float | None) -> None:
        if sample is not None:
            self.samples.setdefault(row.name, {}).setdefault(system, []).append(sample)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    @property
    def base(self) -> str:
        return "pixstorefs" if "pixstorefs" in self.systems else self.systems[0]

    @property
    def peers(self) -> list[str]:
        return [name for name in self.systems if name != self.base]

    def values(self, row: Row, system: str) -> list[float]:
        return self.samples.get(row.name, {}).get(system, [])

    def median(self, row: Row, system: str) -> float | None:
        values = self.values(row, system)
        return statistics.median(values) if values else None

    def ratio(self, row: Row, peer: str) -> float | None:
        """The peer's median by the base's: above one the base is better."""
        own, other = self.median(row, self.base), self.median(row, peer)
        return other / own if own and other else None

    def mean_ratio(self, peer: str) -> float | None:
        """The geometric mean of the ratios of the rows that are times."""
        ratios = [self.ratio(row, peer) for row in self.rows if row.counts]
        return geometric_mean([ratio for ratio in ratios if ratio])


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
        self, systems: list[System], rows: list[Row], source: Source, timeout: float, progress: Progress
    ) -> None:
        self.systems, self.rows, self.source, self.progress = systems, rows, source, progress
        self.timeout = timeout
        self.sites: list[Site] = []
        self.results = Results(rows, [system.name for system in systems])

    def start(self, workdir: str) -> None:
        """A fresh store and a mount for each system. One that cannot be mounted is left out, with a note."""
        watched = any(row.name in RESOURCE_ROWS for row in self.rows)
        for system in self.systems:
            self.progress(f"mounting {system.name}")
            try:
                system.prepare(workdir)
                system.mount()
            except (MountError, OSError) as error:
                self.results.note(f"{system.name} left out: {error}")
                self.results.systems.remove(system.name)
                continue
            site = Site(system, self.source)
            site.watch_resources = watched
            self.sites.append(site)
            self.results.versions[system.name] = system.version()

    def measure(self, warmups: int, repetitions: int) -> None:
        """The warm-ups are whole repetitions whose samples are thrown away."""
        for number in range(warmups + repetitions):
            if not self.sites:
                return
            label = f"repetition {number - warmups + 1}/{repetitions}" if number >= warmups else "warm-up"
            began = time.monotonic()
            for site in self.sites:
                site.resources.clear()
                if daemon := site.system.daemon_pid():
                    process.reset_peak(daemon)
            for row in self.rows:
                for place in range(len(self.sites)):
                    site = self.sites[(place + number) % len(self.sites)]
                    self.progress(f"{label}: {row.name} on {site.system.name}")
                    sample = self._sample(row, site)
                    if number >= warmups:
                        self.results.add(row, site.system.name, sample)
                self._leave_out_the_dead(row)
            self.progress(f"{label} took {time.monotonic() - began:.0f} s\n")

    def _sample(self, row: Row, site: Site) -> float | None:
        try:
            with watched(site.system, self.timeout):
                sample = row.measure(site)
                if row.writes:
                    site.settle()
        except (RowError, OSError) as error:
            self.results.note(f"{site.system.name}, {row.name}: {error}".replace(site.system.workdir, ""))
            return None
        return sample

    def _leave_out_the_dead(self, row: Row) -> None:
        for site in list(self.sites):
            if not site.system.usable():
                self.sites.remove(site)
                self.results.note(f"{site.system.name}: its daemon was gone after {row.name}; left out since")

    def stop(self) -> None:
        """Unmount everything and delete the stores."""
        for system in self.systems:
            if system.workdir:
                self.progress(f"unmounting {system.name}")
                try:
                    with watched(system, self.timeout):
                        system.unmount()
                except OSError as error:
                    self.results.note(f"{system.name} did not unmount: {error}")
                system.remove()


def can_drop_caches() -> bool:
    return os.geteuid() == 0 and os.path.exists("/proc/sys/vm/drop_caches")
