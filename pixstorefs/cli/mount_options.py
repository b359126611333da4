"""The options of mount(8) and fstab, `-o opt,opt...`: understood, harmlessly ignored, or refused."""

import grp
import pwd
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click

from pixstorefs.cli import duration

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
        *("defaults", "auto", "noauto", "nofail", "_netdev", "async", "silent", "loud"),
        *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup", "comment"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"),
        *("strictatime", "nostrictatime", "lazytime", "nolazytime"),
    )
)
# Of those, what may have a value: mount(8) says who it is that mounts a line with `user`.
_IGNORED_WITH_VALUE = frozenset(("comment", "user"))

# Longer than a program takes between two calls (10 to 60 us for cp and rsync), short beside a time slice.
DEFAULT_BUSY_POLL_US = 100
MOST_BUSY_POLL_US = 10_000

_UMASK = re.compile("0?[0-7]{1,3}")
_DECIMAL = re.compile("[0-9]+")
# The one above it means "nobody in particular" to the kernel.
_LARGEST_ID = (1 << 32) - 2

# A value in double quotes may hold commas, as mount(8) has it.
_OPTION = re.compile(r'(?:[^,"]|"[^"]*"?)+')


@dataclass(slots=True)
class MountOptions:
    """What `-o` asked for."""

    read_only: bool = False
    allow_other: bool = False
    default_permissions: bool = False
    durable_close: bool = False
    log_names: bool = False
    idle_unmount_s: float = 0.0
    busy_poll_us: int = DEFAULT_BUSY_POLL_US
    flags: frozenset[str] = frozenset()
    passphrase_file: str | None = None
    keyfile: str | None = None
    run_as: str | None = None
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    remount: bool = False


def parse(values: Iterable[str], *, sloppy: bool = False) -> MountOptions:
    """Read all `-o` of a command; as with mount(8) the last of two that disagree wins.

    Raises click.BadParameter, naming the first option that has a bad value or, unless `sloppy`, is not known.
    """
    result = MountOptions()
    flags: dict[str, None] = {}
    for option in _split(values):
        name, _, value = option.partition("=")
        if option in _FLAGS:
            flags.pop(_FLAGS[option], None)
            flags[option] = None
            continue
        understood = _take_word(result, option) or (value and _take_value(result, name, value))
        if not (understood or sloppy or _is_harmless(option)):
            raise _refusal(option)
    result.flags = frozenset(flags)
    return result


def _split(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        for option in _OPTION.findall(value):
            name, has_value, text = option.partition("=")
            if len(text) > 1 and text[0] == text[-1] == '"':
                text = text[1:-1]
            yield name + has_value + text


def _take_word(result: MountOptions, option: str) -> bool:
    if option in ("ro", "rw"):
        result.read_only = option == "ro"
    elif option == "allow_other":
        result.allow_other = True
    elif option == "default_permissions":
        result.default_permissions = True
    elif option == "durable_close":
        result.durable_close = True
    elif option == "log_names":
        result.log_names = True
    elif option == "remount":
        result.remount = True
    else:
        return False
    return True


def _take_value(result: MountOptions, name: str, value: str) -> bool:
    if name == "passphrase_file":
        result.passphrase_file = value
    elif name == "keyfile":
        result.keyfile = value
    elif name == "setuid":  # so called by mount.fuse3, which takes it away before it calls us
        result.run_as = value
    elif name in ("uid", "gid"):
        setattr(result, name, _number_of(name, value))
    elif name == "umask":
        if not _UMASK.fullmatch(value):
            raise click.BadParameter("umask: three octal digits, as 027", param_hint="-o")
        result.umask = int(value, 8)
    elif name == "busy_poll":
        if not (value.isdecimal() and int(value) <= MOST_BUSY_POLL_US):
            raise click.BadParameter(f"busy_poll: 0 to {MOST_BUSY_POLL_US} microseconds", param_hint="-o")
        result.busy_poll_us = int(value)
    elif name == "idle_unmount":
        try:
            result.idle_unmount_s = duration.parse_s(value)
        except ValueError as error:
            raise click.BadParameter(f"idle_unmount: {error}", param_hint="-o") from None
    else:
        return False
    return True


def _number_of(option: str, value: str) -> int:
    """The number of a user (`uid`) or group (`gid`), given as such or by name."""
    try:
        if not _DECIMAL.fullmatch(value):
            return pwd.getpwnam(value).pw_uid if option == "uid" else grp.getgrnam(value).gr_gid
    except KeyError:
        kind = "user" if option == "uid" else "group"
        raise click.BadParameter(f"{option}: there is no {kind} {value!r}", param_hint="-o") from None
    if int(value) > _LARGEST_ID:
        raise click.BadParameter(f"{option}: 0 to {_LARGEST_ID}", param_hint="-o")
    return int(value)


def _is_harmless(option: str) -> bool:
    name, has_value, _ = option.partition("=")
    if name.lower().startswith("x-"):  # for programs beside mount(8): x-systemd.*, x-gvfs-*
        return True
    return name in _IGNORED and (not has_value or name in _IGNORED_WITH_VALUE)


def _refusal(option: str) -> click.BadParameter:
    return click.BadParameter(f"unknown mount option {option!r}", param_hint="-o")
