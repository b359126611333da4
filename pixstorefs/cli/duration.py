"""Lengths of time as people write them in options: `90s`, `15m`, `2h`."""

import re

import click

_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# Six digits of days are longer than any mount, and no clock overflows.
_FORM = re.compile(r"([0-9]{1,6})(s|m|min|h|d)")


def parse_s(text: str) -> float:
    """The seconds of `90s`, `15m`, `2h` or `1d`; 0 needs no unit. Raises ValueError.

    Any other number does: who writes 15 may mean minutes, and a mount that ends after 15 seconds is a riddle.
    """
    if text == "0":
        return 0.0
    match = _FORM.fullmatch(text)
    if match is None and _FORM.fullmatch(text + "s"):
        raise ValueError(f"{text} what? Write {text}s for seconds, {text}m for minutes or {text}h for hours")
    if match is None:
        raise ValueError(f"{text!r} is no length of time; write it like 90s, 15m or 2h")
    return float(int(match[1]) * _UNITS_S[match[2]])


def of_option(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """The callback of an option with a length of time: its value in seconds."""
    try:
        return None if value is None else parse_s(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
