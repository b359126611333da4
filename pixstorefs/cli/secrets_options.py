"""The options that say where the secret of a store comes from, and the choice where none was given.

A secret itself is never an argument: every user of the machine can read those.
"""

import os
import shlex
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pixstorefs.cli import console
from pixstorefs.errors import InvalidInput, NoRights, WrongKey

if TYPE_CHECKING:
    from pixstorefs.keys.secrets import Secret

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class SecretChoice:
    """What the person chose on the command line; at most one is set."""

    passphrase_file: str | None = None
    passphrase_command: str | None = None
    keyfile: str | None = None

    def __post_init__(self) -> None:
        given = [self.passphrase_file, self.passphrase_command, self.keyfile]
        if sum(value is not None for value in given) > 1:
            raise click.UsageError("give only one of --passphrase-file, --passphrase-command and --keyfile")


def secret_options(command: _Command) -> _Command:
    """Add --passphrase-file, --passphrase-command and --keyfile to a command."""
    for option in (
        click.option("--keyfile", metavar="FILE", help="Open with this keyfile; a new store gets it made."),
        click.option("--passphrase-command", metavar="CMD", help="Shell command that prints the passphrase."),
        click.option(
            "--passphrase-file",
            metavar="FILE",
            help="File (or /dev/fd/N, or - for stdin) with the passphrase.",
        ),
    ):
        command = option(command)
    return command


def secret_for_store(
    choice: SecretChoice, store_path: str, kinds: frozenset[str] = frozenset(("passphrase", "keyfile"))
) -> "Secret":
    """The secret to open an existing store with; one of `kinds` where none was given.

    Raises WrongKey, listing what would open it, where nothing was given and nobody can be asked;
    CorruptStore, NewerFormat, InvalidInput; NoRights if this user may not read the store.
    """
    from pixstorefs.keys import keyring, secrets
    from pixstorefs.trust import header

    environment = secrets.take_from_environment()
    _require_readable(store_path)
    _warn_of_writers(store_path)
    # The header first: a store this program cannot read should not ask for a passphrase.
    store_header = header.read_header(store_path)
    secret = _given(choice) or secrets.passphrase_from_environment(environment)
    if choice.keyfile is not None and _is_inside(choice.keyfile, store_path):
        console.note(
            f"the keyfile {choice.keyfile} lies inside the store, so every copy of the store carries its "
            "key: move it out, best to another disk."
        )
    if secret is not None:
        return secret
    kinds &= keyring.slot_kinds(header.keys_json(store_path))
    default = secrets.default_keyfile_path(store_header.store_id)
    if "keyfile" in kinds and os.path.exists(default):
        secret = secrets.secret_from_keyfile(default)
        warn_of_readers(default)
        return secret
    if "passphrase" in kinds and at_terminal():
        return secrets.passphrase_from_prompt(confirm=False)
    ways = []
    if "passphrase" in kinds:
        ways.append(
            "a passphrase (--passphrase-file, --passphrase-command, PIXSTOREFS_PASSPHRASE, or a terminal)"
        )
    if "keyfile" in kinds:
        ways.append(f"a keyfile (--keyfile; none is at {default})")
    raise WrongKey(
        f"no key was given for the store {store_path}. It opens with {' or '.join(ways) or 'nothing'}."
    )


