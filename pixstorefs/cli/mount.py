"""`pixstorefs mount`: everything that can be refused is refused here, then the daemon takes over."""

import os
import shlex
import sys
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import console, duration, known_stores, mount_options, sudo
from pixstorefs.cli.init import made_store, refuse_foreign
from pixstorefs.cli.mount_options import MOST_BUSY_POLL_US, MountOptions
from pixstorefs.cli.paths import Mountpoint
from pixstorefs.cli.secrets_options import NewSecret, SecretChoice, secret_for_store, secret_options
from pixstorefs.errors import FuseUnavailable, NotAStore

if TYPE_CHECKING:
    from pixstorefs.daemon.plan import MountPlan
    from pixstorefs.keys.secrets import Secret


@click.command("mount", short_help="Mount a store, creating it if it is missing.")
@click.argument("store", type=click.Path())
@click.argument("mountpoint", type=Mountpoint())
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("-r", "--read-only", is_flag=True, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as file modes allow.")
@click.option("--durable-close", is_flag=True, help="Let close wait until the image survives power loss.")
@click.option(
    "--idle-unmount",
    callback=duration.of_option,
    metavar="TIME",
    help="Unmount after that long without use, as 90s, 15m or 2h; 0 is never.",
)
@click.option(
    "--create/--no-create",
    default=None,
    help="Make a missing store, even where you had one, or never. Otherwise where you had none.",
)
@click.option(
    "--break-lock", is_flag=True, help="Take the store from an owner on another machine that is gone."
)
@click.option(
    "--busy-poll",
    "busy_poll_us",
    type=click.IntRange(0, MOST_BUSY_POLL_US),
    metavar="MICROSECONDS",
    help="Poll that long for the next request before sleeping (100); 0 is never.",
)
@click.option("--log-names", is_flag=True, help="Name images in the log; else it has inode numbers.")
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
    idle_unmount: float | None,
    create: bool | None,
    break_lock: bool,
    busy_poll_us: int | None,
    log_names: bool,
    options: tuple[str, ...],
    passphrase_file: str | None,
    passphrase_command: str | None,
    keyfile: str | None,
) -> None:
    """Mount STORE on MOUNTPOINT, and return when it answers.

    A missing or empty STORE is created, the directory it is to lie in is not. The secret is, in this order:
    what an option names, PIXSTOREFS_PASSPHRASE, the store's keyfile in your data directory, a prompt.
    """
    asked = mount_options.parse(options)
    if asked.remount:
        raise click.BadParameter(
            f"as root: mount -o remount,{'ro' if asked.read_only else 'rw'} {mountpoint}",
            param_hint="-o remount",
        )
    asked.read_only |= read_only
    asked.allow_other |= allow_other
    asked.durable_close |= durable_close
    asked.log_names |= log_names
    if idle_unmount is not None:
        asked.idle_unmount_s = idle_unmount
    if busy_poll_us is not None:
        asked.busy_poll_us = busy_poll_us
    choice = SecretChoice(
        passphrase_file or asked.passphrase_file, passphrase_command, keyfile or asked.keyfile
    )
    debug = bool(context.parent and context.parent.params["debug"])
    mount(
        store,
        mountpoint,
        asked,
        choice,
        create_missing=create,
        break_lock=break_lock,
        foreground=foreground,
        debug=debug,
    )


def mount(
    store: str,
    mountpoint: str,
    asked: MountOptions,
    choice: SecretChoice,
    *,
    create_missing: bool | None,
    break_lock: bool = False,
    foreground: bool = False,
    debug: bool = False,
) -> None:
    """Check everything, then mount; ends the command with the exit status of the mount.

    `create_missing`: whether a missing store is made; None where nothing tells that its disk is absent.
    Raises PixstoreError where it is refused; nothing is left behind then.
    """
    from pixstorefs.daemon import linux, user
    from pixstorefs.daemon import mountpoint as mountpoints
    from pixstorefs.trust import header

    if asked.run_as is not None:
        user.become(asked.run_as)
    linux.protect_memory()
    path = os.path.realpath(store)
    mountpoints.require_fuse()
    real = mountpoints.check(mountpoint, path)
    if header.is_store(path):
        known_stores.remember(path)
        sudo.tell_existing(path)
        secret = secret_for_store(choice, path)
    else:
        _refuse_to_make(path, real, create_missing, read_only=asked.read_only)
        secret = made_store(path, NewSecret(choice, path))
    created = mountpoints.create(real)
    plan = _plan(path, real, asked, break_lock=break_lock, foreground=foreground)
    try:
        status = _serve(plan, secret, foreground=foreground, debug=debug)
    except BaseException:
        if created:
            mountpoints.remove_created(real)
        raise
    click.get_current_context().exit(status)


def _plan(path: str, real: str, asked: MountOptions, *, break_lock: bool, foreground: bool) -> "MountPlan":
    from pixstorefs.daemon import user
    from pixstorefs.daemon.plan import MountPlan

    return MountPlan(
        path,
        real,
        read_only=asked.read_only,
        allow_other=asked.allow_other,
        durable_close=asked.durable_close,
        idle_unmount_s=asked.idle_unmount_s,
        busy_poll_s=asked.busy_poll_us / 1e6,
        # Without allow_other there is nobody but root in a mount of root's, who may do everything anyway.
        kernel_checks=asked.default_permissions or asked.allow_other or os.geteuid() != 0,
        # Root may do everything anyway, and with allow_other the numbers tell several people apart.
        mounter=None if asked.allow_other or user.may_do_everything() else (os.geteuid(), os.getegid()),
        uid=asked.uid,
        gid=asked.gid,
        umask=asked.umask,
        break_lock=break_lock,
        # A terminal keeps nothing; what else reads our words is a journal, a file or a mail of cron's.
        log_names=asked.log_names or (foreground and sys.stderr.isatty()),
        tell_names=asked.log_names or sys.stderr.isatty(),
        flags=asked.flags,
    )


def _refuse_to_make(path: str, mountpoint: str, create_missing: bool | None, *, read_only: bool) -> None:
    """Raises PixstoreError unless a new store is to be made where there is none."""
    init = f"pixstorefs init {shlex.quote(path)}"
    if create_missing is None and not read_only and known_stores.had(path):
        raise NotAStore(
            f"there is no store at {path}, and you had one there: its disk is probably not mounted. Nothing "
            f"was made. Mount the disk, and try again. To make a new, empty store there: {init}"
        )
    refuse_foreign(path)
    if read_only:
        raise NotAStore(f"there is no store at {path}, and none is created for a read-only mount.")
    if create_missing is False:
        raise NotAStore(f"there is no store at {path}. Is its disk mounted? To make a new store: {init}")
    if create_missing is None:
        sudo.refuse_new(path, mountpoint)


def _serve(plan: "MountPlan", secret: "Secret", *, foreground: bool, debug: bool) -> int:
    from pixstorefs.daemon import logs, process

    def body(starter: process.Starter) -> int:
        # Only the process that serves imports trio and FUSE: the fork stays small and free of their state.
        try:
            from pixstorefs.daemon.serve import serve
        except ImportError as error:
            if "libfuse3" not in str(error):
                raise
            raise FuseUnavailable(f"libfuse3 is missing ({error}). Install the package fuse3.") from error
        return serve(plan, secret, starter)

    if foreground:
        return process.run_in_foreground(body, debug=debug)
    for note in process.run_in_background(body, logs.path_for(plan.mountpoint), debug=debug):
        console.note(note)
    return 0
