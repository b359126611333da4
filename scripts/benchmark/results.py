"""What a run found: samples, what could not be measured, and the ratios that follow."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from .rows import Row


@dataclass
class Results:
    """Samples by row and system.

    `doubts` holds rows in which a system did less than the row asks, an fsync that did not reach the disk for
    one. Their ratios are shown, but no mean, no minimum and no goal rests on them.
    """

    rows: list[Row]
    systems: list[str]
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    doubts: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row, system: str, sample: float | None) -> None:
        if sample is not None:
            self.samples.setdefault(row.name, {}).setdefault(system, []).append(sample)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def doubt(self, row: Row, system: str, why: str) -> None:
        self.doubts.add((row.name, system))
        self.note(f"{system}, {row.name}: {why}")

    def drop_unmeasured(self) -> None:
        """Leave out systems that gave no sample at all; the notes say why."""
        measured = {system for samples in self.samples.values() for system in samples}
        self.systems = [system for system in self.systems if system in measured]

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

    def doubtful(self, row: Row, peer: str) -> bool:
        return bool({(row.name, peer), (row.name, self.base)} & self.doubts)

    def timed_ratios(self, peer: str) -> dict[str, float]:
        """Row -> ratio, of the rows that are times and beyond doubt."""
        sure = [row for row in self.rows if row.timed and not self.doubtful(row, peer)]
        return {row.name: ratio for row in sure if (ratio := self.ratio(row, peer))}

    def mean_ratio(self, peer: str) -> float | None:
        """The geometric mean of the ratios of the rows that are times."""
        return geometric_mean(self.timed_ratios(peer).values())

    def worst(self, peer: str) -> tuple[str, float] | None:
        """The row with the smallest ratio, of those that are times."""
        return min(self.timed_ratios(peer).items(), key=lambda item: item[1], default=None)


def geometric_mean(values: Iterable[float]) -> float | None:
    """The mean for ratios: twice as fast here and half as fast there make one. None of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None
