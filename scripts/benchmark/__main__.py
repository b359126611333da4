"""The command line of the benchmark."""

import datetime
import os
import signal
import sys
import tempfile

import click
from rich.console import Console

from . import api, comparison, growth, machine, packages, report, volume
from .peers import DEFAULT_SYSTEMS, SYSTEMS
from .rows import ROWS
from .runner import Run
from .source import Sizes, Source
from .systems import Pixstorefs


def _names(known: dict):
    """A callback for options that hold names with commas between them."""

    def check(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
        names = [name.strip() for name in value.split(",") if name.strip()] or list(known)
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name}: not one of {', '.join(known)}")
        return names

    return check


def _counts(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        counts = [int(count) for count in value.split(",")]
    except ValueError:
        raise click.BadParameter("numbers with commas between them, please") from None
    if counts != sorted(set(counts)) or counts[0] < growth.LEAST_IMAGES:
        raise click.BadParameter(f"growing numbers, please, from {growth.LEAST_IMAGES} on")
    return counts


def _list_rows(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        for row in ROWS.values():
            click.echo(f"{row.name:18} {row.measure.__doc__}")
        context.exit()


def _stop_like_ctrl_c(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _write(path: str | None, text: str) -> None:
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def _compare(systems: list[str], rows: list[str], workdir: str, settings: dict, options: dict) -> int:
    """The peers beside each other. Returns the exit status."""
    console = Console(stderr=True)
    chosen = comparison.choose_systems(systems, console)
    chosen_rows = comparison.choose_rows(rows, console)
    sizes = Sizes(settings["size_factor"])
    source = Source(workdir, sizes)
    comparison.check_space(workdir, chosen, source)
    own_file_systems = volume.can_loop()
    described = machine.describe(workdir, own_file_systems)
    place = tempfile.mkdtemp(prefix="pixstorefs-bench-", dir=workdir)
    with console.status("starting") as status:

        def progress(text: str) -> None:
            status.update(text.strip())
            if text.endswith("\n"):
                console.print(text.strip(), highlight=False)

        run = Run(
            chosen,
            chosen_rows,
            source,
            place,
            own_file_systems=own_file_systems,
            timeout=options["timeout"],
            progress=progress,
        )
        complete = comparison.perform(run, source, place, settings["warmups"], settings["repetitions"])
    results = run.results
    if not results.systems:
        raise click.ClickException("nothing was measured. " + " ".join(results.notes))
    report.print_tables(Console(), results, sizes)
    _write(options["json_file"], report.as_json(results, sizes, described, settings))
    _write(options["markdown_file"], report.markdown(results, sizes, described, settings))
    if options["plot"] and results.peers:
        from . import plot  # matplotlib takes a second to import

        console.print(f"wrote {' and '.join(plot.draw(results, sizes, options['plot']))}", highlight=False)
    return 0 if complete else 130


@click.command()
@click.option(
    "--systems",
    default=",".join(system.name for system in DEFAULT_SYSTEMS),
    show_default=True,
    callback=_names(SYSTEMS),
    help=f"What to compare, of: {', '.join(SYSTEMS)}. Ratios are to pixstorefs.",
)
@click.option("--rows", default="", callback=_names(ROWS), help="Which rows, with commas. All by default.")
@click.option("--list-rows", is_flag=True, is_eager=True, expose_value=False, callback=_list_rows)
@click.option(
    "--size-factor",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.001, 100),
    help="Times the number of files, and the sizes of the large ones.",
)
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(1))
@click.option("--warmups", default=1, show_default=True, type=click.IntRange(0))
@click.option("--timeout", default=600.0, show_default=True, help="Seconds a measurement may take.")
@click.option("--workdir", default="/var/tmp", show_default=True, type=click.Path(exists=True))
@click.option("--mount-option", multiple=True, help="An argument for `pixstorefs mount`; may be repeated.")
@click.option("--json", "json_file", type=click.Path(), help="Write all samples to this file.")
@click.option("--markdown", "markdown_file", type=click.Path(), help="Write tables for a document.")
@click.option("--plot", metavar="PATH", help="Draw the ratios as PATH.png and PATH.svg.")
@click.option(
    "--scale", is_flag=True, help="Instead of peers: what grows with the number of images in a store."
)
@click.option(
    "--scale-images",
    default="1000,10000,100000,1000000",
    show_default=True,
    callback=_counts,
    help="With --scale: the numbers of images to measure at.",
)
@click.option(
    "--api", "api_mode", is_flag=True, help="Instead of mounts: the Python API beside npm's pixstore."
)
def main(
    systems: list[str],
    rows: list[str],
    size_factor: float,
    repetitions: int,
    warmups: int,
    workdir: str,
    mount_option: tuple[str, ...],
    scale: bool,
    scale_images: list[int],
    api_mode: bool,
    **options: object,
) -> None:
    """Compare pixstorefs with its peers: the same work on each, interleaved in one run."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop_like_ctrl_c)
    if problem := packages.ensure_tools():
        raise click.ClickException(problem)
    Pixstorefs.options = mount_option
    workdir = os.path.realpath(workdir)
    settings = {
        "date": datetime.date.today().isoformat(),
        "size_factor": size_factor,
        "repetitions": repetitions,
        "warmups": warmups,
        "mount_options": list(mount_option),
    }
    if not (scale or api_mode):
        sys.exit(_compare(systems, rows, workdir, settings, options))
    described = machine.describe(workdir, volume.can_loop())
    study = (
        api.measure(workdir, size_factor, repetitions) if api_mode else growth.measure(workdir, scale_images)
    )
    report.print_study(Console(), study)
    _write(options["json_file"], report.study_as_json(study, described, settings))
    _write(options["markdown_file"], report.study_as_markdown(study, described, settings))
    sys.exit(0 if study.complete else 130)


if __name__ == "__main__":
    main(prog_name="scripts/bench")
