"""Paths as arguments."""

import os
from typing import Any

import click


class Mountpoint(click.Path):
    """A path that is not looked at: for click's own stat, what is mounted there would have to answer."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The path as it was given."""
        return self.coerce_path_result(value)
