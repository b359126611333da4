"""`pixstorefs status`: what is mounted where, and what recovery decided when it was."""

import os
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import console
from pixstorefs.cli.paths import Mountpoint

if TYPE_CHECKING:
    from pixstorefs.daemon.status import MountStatus


@click.command("status", short_help="Show what is mounted, and what recovery decided.")
@click.argument("path", type=Mountpoint(), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each mount, in a list.")
@click.pass_context
def status_command(context: click.Context, path: str | None, as_json: bool) -> None:
    """Show all mounts, or the one of PATH: a store, a mountpoint, or anything in a mount.

    The exit status is 1 if PATH is not mounted, or its mount is dead or does not answer.
    """
    from pixstorefs.daemon.status import statuses

    found = statuses(path)
    if as_json:
        import dataclasses
        import json

        content = json.dumps([dataclasses.asdict(status) for status in found], indent=1)
        console.result(*content.splitlines())
    else:
        for status in found:
            if path is not None and _is_in(path, status):
                console.result(f"{path} is in the mount {status.mountpoint}")
            _show(status)
        if not found:
            console.result("nothing is mounted" if path is None else _not_mounted(path))
    if path is not None and not any(status.answers for status in found):
        context.exit(1)


def _is_in(path: str, status: "MountStatus") -> bool:
    # What does not answer is not touched: then PATH was found by its name.
    return status.answers and os.path.realpath(path) not in (status.store_path, status.mountpoint)


def _not_mounted(path: str) -> str:
    from pixstorefs.daemon.status import holder_of

    pid = holder_of(path)
    return f"{path} is not mounted{f', and in use by process {pid}' if pid else ''}"


def _show(status: "MountStatus") -> None:
    state = f"process {status.pid}" if status.pid else "process not known"
    if not status.alive:
        state = "dead: its process was killed; mount it again, or clean it away with pixstorefs umount"
    elif status.stopped:
        state += f" is stopped and does not answer; kill -CONT {status.pid} lets it go on"
    elif not status.answers:
        state += " does not answer" if status.pid else ", and does not answer"
    console.result(f"{status.store_path} on {status.mountpoint}")
    console.result(f"  {state}")
    if status.since is not None:
        console.result(f"  since {status.since}{', read-only' if status.read_only else ''}")
    if status.free_bytes is not None:
        console.result(f"  {status.free_bytes / 1e9:.1f} GB free")
    if status.recovery is None:
        console.result("  recovery: not known, there is no log of its start")
    elif not status.recovery:
        console.result("  recovery: the store was consistent when it was mounted")
    for line in status.recovery or []:
        console.result(f"  recovery: {line}")
