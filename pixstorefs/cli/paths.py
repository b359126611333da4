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


def store_meant(path: str) -> str:
    """The real path of the store that a person means: the one at `path`, or the one mounted there."""
    from pixstorefs.daemon import mounts

    return mounts.store_at(path)
