"""`pixstorefs key`: which secrets open a store. Each command is one atomic change."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pixstorefs.cli import console
from pixstorefs.cli.paths import Mountpoint, store_meant
from pixstorefs.cli.secrets_options import (
    SecretChoice,
    at_terminal,
    refuse_inside,
    secret_for_store,
    secret_options,
    warn_of_readers,
)
from pixstorefs.errors import InvalidInput

if TYPE_CHECKING:
    from pixstorefs.keys.secrets import Secret
    from pixstorefs.keys.slots import SlotInfo

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STILL_OPENS = (
    "With an older copy of keys.json (from a backup, say) that secret still opens it, new images as well: "
    "the master key stays the same. If somebody may have both, make a new store and copy the images over."
)


@dataclass(frozen=True, slots=True)
class _NewSecretChoice:
    """Where the secret that is added comes from; at most one is set."""

    passphrase_file: str | None
    passphrase_command: str | None
    keyfile: str | None
    recovery_code: bool = False

    def __post_init__(self) -> None:
        given = [self.passphrase_file, self.passphrase_command, self.keyfile]
        if sum(value is not None for value in given) + self.recovery_code > 1:
            raise click.UsageError("give only one new secret")

    @property
    def advice(self) -> str:
        """What to do with the new secret, to follow other sentences."""
        return f" Back the keyfile {self.keyfile} up, apart from the store." if self.keyfile else ""

    def make(self) -> "Secret":
        """The new secret; a keyfile that does not exist is made. Raises InvalidInput, WrongKey."""
        from pixstorefs.keys import secrets

        if self.passphrase_file is not None:
            warn_of_readers(self.passphrase_file)
            return secrets.passphrase_from_file(self.passphrase_file)
        if self.passphrase_command is not None:
            return secrets.passphrase_from_command(self.passphrase_command)
        if self.keyfile is not None:
            if os.path.lexists(self.keyfile):
                warn_of_readers(self.keyfile)
                return secrets.secret_from_keyfile(self.keyfile)
            return secrets.create_keyfile(self.keyfile)
        if at_terminal():
            return secrets.passphrase_from_prompt(confirm=True, prompt="New passphrase: ")
        raise InvalidInput(
            "no new secret was given: use --new-passphrase-file, --new-passphrase-command or --new-keyfile, "
            "or a terminal. Nothing was changed."
        )


def _new_secret_options(command: _Command) -> _Command:
    for option in (
        click.option("--new-keyfile", metavar="FILE", help="The new secret: a keyfile, made if missing."),
        click.option("--new-passphrase-command", metavar="CMD", help="Shell command that prints it."),
        click.option(
            "--new-passphrase-file", metavar="FILE", help="File (or /dev/fd/N, or - for stdin) with it."
        ),
    ):
        command = option(command)
    return command


@click.group("key", short_help="List, add, remove and change the keys of a store.")
def key_group() -> None:
    """List, add, remove and change the keys of a store: the secrets of which each opens it alone.

    Changes need an unmounted store and a secret that opens it: what an option names, PIXSTOREFS_PASSPHRASE,
    the store's keyfile in your data directory, or a prompt. A crash leaves the old keys or the new ones.
    """
    from pixstorefs.daemon.linux import protect_memory

    protect_memory()


@key_group.command("list", short_help="Show label, kind and cost of each key.")
@click.argument("store", type=Mountpoint())
def list_command(store: str) -> None:
    """Show the keys of STORE: label, kind, and what a guess at a passphrase costs. Needs no secret."""
    from pixstorefs.keys.slots import infos
    from pixstorefs.trust import header

    place = store_meant(store)
    header.read_header(place)
    rows = [(_shown(info.label), info.kind, _cost(info)) for info in infos(header.keys_json(place))]
    label_width, kind_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for label, kind, cost in rows:
        console.result(f"{label:{label_width}}  {kind:{kind_width}}  {cost}")


@key_group.command("add", short_help="Let another secret open the store, too.")
@click.argument("store", type=Mountpoint())
@click.option("--label", required=True, metavar="TEXT", help="What the key is called in the list.")
@click.option("--recovery-code", is_flag=True, help="The new secret: a random code, shown once, for paper.")
@_new_secret_options
@secret_options
def add_command(
    store: str,
    label: str,
    recovery_code: bool,
    new_passphrase_file: str | None,
    new_passphrase_command: str | None,
    new_keyfile: str | None,
    **options: str | None,
) -> None:
    """Let another secret open STORE, too. Without an option for it a new passphrase is asked for.

    A recovery code is given like a passphrase; small letters, blanks and missing dashes do not matter.
    """
    from pixstorefs.keys import recovery_code as codes
    from pixstorefs.keys.secrets import Secret
    from pixstorefs.store.key_slots import KeySlots

    new = _NewSecretChoice(new_passphrase_file, new_passphrase_command, new_keyfile, recovery_code)
    choice = SecretChoice(**options)
    place = store_meant(store)
    refuse_inside(new_keyfile, place)
    with KeySlots(place) as slots:
        secret = secret_for_store(choice, place)
        if not recovery_code:
            slots.add(secret, new.make, label)
            console.note(f"added the key {label!r} to the store {place}.{new.advice}")
            return
        code = codes.new_code(os.urandom)
        slots.add(secret, lambda: Secret("passphrase", code.encode()), label)
    # Only now: a code on paper that opens nothing would be worse than a key whose code nobody has seen.
    try:
        click.echo(code)
    except OSError as error:
        raise InvalidInput(
            f"the recovery code could not be shown ({error.strerror}): nobody knows it now. Remove the key "
            f"{label!r} that it opens, and add another one."
        ) from None
    console.note(
        f"added the recovery code as the key {label!r} to the store {place}. Write it down, and keep it "
        "apart from the store: it is not shown again, and opens the store like a passphrase."
    )


@key_group.command("remove", short_help="Let a secret open the store no more.")
@click.argument("store", type=Mountpoint())
@click.argument("label")
@secret_options
def remove_command(store: str, label: str, **options: str | None) -> None:
    """Remove the key called LABEL from STORE; the secret to give is that of a key that stays.

    What older copies of keys.json hold, in backups say, it does not take back.
    """
    from pixstorefs.store.key_slots import KeySlots

    choice = SecretChoice(**options)
    place = store_meant(store)
    with KeySlots(place) as slots:
        slots.remove(label, secret_for_store(choice, place, slots.kinds(without_label=label)))
    console.note(f"removed the key {label!r} from the store {place}. {_STILL_OPENS}")


@key_group.command("change", short_help="Replace a secret by another one.")
@click.argument("store", type=Mountpoint())
@_new_secret_options
@secret_options
def change_command(
    store: str,
    new_passphrase_file: str | None,
    new_passphrase_command: str | None,
    new_keyfile: str | None,
    **options: str | None,
) -> None:
    """Let a new secret open STORE instead of the one given. Without options both are asked for.

    Of a store that opens with passphrases and keyfiles it is a passphrase, unless --keyfile names one.
    """
    from pixstorefs.store.key_slots import KeySlots

    new = _NewSecretChoice(new_passphrase_file, new_passphrase_command, new_keyfile)
    choice = SecretChoice(**options)
    place = store_meant(store)
    refuse_inside(new_keyfile, place)
    with KeySlots(place) as slots:
        # Not the keyfile that happens to lie in the data directory, where somebody means a passphrase.
        kinds = slots.kinds() & {"passphrase"} or slots.kinds()
        label = slots.change(secret_for_store(choice, place, kinds), new.make)
    console.note(
        f"changed the key {label!r} of the store {place}: its old secret opens it no more. "
        f"{_STILL_OPENS}{new.advice}"
    )


def _cost(info: "SlotInfo") -> str:
    if info.cost is None:
        return "hkdf-sha256 (a keyfile is random: guessing it is hopeless as it is)"
    cost = info.cost
    return f"argon2id, {cost.memory_kib / 1024:g} MiB, {cost.iterations} passes, {cost.lanes} lanes"


def _shown(label: str) -> str:
    """A label that cannot play tricks on the terminal: whoever can write keys.json chooses it."""
    return label if label.isprintable() and label else repr(label)
