"""`pixstorefs init`: make a store without mounting it."""

import os
from typing import TYPE_CHECKING

import click

from pixstorefs.cli import known_stores, sudo
from pixstorefs.cli.secrets_options import NewSecret, SecretChoice, secret_options
from pixstorefs.errors import InvalidInput, NoSpace, NotAStore

if TYPE_CHECKING:
    from pixstorefs.keys.secrets import Secret


@click.command("init", short_help="Make a new store.")
@click.argument("store", type=click.Path())
@click.option(
    "--no-padding", is_flag=True, help="Do not hide the sizes of images (saves up to 3 % of space)."
)
@secret_options
def init_command(
    store: str,
    no_padding: bool,
    passphrase_file: str | None,
    passphrase_command: str | None,
    keyfile: str | None,
) -> None:
    """Make STORE, a missing or empty directory, a store.

    Without a secret option and without a terminal a keyfile is made in your data directory.
    """
    from pixstorefs.daemon.linux import protect_memory
    from pixstorefs.trust import header

    choice = SecretChoice(passphrase_file, passphrase_command, keyfile)
    protect_memory()
    path = os.path.realpath(store)
    if header.is_store(path):
        raise InvalidInput(f"{path} is a store already; nothing was changed.")
    refuse_foreign(path)
    made_store(path, NewSecret(choice, path), padding=not no_padding)


def refuse_foreign(path: str) -> None:
    """Refuse a place that cannot become a store before anybody types a passphrase.

    Raises NotAStore, StoreInUse, NoRights.
    """
    from pixstorefs.trust import header

    if not os.path.lexists(path):
        header.require_parent(path)
        return
    if not os.path.isdir(path):
        raise NotAStore(f"{path} is not a directory, so it cannot be a store. Nothing was changed.")
    header.require_nobody_makes(path)
    if os.listdir(path):
        raise NotAStore(
            f"{path} is not a store and not empty: pixstorefs never turns somebody's files into a store. "
            "Nothing was changed; choose an empty or a new directory."
        )


def made_store(path: str, new: NewSecret, *, padding: bool = True) -> "Secret":
    """Make the store, and say what opens it; returns that."""
    from pixstorefs.disk.files import FULL_ERRNOS
    from pixstorefs.trust import header

    try:
        header.create_store(path, new.make, padding=padding)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise  # told for every command alike
        kind = NoSpace if error.errno in FULL_ERRNOS else NotAStore
        raise kind(f"{path} cannot be made a store: {error.strerror} ({error.filename or path})") from error
    known_stores.remember(path)
    new.tell(path)
    sudo.tell_new(path)
    assert new.secret is not None
    return new.secret
