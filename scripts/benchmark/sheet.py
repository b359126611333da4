"""Tables as text, for the terminal and for documents."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table


@dataclass
class Sheet:
    """One table: the cells as text, for whatever shows them. `left`: how many columns hold words."""

    caption: str
    header: list[str]
    left: int
    lines: list[list[str]] = field(default_factory=list)
    footer: list[list[str]] = field(default_factory=list)

    def on_terminal(self) -> Table:
        table = Table(caption=self.caption, caption_justify="left")
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index < self.left else "right")
        for line in self.lines:
            table.add_row(*line)
        if self.footer:
            table.add_section()
        for line in self.footer:
            table.add_row(*line, style="bold")
        return table

    def as_markdown(self) -> list[str]:
        alignment = ["---" if index < self.left else "---:" for index in range(len(self.header))]
        rows = (self.header, alignment, *self.lines, *self.footer)
        return [self.caption, "", *(f"| {' | '.join(cells)} |" for cells in rows), ""]


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
    return f"({number(min(values))}..{number(max(values))})" if len(values) > 1 else ""


@dataclass
class Study:
    """What a measurement other than the comparison found. `data`: everything, for JSON.

    `complete`: it was not interrupted.
    """

    sheets: list[Sheet]
    data: dict[str, object]
    notes: list[str]
    complete: bool = True
