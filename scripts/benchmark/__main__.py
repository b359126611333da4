"""The command line of the benchmark."""

import datetime
import os
import shutil
import signal
import sys
import tempfile

import click
from rich.console import Console

from . import machine, packages, process, report
from .peers import SYSTEMS
from .rows import ROWS, Row
from .runner import Run, can_drop_caches
from .source import Sizes, Source
from .systems import Pixstorefs, System


def _names(known: dict):
    """A callback for options that hold names with commas between them."""

    def check(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
        names = [name.strip() for name in value.split(",") if name.strip()] or list(known)
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name}: not one of {', '.join(known)}")
        return names

    return check


def _list_rows(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        for row in ROWS.values():
            click.echo(f"{row.name:18} {row.measure.__doc__}")
        context.exit()


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
    need = int(stored * source.sizes.system_bytes * 1.15)
    need += 0 if source.in_memory else source.sizes.source_bytes
    free = space.f_bavail * space.f_frsize
    if free < need:
        raise click.ClickException(
            f"{workdir} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} are needed; "
            "see --workdir and --scale"
        )
    memory = source.sizes.source_bytes if source.in_memory else 0
    memory += (len(systems) - stored) * source.sizes.system_bytes
    if process.available_memory() < memory * 1.2:
        raise click.ClickException(
            f"{memory * 1.2 / 1e9:.1f} GB of memory are needed for data; see --scale, or leave out floor"
        )


def _stop_like_ctrl_c(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def perform(run: Run, source: Source, workdir: str, warmups: int, repetitions: int) -> bool:
    """The whole run, cleaned up in any case. Returns whether it came to its end."""
    signal.signal(signal.SIGTERM, _stop_like_ctrl_c)
    signal.signal(signal.SIGHUP, _stop_like_ctrl_c)
    try:
        run.progress(f"creating {source.sizes.source_bytes / 1e6:,.0f} MB of source files")
        source.create()
        run.start(workdir)
        run.measure(warmups, repetitions)
    except KeyboardInterrupt:
        run.results.note("interrupted: fewer repetitions than asked for")
        return False
    finally:
        # From here on nothing may interrupt: a mount left behind is worse than a second of patience.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        run.stop()
        source.remove()
        _remove_workdir(workdir)
    return True


def _remove_workdir(workdir: str) -> None:
    if not any(point.startswith(workdir + os.sep) for point in process.mount_points()):
        shutil.rmtree(workdir, ignore_errors=True)


@click.command()
@click.option(
    "--systems",
    default="pixstorefs,gocryptfs,ext4",
    show_default=True,
    callback=_names(SYSTEMS),
    help=f"What to compare, of: {', '.join(SYSTEMS)}. Ratios are to pixstorefs, or else to the first.",
)
@click.option("--rows", default="", callback=_names(ROWS), help="Which rows, with commas. All by default.")
@click.option("--list-rows", is_flag=True, is_eager=True, expose_value=False, callback=_list_rows)
@click.option("--scale", default=1.0, show_default=True, type=click.FloatRange(0.001, 100))
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(1))
@click.option("--warmups", default=1, show_default=True, type=click.IntRange(0))
@click.option("--timeout", default=600.0, show_default=True, help="Seconds a measurement may take.")
@click.option("--workdir", default="/var/tmp", show_default=True, type=click.Path(exists=True))
@click.option("--mount-option", multiple=True, help="An argument for `pixstorefs mount`; may be repeated.")
@click.option("--json", "json_file", type=click.Path(), help="Write all samples to this file.")
@click.option("--markdown", "markdown_file", type=click.Path(), help="Write a table for a document.")
def main(
    systems: list[str],
    rows: list[str],
    scale: float,
    repetitions: int,
    warmups: int,
    timeout: float,
    workdir: str,
    mount_option: tuple[str, ...],
    json_file: str | None,
    markdown_file: str | None,
) -> None:
    """Compare pixstorefs with its peers: the same work on each, interleaved in one run."""
    console = Console(stderr=True)
    if problem := packages.ensure_tools():
        raise click.ClickException(problem)
    Pixstorefs.options = mount_option
    chosen, chosen_rows = choose_systems(systems, console), choose_rows(rows, console)
    sizes = Sizes(scale)
    source = Source(os.path.realpath(workdir), sizes)
    check_space(workdir, chosen, source)
    described = machine.describe(workdir)
    settings = {
        "date": datetime.date.today().isoformat(),
        "scale": scale,
        "repetitions": repetitions,
        "warmups": warmups,
        "mount_options": list(mount_option),
    }
    place = tempfile.mkdtemp(prefix="pixstorefs-bench-", dir=os.path.realpath(workdir))
    with console.status("starting") as status:

        def progress(text: str) -> None:
            status.update(text.strip())
            if text.endswith("\n"):
                console.print(text.strip(), highlight=False)

        run = Run(chosen, chosen_rows, source, timeout, progress)
        complete = perform(run, source, place, warmups, repetitions)
    if not run.results.systems or not run.results.samples:
        raise click.ClickException("nothing was measured. " + " ".join(run.results.notes))
    report.print_table(Console(), run.results, sizes)
    for path, render in ((json_file, report.as_json), (markdown_file, report.markdown)):
        if path:
            with open(path, "w", encoding="utf-8") as file:
                file.write(render(run.results, sizes, described, settings))
    sys.exit(0 if complete else 130)


if __name__ == "__main__":
    main(prog_name="scripts/bench")
