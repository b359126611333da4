"""`mount.pixstorefs`: the form in which mount(8), fstab and systemd ask for a mount.

mount(8) looks in /sbin for a program named for the type of the file system and calls it in a form of its own
("EXTERNAL HELPERS" in its manual). mount.fuse3, which stands behind `mount -t fuse.pixstorefs` where there is
no helper of ours, calls the plain program in the same form. umount(8) has such a form, too, but takes every
FUSE file system for plain `fuse` and looks for no other helper, so there is none.
"""

import errno

import click

from pixstorefs.cli import mount_options
from pixstorefs.cli.mount import mount
from pixstorefs.cli.paths import Mountpoint
from pixstorefs.cli.secrets_options import SecretChoice
from pixstorefs.errors import InvalidInput, MountpointUnusable, StoreInUse

# mount(8), "EXIT STATUS"
EXIT_USAGE = 1
EXIT_INTERRUPTED = 8
EXIT_FAILED = 32

_EXIT_STATUSES = {0: 0, click.UsageError.exit_code: EXIT_USAGE, 130: EXIT_INTERRUPTED}


def exit_status(status: int) -> int:
    """What mount(8) calls an exit status of ours."""
    return _EXIT_STATUSES.get(status, EXIT_FAILED)


@click.command("mount.pixstorefs", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Path())
@click.argument("target", type=Mountpoint())
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-f", "fake", is_flag=True, help="Check the options, and mount nothing.")
@click.option("-n", "_no_table", is_flag=True, help="Accepted: no table of mounts is kept.")
@click.option("-v", "_verbose", is_flag=True, help="Accepted: there is nothing more to say.")
@click.option("-o", "options", multiple=True, metavar="OPT[,OPT...]", help="Options, as in fstab.")
@click.option("-N", "namespace", metavar="NS", help="Refused; use nsenter --mount=NS mount ...")
@click.option("-t", "_type", metavar="TYPE", help="Accepted: there is one type.")
def mount_helper_command(
    source: str,
    target: str,
    sloppy: bool,
    fake: bool,
    _no_table: bool,
    _verbose: bool,
    options: tuple[str, ...],
    namespace: str | None,
    _type: str | None,
) -> None:
    """Mount the store SOURCE on TARGET, as mount(8) asks for it.

    A missing store is not created: what is missing at boot is rather its disk.
    """
    _refuse_namespace(namespace)
    # With a remount mount(8) gives all options that the mount has, the kernel's own (user_id=0) included.
    sloppy |= mount_options.parse(options, sloppy=True).remount
    asked = mount_options.parse(options, sloppy=sloppy)
    choice = SecretChoice(asked.passphrase_file, None, asked.keyfile)
    if fake:
        return
    if asked.remount:
        _remount(target, read_only=asked.read_only)
    else:
        mount(source, target, asked, choice, create_missing=False)


def _remount(target: str, *, read_only: bool) -> None:
    """Forbid writing to a mount, or allow it again. The kernel does it; no other option can be changed."""
    from pixstorefs.daemon import linux, mounts

    entry = mounts.find(target)
    if entry is None or not entry.is_ours:
        raise MountpointUnusable(f"no pixstorefs is mounted on {target}, so it cannot be remounted.")
    try:
        linux.remount(entry.mountpoint, entry.options, read_only=read_only)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountpointUnusable(f"{target} cannot be remounted: {error.strerror}.") from error
        users = ", ".join(mounts.users(entry.mountpoint)) or "another program"
        raise StoreInUse(
            f"{target} has files open for writing, in use by {users}: close them first."
        ) from error


def _refuse_namespace(namespace: str | None) -> None:
    """Store and mountpoint might be in different ones; nsenter makes clear which is meant."""
    if namespace is not None:
        raise InvalidInput(
            f"-N {namespace}: pixstorefs does not change namespaces by itself. "
            "Run the whole command there: nsenter --mount=NS ..."
        )
