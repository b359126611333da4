"""`pixstorefs mount`: everything that can be refused is refused here, then the daemon takes over."""

import os
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import console, mount_options
from pixstorefs.cli.init import create, refuse_foreign
from pixstorefs.cli.secrets_options import NewSecret, SecretChoice, secret_for_store, secret_options
from pixstorefs.errors import FuseUnavailable, NotAStore

if TYPE_CHECKING:
    from pixstorefs.daemon.plan import MountPlan
    from pixstorefs.keys.secrets import Secret


@click.command("mount", short_help="Mount a store, creating it if it is missing.")
@click.argument("store", type=click.Path())
@click.argument("mountpoint", type=click.Path())
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("-r", "--read-only", is_flag=True, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as file modes allow.")
@click.option("--durable-close", is_flag=True, help="Let close wait until the image survives power loss.")
@click.option(
    "--busy-poll",
    "busy_poll_us",
    type=click.IntRange(0, 10_000),
    default=None,
    metavar="MICROSECONDS",
    help="Poll that long for the next request before sleeping (100; 0: never).",
)
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT...]", help="Options of mount(8) and fstab.")
@secret_options
@click.pass_context
def mount_command(
    context: click.Context,
    store: str,
    mountpoint: str,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    durable_close: bool,
    busy_poll_us: int | None,
    options: tuple[str, ...],
    passphrase_file: str | None,
    passphrase_command: str | None,
    keyfile: str | None,
) -> None:
    """Mount STORE on MOUNTPOINT, and return when it answers.

    A missing or empty STORE is created. The secret is, in this order: what an option names,
    PIXSTOREFS_PASSPHRASE, the store's keyfile in your data directory, a prompt.
    """
    from pixstorefs.daemon import linux
    from pixstorefs.daemon import mountpoint as mountpoints
    from pixstorefs.daemon.plan import DEFAULT_BUSY_POLL_S, MountPlan

    asked = mount_options.parse(options)
    choice = SecretChoice(
        passphrase_file or asked.passphrase_file, passphrase_command, keyfile or asked.keyfile
    )
    linux.protect_memory()
    path = os.path.realpath(store)
    read_only = read_only or asked.read_only
    if busy_poll_us is None:
        busy_poll_us = asked.busy_poll_us
    mountpoints.require_fuse()
    real = mountpoints.check(mountpoint, path)
    secret = _secret(choice, path, read_only=read_only)
    # It has done its work, and every program we start would inherit it.
    os.environ.pop("PIXSTOREFS_PASSPHRASE", None)
    created = mountpoints.create(real)
    plan = MountPlan(
        path,
        real,
        read_only=read_only,
        allow_other=allow_other or asked.allow_other,
        durable_close=durable_close or asked.durable_close,
        busy_poll_s=DEFAULT_BUSY_POLL_S if busy_poll_us is None else busy_poll_us / 1e6,
        flags=asked.flags,
    )
    debug = bool(context.parent and context.parent.params["debug"])
    try:
        status = _mount(plan, secret, foreground=foreground, debug=debug)
    except BaseException:
        if created:
            mountpoints.remove_created(real)
        raise
    context.exit(status)


def _secret(choice: SecretChoice, path: str, *, read_only: bool) -> "Secret":
    """The secret that opens the store, after making the store if there is none."""
    from pixstorefs.store import header

    if header.is_store(path):
        return secret_for_store(choice, path)
    refuse_foreign(path)
    if read_only:
        raise NotAStore(f"there is no store at {path}, and none is created for a read-only mount.")
    new = NewSecret(choice)
    create(path, new)
    assert new.secret is not None
    return new.secret


def _mount(plan: "MountPlan", secret: "Secret", *, foreground: bool, debug: bool) -> int:
    from pixstorefs.daemon import logs, process

    def body(announce: process.Announce) -> int:
        # Only the process that serves imports trio and FUSE: the fork stays small and free of their state.
        try:
            from pixstorefs.daemon.serve import serve
        except ImportError as error:
            if "libfuse3" not in str(error):
                raise
            raise FuseUnavailable(f"libfuse3 is missing ({error}). Install the package fuse3.") from error
        return serve(plan, secret, announce)

    if foreground:
        return process.run_in_foreground(body, debug=debug)
    for note in process.run_in_background(body, logs.path_for(plan.mountpoint), debug=debug):
        console.note(note)
    return 0
