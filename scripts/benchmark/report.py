"""The results as tables on the terminal, as Markdown and as JSON."""

import json

from rich.console import Console

from . import machine as machines
from .goals import Verdict, judge
from .results import Results
from .rows import Row
from .sheet import Sheet, Study, number, spread
from .source import Sizes

RATIOS_CAPTION = (
    "A ratio is the peer's median by {base}'s: above 1 {base} is better. Mean and minimum are over the rows "
    "that are times; a row marked * is left out of them, see the notes."
)
MEDIANS_CAPTION = "Medians, with the smallest and the largest sample. Lower is better."
GOALS_CAPTION = "Reached: the mean, or the smallest ratio of the rows that count for the goal."
WIDTH = 200


def ratios_sheet(results: Results, sizes: Sizes) -> Sheet:
    """Row by peer; below them the means and the minima."""
    sheet = Sheet(RATIOS_CAPTION.format(base=results.base), ["row", *results.peers], 1)
    for row in results.rows:
        cells = [number(results.ratio(row, peer)) for peer in results.peers]
        marks = ["*" if results.doubtful(row, peer) else "" for peer in results.peers]
        sheet.lines.append([row.title_for(sizes), *map(str.__add__, cells, marks)])
    worst = [results.worst(peer) for peer in results.peers]
    sheet.footer = [
        ["geometric mean", *(number(results.mean_ratio(peer)) for peer in results.peers)],
        ["minimum", *(f"{number(found[1])} {found[0]}" if found else "-" for found in worst)],
    ]
    return sheet


def medians_sheet(results: Results, sizes: Sizes) -> Sheet:
    """Row by system."""
    sheet = Sheet(MEDIANS_CAPTION, ["row", "unit", *results.systems], 2)
    for row in results.rows:
        cells = [
            f"{number(results.median(row, system))} {spread(results.values(row, system))}".rstrip()
            if results.values(row, system)
            else "-"
            for system in results.systems
        ]
        sheet.lines.append([row.title_for(sizes), row.unit, *cells])
    return sheet


def goals_sheet(verdicts: list[Verdict]) -> Sheet:
    sheet = Sheet(GOALS_CAPTION, ["peer", "goal", "smallest row", "at least", "reached", ""], 3)
    for verdict in verdicts:
        goal, word = verdict.goal, "met" if verdict.met else "MISSED"
        sheet.lines.append(
            [goal.peer, goal.what, verdict.row, f"{goal.least:g}", number(verdict.reached), word]
        )
    return sheet


def _sheets(results: Results, sizes: Sizes) -> list[Sheet]:
    sheets = [medians_sheet(results, sizes)]
    if results.peers:
        sheets.append(ratios_sheet(results, sizes))
    if verdicts := judge(results):
        sheets.append(goals_sheet(verdicts))
    return sheets


def wide(console: Console) -> Console:
    """A file has no width to fit into."""
    return console if console.is_terminal else Console(file=console.file, width=WIDTH)


def print_tables(console: Console, results: Results, sizes: Sizes) -> None:
    console = wide(console)
    for sheet in _sheets(results, sizes):
        console.print(sheet.on_terminal())
    for note in results.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def markdown(results: Results, sizes: Sizes, machine: dict, settings: dict) -> str:
    """The tables to paste into a document."""
    versions = "; ".join(f"{name}: {version}" for name, version in results.versions.items() if version)
    parts = [
        f"{settings['repetitions']} repetitions, interleaved, each on fresh stores, after "
        f"{settings['warmups']} warm-up; size factor {settings['size_factor']:g}; {settings['date']}.",
        "",
        *(line for sheet in _sheets(results, sizes) for line in sheet.as_markdown()),
        f"Machine: {machines.sentence(machine)}. Systems: {versions}.",
        *(f"- {note}" for note in results.notes),
    ]
    return "\n".join(parts) + "\n"


def as_json(results: Results, sizes: Sizes, machine: dict, settings: dict) -> str:
    """Everything: all samples, and where they come from."""
    document = {
        "settings": settings,
        "machine": machine,
        "systems": results.versions,
        "base": results.base,
        "rows": [_row_as_dict(results, row, sizes) for row in results.rows],
        "geometric_means": {peer: results.mean_ratio(peer) for peer in results.peers},
        "minima": {peer: results.worst(peer) for peer in results.peers},
        "goals": [
            {
                "peer": verdict.goal.peer,
                "goal": verdict.goal.what,
                "at_least": verdict.goal.least,
                "reached": verdict.reached,
                "row": verdict.row or None,
                "met": verdict.met,
            }
            for verdict in judge(results)
        ],
        "notes": results.notes,
    }
    return json.dumps(document, indent=1) + "\n"


def _row_as_dict(results: Results, row: Row, sizes: Sizes) -> dict[str, object]:
    return {
        "name": row.name,
        "title": row.title_for(sizes),
        "unit": row.unit,
        "timed": row.timed,
        "samples": {system: results.values(row, system) for system in results.systems},
        "medians": {system: results.median(row, system) for system in results.systems},
        "ratios": {peer: results.ratio(row, peer) for peer in results.peers},
        "doubtful": [peer for peer in results.peers if results.doubtful(row, peer)],
    }


def print_study(console: Console, study: Study) -> None:
    console = wide(console)
    for sheet in study.sheets:
        console.print(sheet.on_terminal())
    for note in study.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def study_as_markdown(study: Study, machine: dict, settings: dict) -> str:
    parts = [
        *(line for sheet in study.sheets for line in sheet.as_markdown()),
        f"Machine: {machines.sentence(machine)}; {settings['date']}.",
        *(f"- {note}" for note in study.notes),
    ]
    return "\n".join(parts) + "\n"


def study_as_json(study: Study, machine: dict, settings: dict) -> str:
    document = {"settings": settings, "machine": machine, **study.data, "notes": study.notes}
    return json.dumps(document, indent=1) + "\n"
