"""Lengths of time as people write them in options: `90s`, `15m`, `2h`."""

import re

import click

_UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# Six digits of days are longer than any mount, and no clock overflows.
_FORM = re.compile(r"([0-9]{1,6})(s|m|min|h|d|)")


def parse_s(text: str) -> float:
    """The seconds of `90`, `90s`, `15m`, `2h` or `1d`. Raises ValueError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no length of time; write it like 90s, 15m or 2h")
    return float(int(match[1]) * _UNITS_S[match[2]])


def of_option(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """The callback of an option with a length of time: its value in seconds."""
    try:
        return None if value is None else parse_s(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
