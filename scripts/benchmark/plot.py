"""The ratios as a picture: a line for each row, a mark for each peer, on a logarithmic scale."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .results import Results
from .source import Sizes

MARKS = "osD^vP"
SMALLEST, LARGEST = 1 / 32, 32.0  # what lies beyond is drawn at the edge
FORMATS = ("png", "svg")


def draw(results: Results, sizes: Sizes, path: str) -> list[str]:
    """Write PATH.png and PATH.svg; returns their names."""
    rows = list(results.rows)
    figure = Figure(figsize=(11, 2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for peer, mark in zip(results.peers, MARKS, strict=False):
        points = [(ratio, place) for place, row in enumerate(rows) if (ratio := results.ratio(row, peer))]
        clipped = [min(max(ratio, SMALLEST), LARGEST) for ratio, _ in points]
        mean = results.mean_ratio(peer)
        label = peer if mean is None else f"{peer} (mean {mean:.2f})"
        axes.scatter(clipped, [place for _, place in points], marker=mark, s=36, label=label, alpha=0.85)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(SMALLEST / 1.2, LARGEST * 1.2)
    axes.xaxis.set_major_formatter(FuncFormatter(_as_fraction))
    axes.set_yticks(range(len(rows)), [row.title_for(sizes) for row in rows])
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"the peer's median by that of {results.base}: right of 1 {results.base} is better")
    figure.legend(loc="outside upper center", ncols=3)
    names = [f"{path}.{kind}" for kind in FORMATS]
    for name in names:
        figure.savefig(name, dpi=120)
    return names


def _as_fraction(value: float, position: int | None) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
