"""The command line: one file a command, each translating options into one call of the layers below.

`main` is the only way out: it turns every error into one line for people and an exit status. Commands
import what they need inside, so that --help and refusals do not wait for FUSE, SQLite and ciphers.
"""

import os
import sys
from typing import NoReturn

import click

import pixstorefs
from pixstorefs.cli import console
from pixstorefs.cli.check import check_command
from pixstorefs.cli.init import init_command
from pixstorefs.cli.key import key_group
from pixstorefs.cli.mount import mount_command
from pixstorefs.cli.mount_helper import exit_status, mount_helper_command
from pixstorefs.cli.snapshot import snapshot_command
from pixstorefs.cli.status import status_command
from pixstorefs.cli.umount import umount_command
from pixstorefs.errors import InvalidInput, NoRights, PixstoreError

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    console.result(f"pixstorefs {pixstorefs.__version__}")
    context.exit()


@click.group(
    name="pixstorefs",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A missing store is created by its first mount: pixstorefs mount STORE MOUNTPOINT",
)
@click.option("--debug", is_flag=True, help="Show tracebacks, and log in detail.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def commands(debug: bool) -> None:
    """A directory of images that is plaintext while mounted and ciphertext on disk, saved atomically."""


commands.add_command(check_command)
commands.add_command(init_command)
commands.add_command(key_group)
commands.add_command(mount_command)
commands.add_command(snapshot_command)
commands.add_command(status_command)
commands.add_command(umount_command)


def main() -> NoReturn:
    """`pixstorefs`: run the command of this process and end with its exit status."""
    arguments = sys.argv[1:]
    # No command has a slash in its name, and mount.fuse3 gives the store in that place.
    if arguments and "/" in arguments[0]:
        mount_main()
    sys.exit(console.flushed(run(commands, "pixstorefs", arguments)))


def mount_main() -> NoReturn:
    """`mount.pixstorefs`, for mount(8)."""
    sys.exit(console.flushed(exit_status(run(mount_helper_command, "mount.pixstorefs", sys.argv[1:]))))


def run(command: click.Command, name: str, arguments: list[str]) -> int:
    """Run one command; returns its exit status. No traceback leaves here, except by --debug."""
    console.open_standard_descriptors()
    debug = arguments[:1] == ["--debug"]
    if not _is_somewhere():
        console.error("the directory you are in was deleted: change into one that exists, and try again")
        return InvalidInput.exit_code
    try:
        status = command.main(arguments, prog_name=name, standalone_mode=False)
    except PixstoreError as error:
        if debug:
            console.traceback(error)
        console.error(str(error))
        return error.exit_code
    except click.ClickException as error:
        return _usage_problem(error)
    except (KeyboardInterrupt, click.Abort):
        console.error("interrupted")
        return _EXIT_INTERRUPTED
    except PermissionError as error:
        console.error(str(NoRights.to(error)))
        return NoRights.exit_code
    except Exception as error:  # noqa: BLE001  the last line of defence against tracebacks
        return console.unexpected(error, debug=debug)
    return status if isinstance(status, int) else 0


def _is_somewhere() -> bool:
    """Whether a relative path leads anywhere: getcwd(2) fails in a directory that was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _usage_problem(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        console.plain(*error.format_message().splitlines())
        return error.exit_code
    console.error(*error.format_message().splitlines())
    context = getattr(error, "ctx", None)
    if context is not None:
        console.plain(f"Try: {context.command_path} --help")
    return error.exit_code
