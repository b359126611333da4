"""The results as a table on the terminal, as Markdown and as JSON."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from . import machine as machines
from .rows import Row
from .runner import Results
from .source import Sizes

EXPLANATION = (
    "Medians, with the smallest and the largest sample. Lower is better; a ratio is the peer's value by "
    "{base}'s, so above 1 {base} is better. The mean is geometric, over the rows that are times."
)
WIDTH = 200


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    return f"{number(min(values))}..{number(max(values))}" if len(values) > 1 else ""


def _table(results: Results, sizes: Sizes) -> tuple[list[str], list[list[str]]]:
    """The header and the cells; the last line holds the means."""
    header = ["row", "unit", *results.systems, *(f"{peer} / {results.base}" for peer in results.peers)]
    lines = []
    for row in results.rows:
        cells = [_cell(results, row, system) for system in results.systems]
        ratios = [number(results.ratio(row, peer)) for peer in results.peers]
        lines.append([row.title_for(sizes), row.unit, *cells, *ratios])
    means = [number(results.mean_ratio(peer)) for peer in results.peers]
    lines.append(["geometric mean of the times", "", *("" for _ in results.systems), *means])
    return header, lines


def _cell(results: Results, row: Row, system: str) -> str:
    values = results.values(row, system)
    if not values:
        return "-"
    return f"{number(results.median(row, system))} {_in_parentheses(spread(values))}".rstrip()


def _in_parentheses(text: str) -> str:
    return f"({text})" if text else ""


def print_table(console: Console, results: Results, sizes: Sizes) -> None:
    header, lines = _table(results, sizes)
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)  # a file has no width to fit into
    table = Table(caption=EXPLANATION.format(base=results.base), caption_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < 2 else "right")
    for line in lines[:-1]:
        table.add_row(*line)
    table.add_section()
    table.add_row(*lines[-1], style="bold")
    console.print(table)
    for note in results.notes:
        console.print(f"note: {note}", style="yellow", markup=False)


def markdown(results: Results, sizes: Sizes, machine: dict, settings: dict) -> str:
    """A table to paste into a document."""
    header, lines = _table(results, sizes)
    alignment = ["---", "---", *("---:" for _ in header[2:])]
    versions = "; ".join(f"{name}: {version}" for name, version in results.versions.items() if version)
    parts = [
        f"{EXPLANATION.format(base=results.base)} {settings['repetitions']} repetitions, interleaved, after "
        f"{settings['warmups']} warm-up; scale {settings['scale']:g}; {settings['date']}.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (header, alignment, *lines)),
        "",
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
        "rows": [
            {
                "name": row.name,
                "title": row.title_for(sizes),
                "unit": row.unit,
                "counts": row.counts,
                "samples": {system: results.values(row, system) for system in results.systems},
                "medians": {system: results.median(row, system) for system in results.systems},
                "ratios": {peer: results.ratio(row, peer) for peer in results.peers},
            }
            for row in results.rows
        ],
        "geometric_means": {peer: results.mean_ratio(peer) for peer in results.peers},
        "notes": results.notes,
    }
    return json.dumps(document, indent=1) + "\n"
