"""The options of mount(8) and fstab, `-o opt,opt...`: understood, harmlessly ignored, or refused."""

from collections.abc import Iterable
from dataclasses import dataclass

import click

# Passed on to libfuse. A FUSE mount starts as nodev,nosuid,exec.
_FLAGS = {
    "dev": "nodev",
    "nodev": "dev",
    "suid": "nosuid",
    "nosuid": "suid",
    "exec": "noexec",
    "noexec": "exec",
}

# About when and by whom to mount, which mount(8) and systemd have dealt with before we are called; about
# atimes, which a store does not record on reading; or about what is so in any case.
_IGNORED = frozenset(
    (
        *(
            "defaults",
            "auto",
            "noauto",
            "nofail",
            "_netdev",
            "async",
            "silent",
            "loud",
            "default_permissions",
        ),
        *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup", "comment"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"),
        *("strictatime", "nostrictatime", "lazytime", "nolazytime"),
    )
)


@dataclass(slots=True)
class MountOptions:
    """What `-o` asked for."""

    read_only: bool = False
    allow_other: bool = False
    durable_close: bool = False
    busy_poll_us: int | None = None
    flags: frozenset[str] = frozenset()
    passphrase_file: str | None = None
    keyfile: str | None = None


def parse(values: Iterable[str]) -> MountOptions:
    """Read all `-o` of a command; as with mount(8) the last of two that disagree wins.

    Raises click.BadParameter, naming the first option that is not known.
    """
    result = MountOptions()
    flags: dict[str, None] = {}
    for option in (part for value in values for part in value.split(",") if part):
        name, has_value, value = option.partition("=")
        if option in ("ro", "rw"):
            result.read_only = option == "ro"
        elif option == "allow_other":
            result.allow_other = True
        elif option == "durable_close":
            result.durable_close = True
        elif name == "busy_poll" and value.isdecimal():
            result.busy_poll_us = int(value)
        elif option in _FLAGS:
            flags.pop(_FLAGS[option], None)
            flags[option] = None
        elif name == "passphrase_file" and value:
            result.passphrase_file = value
        elif name == "keyfile" and value:
            result.keyfile = value
        elif not (
            name.lower().startswith("x-") or (name in _IGNORED and (not has_value or name == "comment"))
        ):
            raise click.BadParameter(f"unknown mount option {option!r}", param_hint="-o")
    result.flags = frozenset(flags)
    return result
