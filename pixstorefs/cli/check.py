"""`pixstorefs check`: verify a store, mounted or not, and repair one that is not."""

import os
import shlex
import signal
import sys
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import console
from pixstorefs.cli.paths import Mountpoint, store_meant
from pixstorefs.cli.secrets_options import SecretChoice, secret_for_store, secret_options
from pixstorefs.errors import CorruptStore, ImageNotFound

if TYPE_CHECKING:
    from pixstorefs.check.check import Check, Progress
    from pixstorefs.cli.check_progress import Bookmark
    from pixstorefs.cli.check_report import CheckReport
    from pixstorefs.index.findings import Finding
    from pixstorefs.keys.secrets import Secret


@click.command("check", short_help="Verify every image and the index; repair.")
@click.argument("store", type=Mountpoint())
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--repair", is_flag=True, help="Move what is damaged to /lost+found (of an unmounted store).")
@click.option("--break-lock", is_flag=True, help="For --repair: the owner on another machine is gone.")
@click.option("--resume", is_flag=True, help="Go on where the last check of this store was interrupted.")
@secret_options
@click.pass_context
def check_command(
    context: click.Context,
    store: str,
    path: str | None,
    as_json: bool,
    repair: bool,
    break_lock: bool,
    resume: bool,
    passphrase_file: str | None,
    passphrase_command: str | None,
    keyfile: str | None,
) -> None:
    """Verify STORE: the index and what must hold in it, and every byte of every image.

    The store may be mounted and in use, or lie on read-only media; nothing is changed. PATH, as in the mount
    (2026/holidays), checks only the images there. --repair takes the store for itself and moves what cannot
    be read to /lost+found inside it; nothing is deleted. A damaged or missing index is restored from its copy
    and from what can be read of it.

    \b
    Exit status:
      0    all is well, or all was repaired
      1    only space is wasted: objects that belong to no image
      8    index, header or key slots are damaged
      12   images are damaged or lost
      130  interrupted; --resume goes on
    and 3 (in use, for --repair), 4 (wrong key), 5 (no store) as everywhere.
    """
    from pixstorefs.cli.check_report import CheckReport
    from pixstorefs.daemon.linux import protect_memory
    from pixstorefs.index.findings import Finding, Reaction

    if path is not None and (repair or resume):
        raise click.UsageError("--repair and --resume are for whole stores: leave PATH out")
    if break_lock and not repair:
        raise click.UsageError("--break-lock is for --repair: a check needs no lock")
    if repair and resume:
        raise click.UsageError("--repair looks at everything: leave --resume out")
    choice = SecretChoice(passphrase_file, passphrase_command, keyfile)
    protect_memory()
    # SIGTERM ends a check as cleanly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = store_meant(store)
    report = CheckReport()
    try:
        secret = secret_for_store(choice, place)
        if repair:
            _repair(place, secret, report, break_lock=break_lock)
        else:
            _check(place, secret, path, report, resume=resume)
    except CorruptStore as error:
        report.left = None
        report.findings.append(Finding("store-damaged", Reaction.MEND, str(error)))
    report.stop_clock()
    if as_json:
        report.show_json()
    else:
        report.show_text()
    if report.interrupted:
        _tell_how_to_go_on(report, store, whole=path is None and not repair)
    context.exit(report.exit_status)


def _check(place: str, secret: "Secret", path: str | None, report: "CheckReport", *, resume: bool) -> None:
    from pixstorefs.check.check import Check, Progress
    from pixstorefs.check.view import StoreView
    from pixstorefs.cli.check_progress import Bookmark

    progress = Progress()
    with StoreView(place, secret) as view:
        check = Check(view, progress)
        if path is not None:
            _collect(check.run_below(_inode_at(check, path)), progress, report, None)
            return
        bookmark = Bookmark(view.store_id)
        if resume:
            seconds = bookmark.load(progress)
            if seconds is None:
                console.note("no check of this store was interrupted: everything is checked.")
            else:
                report.seconds = seconds
        _collect(check.run(), progress, report, bookmark)
        if not report.interrupted:
            bookmark.remove()


def _repair(place: str, secret: "Secret", report: "CheckReport", *, break_lock: bool) -> None:
    """Check and repair. Raises CorruptStore where the index cannot even be restored, StoreInUse."""
    from pixstorefs.check.check import Check, Progress
    from pixstorefs.check.repair import Repair, prepare
    from pixstorefs.check.view import StoreView
    from pixstorefs.store.opening import open_unlocked

    done = prepare(place, secret, break_lock=break_lock)
    progress = Progress()
    with closing(open_unlocked(place, secret)) as store, StoreView(place, secret) as view:
        check = Check(view, progress, idle=True)
        _collect(check.run(), progress, report, None)
        if report.interrupted:
            return
        for found in report.findings:
            if found.kind in ("index-damaged", "index-outdated"):
                raise CorruptStore("nothing was repaired: the rows of a damaged index cannot be trusted")
        recovered = [f"recovered: {line}" for line in store.report]
        report.done = recovered + Repair(store).run(report.findings, done)
    with StoreView(place, secret) as mended:
        report.left = list(Check(mended, Progress(), idle=True).run_index())


def _tell_how_to_go_on(report: "CheckReport", store: str, *, whole: bool) -> None:
    if report.not_remembered is not None:
        console.note(f"interrupted; where it stood could not be written down ({report.not_remembered}).")
    elif whole:
        console.note(f"interrupted. To go on: pixstorefs check --resume {shlex.quote(store)}")
    else:
        console.note("interrupted.")


def _collect(
    findings: "Iterable[Finding]", progress: "Progress", report: "CheckReport", bookmark: "Bookmark | None"
) -> None:
    """Run a check to its end or its interruption, showing how far it is."""
    from pixstorefs.cli.check_progress import SAVE_INTERVAL_S, Regularly, bar

    def remember() -> None:
        if bookmark is not None:
            try:
                bookmark.save(progress, report.stop_clock())
            except OSError as error:
                report.not_remembered = str(error)

    save_regularly = Regularly(SAVE_INTERVAL_S, remember)
    try:
        with bar(progress, shown=sys.stderr.isatty()) as move_bar:

            def moved() -> None:
                move_bar()
                save_regularly()

            progress.moved = moved
            report.findings.extend(findings)
    except KeyboardInterrupt:
        report.interrupted = True
        remember()
    report.images, report.verified_bytes = progress.images, progress.verified_bytes
    report.total_images = progress.total_images


def _inode_at(check: "Check", path: str) -> int:
    """The inode of a path inside the store. Raises ImageNotFound."""
    ino = check.inode_at([os.fsencode(name) for name in path.split("/") if name])
    if ino is None:
        raise ImageNotFound(f"there is no {path!r} in the store: give a path as in the mount")
    return ino
