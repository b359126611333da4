"""The goals of the project, and whether a run reached them."""

from collections.abc import Callable
from dataclasses import dataclass

from .results import Results
from .rows import Kind, Row


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached against one peer: in each of the chosen rows, or in their mean."""

    peer: str
    what: str
    least: float
    chooses: Callable[[Row], bool] | None  # None: the geometric mean of all rows that are times


@dataclass(frozen=True)
class Verdict:
    """What a run says of a goal. `reached`: the mean, or the smallest ratio, which is that of `row`."""

    goal: Goal
    reached: float
    row: str

    @property
    def met(self) -> bool:
        return self.reached >= self.goal.least


def _every(row: Row) -> bool:
    return True


def _warm_reads(row: Row) -> bool:
    return row.kind is Kind.READ and not row.cold


def _cold_reads(row: Row) -> bool:
    return row.kind is Kind.READ and row.cold


def _warm_listings(row: Row) -> bool:
    return row.kind is Kind.LIST and not row.cold


GOALS = (
    Goal("gocryptfs", "every row", 1.0, _every),
    Goal("gocryptfs", "geometric mean", 1.5, None),
    Goal("gocryptfs", "warm reads", 2.0, _warm_reads),
    Goal("gocryptfs", "warm listings", 2.0, _warm_listings),
    Goal("gocryptfs", "4 KiB writes", 2.0, lambda row: row.name == "small-writes"),
    Goal("gocryptfs", "fsync of each file", 1.0, lambda row: row.kind is Kind.SYNC),
    Goal("securefs", "every row", 0.9, _every),
    Goal("securefs", "geometric mean", 1.2, None),
    Goal("cryfs", "every row that moves data", 2.0, lambda row: row.kind.moves_data),
    Goal("encfs", "every row that moves data", 2.0, lambda row: row.kind.moves_data),
    Goal("floor", "ingest", 0.7, lambda row: row.kind is Kind.INGEST),
    Goal("floor", "cold reads", 0.8, _cold_reads),
    Goal("floor", "stat and listings", 0.9, lambda row: row.kind in (Kind.STAT, Kind.LIST)),
)


def judge(results: Results) -> list[Verdict]:
    """A verdict for each goal of which the run measured anything. They are goals of pixstorefs alone."""
    if results.base != "pixstorefs":
        return []
    verdicts = [_judge_one(goal, results) for goal in GOALS if goal.peer in results.peers]
    return [verdict for verdict in verdicts if verdict is not None]


def _judge_one(goal: Goal, results: Results) -> Verdict | None:
    if goal.chooses is None:
        mean = results.mean_ratio(goal.peer)
        return None if mean is None else Verdict(goal, mean, "")
    chosen = {row.name for row in results.rows if goal.chooses(row)}
    ratios = {name: ratio for name, ratio in results.timed_ratios(goal.peer).items() if name in chosen}
    if not ratios:
        return None
    worst = min(ratios, key=ratios.__getitem__)
    return Verdict(goal, ratios[worst], worst)
