"""The Python API beside the npm package whose operations it has: save, update and delete of images.

Pixstore syncs its database (SQLite's defaults: a rollback journal, whose removal is not synced) and never an
image. On an ext4 whose power was cut right after ten operations every saved image was empty, and the last of
ten updates and of ten deletes was undone, which for the update means a new image with an old key. So no
operation of it is durable when it returns: its like is our form that leaves syncing to the barrier, at most
a second later. The form with `sync()` after each operation gives more.
"""

import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
from rich.console import Console

from . import packages, process
from .sheet import Sheet, Study, number, spread
from .source import LARGE_BYTES, SMALL_BYTES
from .volume import Directory, VolumeError, can_loop, lent, volume_at

PIXSTORE = "pixstore@3.2.1"
PHASES = ("save", "update", "delete")
IMAGES = {SMALL_BYTES: 300, LARGE_BYTES: 40}
LEAST_IMAGES = 5
GOAL, GOAL_BYTES = 5.0, SMALL_BYTES  # times as fast as Pixstore

HERE = os.path.dirname(os.path.abspath(__file__))
NPM_FOLDER = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pixstorefs", "bench-npm"
)


@dataclass(frozen=True)
class Contender:
    """One library in one of its ways to be used. `command`: what to start; store, size and count follow."""

    name: str
    command: tuple[str, ...]
    durability: str = ""

    def arguments(self, store: str, size_bytes: int, count: int) -> list[str]:
        return [*self.command, store, str(size_bytes), str(count), *filter(None, (self.durability,))]


PYTHON = (sys.executable, "-P", "-m", "benchmark.api_client")
OURS = Contender("pixstorefs", PYTHON, "close")
OURS_SYNCED = Contender("pixstorefs, sync() each", PYTHON, "sync")
PEER = Contender("pixstore", ("node", os.path.join(HERE, "pixstore_client.mjs"), NPM_FOLDER))


@dataclass
class Case:
    """Samples of one operation at one size: seconds an operation, and flushes of the disk an operation."""

    phase: str
    size_bytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    flushes: dict[str, list[float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        size = (
            f"{self.size_bytes // 1000:,} KB"
            if self.size_bytes < 1_000_000
            else f"{self.size_bytes / 1e6:g} MB"
        )
        return f"{self.phase} {size}"

    def ratio(self, ours: str) -> float | None:
        """Pixstore's median by ours: how many times as fast we are."""
        if PEER.name not in self.seconds or ours not in self.seconds:
            return None
        return statistics.median(self.seconds[PEER.name]) / statistics.median(self.seconds[ours])


def measure(workdir: str, size_factor: float, repetitions: int) -> Study:
    """Every operation of every contender, on a fresh store each time, in ever new order."""
    console = Console(stderr=True)
    contenders, notes = [OURS, OURS_SYNCED], []
    with console.status(f"installing {PIXSTORE}; its database driver may have to be compiled"):
        problem = packages.install_from_npm(NPM_FOLDER, PIXSTORE)
    if problem:
        notes.append(f"{PEER.name} left out: {problem}")
    else:
        contenders.append(PEER)
    cases = {(phase, size): Case(phase, size) for size in IMAGES for phase in PHASES}
    place = tempfile.mkdtemp(prefix="pixstorefs-bench-", dir=workdir)
    try:
        for repetition in range(repetitions):
            for size_bytes, full_count in IMAGES.items():
                count = max(LEAST_IMAGES, round(full_count * size_factor))
                random.Random(f"{repetition} {size_bytes}").shuffle(contenders)
                for contender in contenders:
                    with console.status(f"repetition {repetition + 1}/{repetitions}: {contender.name}"):
                        volume = _volume(os.path.join(place, "store"), count * size_bytes)
                        with _note_failure(contender, notes), lent(volume):
                            _measure_one(contender, volume, size_bytes, count, cases)
    finally:
        if not process.mounts_below(place):
            shutil.rmtree(place, ignore_errors=True)
    return Study(_sheets(list(cases.values())), _as_dict(cases), notes)


def _volume(path: str, size_bytes: int) -> Directory:
    return volume_at(path, 3 * size_bytes, can_loop())  # old and new version, and room


def _measure_one(
    contender: Contender, volume: Directory, size_bytes: int, count: int, cases: dict[tuple[str, int], Case]
) -> None:
    with _started(contender.arguments(volume.path, size_bytes, count)) as client:
        _answer(client)
        for phase in PHASES:
            os.sync()
            flushed = volume.flushes()
            client.stdin.write(f"{phase}\n")
            client.stdin.flush()
            case = cases[phase, size_bytes]
            case.seconds.setdefault(contender.name, []).append(float(_answer(client)) / count)
            if flushed is not None:
                flushes = volume.flushes() - flushed
                case.flushes.setdefault(contender.name, []).append(flushes / count)


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": os.path.dirname(HERE)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    ) as client:
        try:
            yield client
        except BaseException:
            client.kill()
            raise


def _answer(client: subprocess.Popen) -> str:
    line = client.stdout.readline().strip()
    if not line:
        raise click.ClickException(client.stderr.read().strip()[-500:] or "it ended without a word")
    return line


@contextlib.contextmanager
def _note_failure(contender: Contender, notes: list[str]) -> Iterator[None]:
    try:
        yield
    except (click.ClickException, VolumeError, OSError) as error:
        if (text := f"{contender.name}: {error}") not in notes:
            notes.append(text)


def _sheets(cases: list[Case]) -> list[Sheet]:
    names = [
        name
        for name in (OURS.name, OURS_SYNCED.name, PEER.name)
        if any(name in case.seconds for case in cases)
    ]
    times = Sheet(
        "Milliseconds an operation, over a whole repetition: median, smallest and largest repetition. In "
        "square brackets how often the disk was told to flush for one operation.",
        ["", *names],
        1,
    )
    for case in cases:
        times.lines.append([case.title, *(_cell(case, name) for name in names)])
    sheets = [times]
    if PEER.name in names:
        ratios = Sheet(
            f"Times as fast as Pixstore; the goal is {GOAL:g} for {GOAL_BYTES // 1000} KB.",
            ["", OURS.name, "", OURS_SYNCED.name, ""],
            1,
        )
        for case in cases:
            found = [case.ratio(name) for name in (OURS.name, OURS_SYNCED.name)]
            ratios.lines.append(
                [case.title, *(cell for ratio in found for cell in (number(ratio), _verdict(case, ratio)))]
            )
        sheets.append(ratios)
    return sheets


def _cell(case: Case, name: str) -> str:
    values = [seconds * 1e3 for seconds in case.seconds.get(name, [])]
    if not values:
        return "-"
    flushes = f" [{number(statistics.median(case.flushes[name]))}]" if name in case.flushes else ""
    return f"{number(statistics.median(values))} {spread(values)}".rstrip() + flushes


def _verdict(case: Case, ratio: float | None) -> str:
    if ratio is None or case.size_bytes != GOAL_BYTES:
        return ""
    return "met" if ratio >= GOAL else "MISSED"


def _as_dict(cases: dict[tuple[str, int], Case]) -> dict[str, object]:
    return {
        "operations": [
            {
                "operation": case.phase,
                "size_bytes": case.size_bytes,
                "seconds": case.seconds,
                "flushes": case.flushes,
                "times_as_fast": {name: case.ratio(name) for name in (OURS.name, OURS_SYNCED.name)},
            }
            for case in cases.values()
        ]
    }