def _require_readable(store_path: str) -> None:
    """Raises NoRights. SQLite tells an index that may not be read from a damaged one by words at best."""
    from pixstorefs.trust import header

    for name in (header.HEADER_FILE, header.KEYS_FILE, header.INDEX_FILE):
        try:
            os.close(os.open(os.path.join(store_path, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except PermissionError as error:
            raise NoRights.to(error) from None
        except OSError:
            continue  # whatever it is, who reads it says it better


class NewSecret:
    """The secret of a store that is about to be made, asked for before anything is created."""

    def __init__(self, choice: SecretChoice, store_path: str) -> None:
        """Raises InvalidInput or WrongKey where what was given is no secret, or will be none."""
        from pixstorefs.keys import secrets

        refuse_inside(choice.keyfile, store_path)
        environment = secrets.take_from_environment()
        self.secret: Secret | None = None
        self._given_keyfile = choice.keyfile
        self._keyfile: str | None = None
        if choice.keyfile is not None and not os.path.lexists(choice.keyfile):
            self._keyfile = os.path.abspath(choice.keyfile)
        else:
            self.secret = _given(choice) or secrets.passphrase_from_environment(environment)
            if self.secret is None and at_terminal():
                self.secret = _new_passphrase()

    def make(self, store_id: bytes) -> "Secret":
        """The secret, for `create_store`; a keyfile is made now that the store has an id to name it by."""
        from pixstorefs.keys import secrets

        if self.secret is None:
            self._keyfile = self._keyfile or secrets.default_keyfile_path(store_id)
            self.secret = secrets.create_keyfile(self._keyfile)
        return self.secret

    def tell(self, store_path: str) -> None:
        """Say that there is a new store and what opens it."""
        said = f"created the store {store_path}"
        if self._keyfile is not None:
            said += (
                f", opened by the new keyfile {self._keyfile}. "
                "Back that file up: without it nobody can read the images"
            )
        keyfile = self._keyfile or self._given_keyfile
        if keyfile is not None:
            said += f". {self._about_theft(store_path, keyfile)}"
        else:
            said += "."
        console.note(said)

    def _about_theft(self, store_path: str, keyfile: str) -> str:
        """What a keyfile protects from where it lies, and how to have a passphrase. Disk: file system."""
        store = shlex.quote(store_path)
        option = f" --keyfile {shlex.quote(os.path.abspath(keyfile))}" if self._given_keyfile else ""
        add = f"pixstorefs key add {store} --label passphrase{option}"
        if os.stat(keyfile).st_dev != os.stat(store_path).st_dev:
            return f"A copy of the store alone opens nothing. To open it with a passphrase as well: {add}"
        return (
            "It lies on the same disk as the store: whoever has that disk has both, and reads everything. "
            f"Against theft have a passphrase instead: {add} && pixstorefs key remove {store} first"
        )


def refuse_inside(keyfile: str | None, store_path: str) -> None:
    """Refuse a keyfile for a store that lies in it. Raises InvalidInput."""
    if keyfile is not None and _is_inside(keyfile, store_path):
        raise InvalidInput(
            f"the keyfile {keyfile} would lie inside the store {store_path}: every copy of the store would "
            "carry its key. Nothing was changed. Give it another place, best on another disk."
        )


def _is_inside(path: str, store_path: str) -> bool:
    store = os.path.realpath(store_path)
    return os.path.commonpath((os.path.realpath(path), store)) == store


def _given(choice: SecretChoice) -> "Secret | None":
    from pixstorefs.keys import secrets

    if choice.passphrase_file is not None:
        secret = secrets.passphrase_from_file(choice.passphrase_file)
        warn_of_readers(choice.passphrase_file)
        return secret
    if choice.passphrase_command is not None:
        return secrets.passphrase_from_command(choice.passphrase_command)
    if choice.keyfile is not None:
        secret = secrets.secret_from_keyfile(choice.keyfile)
        warn_of_readers(choice.keyfile)
        return secret
    return None


def warn_of_readers(path: str) -> None:
    """Say that other users may read, or replace, a file with a secret. A pipe is nobody else's."""
    if path == "-":
        return  # stdin, and not a file that is called so
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return  # whoever reads it says it
    if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) & 0o077:
        console.note(
            f"other users have rights to {path}, which opens the store: chmod 600 {shlex.quote(path)}"
        )


def _warn_of_writers(store_path: str) -> None:
    """Say that every user of the machine may destroy the images."""
    try:
        mode = os.stat(store_path).st_mode
    except OSError:
        return
    if mode & stat.S_IWOTH:
        console.note(
            f"every user can write to the store {store_path}, and so destroy its images: "
            f"chmod o-w {shlex.quote(store_path)}"
        )


def _new_passphrase() -> "Secret | None":
    """Ask twice; None for an empty answer, which asks for a keyfile instead."""
    import getpass

    from pixstorefs.keys.secrets import Secret

    try:
        first = getpass.getpass("Passphrase for the new store (empty: make a keyfile instead): ")
        if not first:
            return None
        if getpass.getpass("The same passphrase again: ") != first:
            raise InvalidInput("the two passphrases differ; nothing was created. Please try again.")
    except EOFError:
        raise InvalidInput("no passphrase was given; nothing was created.") from None
    return Secret("passphrase", first.encode("utf-8", "surrogateescape"))


def at_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()
