"""The comparison with the peers: what can be measured here, the run, and what is written about it."""

import os
import shutil
import signal

import click
from rich.console import Console

from . import packages, process
from .peers import SYSTEMS
from .rows import ROWS, Row
from .runner import Run, can_drop_caches
from .source import Source
from .systems import System


def choose_systems(names: list[str], console: Console) -> list[System]:
    """The systems that are there or can be installed."""
    chosen = []
    for name in names:
        kind = SYSTEMS[name]
        if packages.missing(kind.programs):
            console.print(f"installing {' '.join(kind.packages)}")
        if problem := packages.ensure(kind.programs, kind.packages):
            console.print(f"{name} left out: {problem}", style="yellow", markup=False)
            continue
        chosen.append(kind())
    if not chosen:
        raise click.ClickException("no system is left to measure")
    return chosen


def choose_rows(names: list[str], console: Console) -> list[Row]:
    """The rows that can be measured; without root nothing can be made cold."""
    rows = [row for name, row in ROWS.items() if name in names]
    if not can_drop_caches():
        if skipped := [row.name for row in rows if row.cold]:
            console.print(f"only root can drop caches; left out: {', '.join(skipped)}", style="yellow")
        rows = [row for row in rows if not row.cold]
    if not rows:
        raise click.ClickException("no row is left to measure")
    return rows


def check_space(workdir: str, systems: list[System], source: Source) -> None:
    """Refuse before anything is written what would fill the disk or the memory."""
    stored = sum(not system.keeps_data_in_memory for system in systems)
    space = os.statvfs(workdir)
    need = int(stored * source.sizes.system_bytes * 1.3)
    need += 0 if source.in_memory else source.sizes.source_bytes
    free = space.f_bavail * space.f_frsize
    if free < need:
        raise click.ClickException(
            f"{workdir} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} are needed; "
            "see --workdir and --size-factor"
        )
    memory = source.sizes.source_bytes if source.in_memory else 0
    memory += (len(systems) - stored) * source.sizes.system_bytes
    if process.available_memory() < memory * 1.2:
        raise click.ClickException(
            f"{memory * 1.2 / 1e9:.1f} GB of memory are needed for data; "
            "see --size-factor, or leave out floor"
        )


def perform(run: Run, source: Source, workdir: str, warmups: int, repetitions: int) -> bool:
    """The whole run, cleaned up in any case. Returns whether it came to its end."""
    try:
        run.progress(f"creating {source.sizes.source_bytes / 1e6:,.0f} MB of source files")
        source.create()
        run.measure(warmups, repetitions)
    except KeyboardInterrupt:
        run.results.note("interrupted: fewer repetitions than asked for")
        run.results.drop_unmeasured()
        return False
    finally:
        # From here on nothing may interrupt: a mount left behind is worse than a second of patience.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        run.stop()
        source.remove()
        if not process.mounts_below(workdir):
            shutil.rmtree(workdir, ignore_errors=True)
    return True
