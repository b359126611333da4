"""The options of mount(8), without a mount: what is understood, ignored, refused."""

import click
import pytest

from pixstorefs.cli import duration
from pixstorefs.cli.mount_options import MountOptions, parse


def test_nothing_asked_for() -> None:
    """What mount(8), systemd and desktops put into a line, and is none of our business."""
    harmless = "rw,defaults,noauto,nofail,_netdev,user=anna,users,comment=mine,noatime"
    assert parse([harmless, "x-systemd.automount,X-mount.mkdir", ""]) == MountOptions()


def test_all_that_is_understood() -> None:
    given = "ro,allow_other,default_permissions,durable_close,log_names,idle_unmount=15m,busy_poll=250"
    assert parse([given, "noexec,keyfile=/k,setuid=anna,uid=0,gid=4294967294,umask=027"]) == MountOptions(
        read_only=True,
        allow_other=True,
        default_permissions=True,
        durable_close=True,
        log_names=True,
        idle_unmount_s=900.0,
        busy_poll_us=250,
        flags=frozenset(["noexec"]),
        keyfile="/k",
        run_as="anna",
        uid=0,
        gid=4294967294,
        umask=0o27,
    )


def test_last_of_two_wins() -> None:
    assert parse(["ro,idle_unmount=1h,exec", "noexec,idle_unmount=0,rw"]) == MountOptions(
        flags=frozenset(["noexec"])
    )


def test_values_with_commas_stand_in_quotes() -> None:
    """As in mount(8); a quote that is never closed, or stands within, is a character like any other."""
    asked = parse(['keyfile="/a, b/c.key",ro,passphrase_file=/it\'s/"mine"'])
    assert (asked.keyfile, asked.read_only, asked.passphrase_file) == ("/a, b/c.key", True, '/it\'s/"mine"')
    assert parse(['keyfile="/a']).keyfile == '"/a'


@pytest.mark.parametrize("option", ["fmask=022", "bogus", "nofail=1", "keyfile", "keyfile=", "sync"])
def test_what_cannot_be_done_is_named(option: str) -> None:
    with pytest.raises(click.BadParameter, match=option):
        parse([f"ro,{option},noexec"])
    assert parse([f"ro,{option}"], sloppy=True) == MountOptions(read_only=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("90s", 90), ("5min", 300), ("15m", 900), ("2h", 7200), ("1d", 86400)],
)
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert duration.parse_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 m", "-1", "1.5h", "5w", "\u0665m", "9999999s"])
def test_lengths_of_time_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="90s, 15m or 2h"):
        duration.parse_s(text)
    with pytest.raises(click.BadParameter, match="idle_unmount"):
        parse([f"idle_unmount={text or 'x'}"])


@pytest.mark.parametrize("text", ["15", "1", "00"])
def test_a_length_of_time_needs_a_unit(text: str) -> None:
    """Seconds would be as good a guess as minutes."""
    with pytest.raises(ValueError, match=f"{text}s for seconds, {text}m for minutes"):
        duration.parse_s(text)
    with pytest.raises(click.BadParameter, match=r"idle_unmount: .* for minutes"):
        parse([f"idle_unmount={text}"])


@pytest.mark.parametrize("option", ["busy_poll=", "busy_poll=-1", "busy_poll=1s", "busy_poll=10001"])
def test_busy_poll_has_limits(option: str) -> None:
    """A daemon that polls for long takes a processor from everybody else."""
    with pytest.raises(click.BadParameter, match="busy_poll"):
        parse([option])


def test_users_and_groups_by_name() -> None:
    asked = parse(["uid=root,gid=root"])
    assert (asked.uid, asked.gid) == (0, 0)


@pytest.mark.parametrize(
    "option", ["uid=nobody-known", "gid=-1", "uid=4294967295", "umask=8", "umask=1777", "umask=-1"]
)
def test_users_and_modes_that_are_none(option: str) -> None:
    with pytest.raises(click.BadParameter, match=option.partition("=")[0]):
        parse([option])
