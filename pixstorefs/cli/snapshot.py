"""`pixstorefs snapshot`: make another directory a complete store, mounted or not."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import console
from pixstorefs.cli.paths import Mountpoint, store_meant
from pixstorefs.cli.secrets_options import SecretChoice, secret_for_store, secret_options
from pixstorefs.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixstorefs.check.check import Progress
    from pixstorefs.snapshot.snapshot import Outcome


@click.command("snapshot", short_help="Make or renew a complete copy of a store, also while it is mounted.")
@click.argument("store", type=Mountpoint())
@click.argument("dest", type=click.Path())
@click.option("--verify", is_flag=True, help="Read every byte of the snapshot before it counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@secret_options
def snapshot_command(
    store: str,
    dest: str,
    verify: bool,
    as_json: bool,
    passphrase_file: str | None,
    passphrase_command: str | None,
    keyfile: str | None,
) -> None:
    """Make DEST a store that shows STORE as it is at one moment, or bring an earlier snapshot up to date.

    STORE may be mounted and in use. DEST is missing, empty, or a snapshot of STORE; only what is new is
    brought: as hard links on the same file system, as clones or copies elsewhere. Until the end DEST shows
    the snapshot before. It opens with the secrets of STORE, and is on the disk when the command returns.

    The index and the presence and size of every object are always checked; --verify opens every object, and
    brings anew what is damaged in DEST alone. A damaged STORE is refused, and DEST keeps what it has.

    \b
    Exit status:
      0   the snapshot is complete
      8   the index of STORE is damaged
      10  a disk is full
      12  images of STORE are damaged or lost
      14  the disk failed
      15  DEST cannot take it: its file system refuses a file, or a part of one
    and 2 (DEST cannot be used), 3 (DEST in use), 4 (wrong key), 5 (no store) as everywhere.
    """
    from pixstorefs.daemon.linux import protect_memory
    from pixstorefs.snapshot.snapshot import Snapshot, refuse_overlap

    choice = SecretChoice(passphrase_file, passphrase_command, keyfile)
    protect_memory()
    # SIGTERM ends a snapshot as cleanly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began_s = time.monotonic()
    place, target = store_meant(store), os.path.realpath(dest)
    refuse_overlap(place, target)
    _refuse_mounts(place, target)
    with Snapshot(place, target, secret_for_store(choice, place)) as snapshot:
        with _shown("bringing") as progress:
            snapshot.bring(progress)
        if verify:
            with _shown("verifying") as progress:
                snapshot.verify(progress)
        outcome = snapshot.finish()
    for line in outcome.recovered:
        console.note(f"the store was not closed cleanly: {line}")
    _show(outcome, time.monotonic() - began_s, verified=verify, as_json=as_json)


@contextmanager
def _shown(label: str) -> "Iterator[Progress]":
    from pixstorefs.check.check import Progress
    from pixstorefs.cli.check_progress import bar

    progress = Progress()
    with bar(progress, shown=sys.stderr.isatty(), label=label) as progress.moved:
        yield progress


def _refuse_mounts(store: str, target: str) -> None:
    """Neither may lie in a mount of the other: a snapshot would hold itself. Raises InvalidInput."""
    from pixstorefs.daemon import mounts

    for inner, outer in ((target, store), (store, target)):
        for entry in mounts.mounted():
            if entry.is_ours and entry.source == outer and mounts.is_inside(inner, entry.mountpoint):
                raise InvalidInput(
                    f"{inner} lies in {entry.mountpoint}, where {outer} is mounted: "
                    "give a directory outside for the snapshot"
                )


def _show(outcome: "Outcome", seconds: float, *, verified: bool, as_json: bool) -> None:
    if as_json:
        import json

        content = {
            "images": outcome.images,
            "bytes": outcome.size_bytes,
            "added": outcome.added,
            "added_bytes": outcome.added_bytes,
            **{way: outcome.ways.get(way, 0) for way in ("linked", "cloned", "copied")},
            "removed": outcome.removed,
            "verified": verified,
            "seconds": round(seconds, 3),
        }
        console.result(json.dumps(content))
        return
    how = ", ".join(f"{count} {way}" for way, count in outcome.ways.items())
    console.result(
        f"snapshot of {outcome.images} images, {outcome.size_bytes / 1e6:.1f} MB, in {seconds:.1f} s: "
        f"{outcome.added} objects new ({how or 'nothing'}, {outcome.added_bytes / 1e6:.1f} MB), "
        f"{outcome.removed} removed{', every byte verified' if verified else ''}"
    )
