"""Secrets: what a person or a machine shows to open a store, and the places it may come from.

A passphrase is taken as the bytes it came as: no Unicode normalisation, so that a file, a command, the
environment and the prompt agree as long as their bytes do. No source is an argument of a command, because
every user of the machine can read those. No message and no repr shows any part of a secret.
"""

import ctypes
import errno
import getpass
import os
import signal
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import platformdirs

from pixstorefs.errors import InvalidInput, WrongKey

ENVIRONMENT_VARIABLE = "PIXSTOREFS_PASSPHRASE"
KEYFILE_MAGIC = "pixstorefs-keyfile-1"
KEYFILE_MATERIAL_SIZE_BYTES = 32

# Far beyond any passphrase, and harmless to read from /dev/zero by mistake.
MAX_PASSPHRASE_SIZE_BYTES = 64 * 1024
# The line has 86 bytes; the rest is room for the white space an editor adds.
MAX_KEYFILE_SIZE_BYTES = 1024

_OTHER_SOURCES = f"Give the passphrase in a file, by a command or in {ENVIRONMENT_VARIABLE}."
# What link(2) says on file systems without hard links (vfat: EPERM; some FUSE ones: the others).
_NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS)

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Secret:
    """A passphrase (any bytes but none) or the 32 random bytes of a keyfile.

    Raises InvalidInput where the material is empty, or has another length than a keyfile's.
    """

    kind: Literal["passphrase", "keyfile"]
    material: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.material:
            raise InvalidInput(f"The {self.kind} is empty: it would protect nothing.")
        if self.kind == "keyfile" and len(self.material) != KEYFILE_MATERIAL_SIZE_BYTES:
            raise InvalidInput(f"A keyfile holds {KEYFILE_MATERIAL_SIZE_BYTES} bytes of key.")


def passphrase_from_file(path: Path) -> Secret:
    """The content of a file (a pipe or /dev/fd/N as well) without ONE newline at its end; `-` is stdin.

    A file of that name is `./-`, as for other programs.
    Raises InvalidInput where it cannot be read, is empty or has more than MAX_PASSPHRASE_SIZE_BYTES.
    """
    try:
        # Not /dev/stdin, which opens anew what stdin is: of a socket that is refused.
        is_stdin = os.fspath(path) == "-"
        with open(0 if is_stdin else path, "rb", closefd=not is_stdin) as file:
            content = file.read(MAX_PASSPHRASE_SIZE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise InvalidInput(
            f"The passphrase file {os.fspath(path)!r} cannot be read: {_why(error)}."
        ) from None
    return _passphrase(content, f"the passphrase file {os.fspath(path)!r}")


def passphrase_from_command(command: str) -> Secret:
    """What a shell command prints (a password manager, say), without ONE newline at its end.

    The command keeps our stdin and stderr, so that it can ask the person; for the same reason it has no
    time limit. Raises InvalidInput where it fails, prints nothing or more than MAX_PASSPHRASE_SIZE_BYTES.
    """
    try:
        # Through the shell on purpose: the command is the user's own, and may be a pipeline.
        process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)  # noqa: S602
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The passphrase command cannot be started: {_why(error)}.") from None
    with process:
        assert process.stdout is not None
        content = process.stdout.read(MAX_PASSPHRASE_SIZE_BYTES + 1)
        if len(content) > MAX_PASSPHRASE_SIZE_BYTES:
            process.kill()  # it may print forever; leaving the block closes the pipe and waits
    # A command we killed has no exit status of its own: then the length is what was wrong.
    if process.returncode != 0 and len(content) <= MAX_PASSPHRASE_SIZE_BYTES:
        raise InvalidInput(f"The passphrase command {_ending(process.returncode)}; its output was not used.")
    return _passphrase(content, "the passphrase command")


def take_from_environment() -> dict[str, str]:
    """Take PIXSTOREFS_PASSPHRASE away from this process; what it was, for `passphrase_from_environment`.

    Every program that is started would inherit it, and root reads it in /proc/PID/environ for as long as a
    daemon lives. That file shows the memory in which the kernel once put the environment: to unset a variable
    only drops the pointer to it, so it is overwritten. Rejected: to execute ourselves anew without it. A
    secret would then have to be handed over by another way, and every mount would start twice.
    """
    _overwrite_in_environment(ENVIRONMENT_VARIABLE.encode() + b"=")
    value = os.environ.pop(ENVIRONMENT_VARIABLE, None)
    return {} if value is None else {ENVIRONMENT_VARIABLE: value}


def _overwrite_in_environment(beginning: bytes) -> None:
    """Fill the rest of every variable that begins so with NUL, also of one that was given twice."""
    strings = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")  # environ(7)
    number = 0
    while strings and (address := strings[number]):
        length = len(ctypes.string_at(address))
        if ctypes.string_at(address, min(length, len(beginning))) == beginning:
            ctypes.memset(address + len(beginning), 0, length - len(beginning))
        number += 1


def passphrase_from_environment(environ: Mapping[str, str]) -> Secret | None:
    """The passphrase in PIXSTOREFS_PASSPHRASE; None where the variable is not set.

    Raises InvalidInput where it is set and empty: a missing secret of a job runner looks like that, and must
    not quietly lead to another way of opening, or creating, the store.
    """
    value = environ.get(ENVIRONMENT_VARIABLE)
    if value is None:
        return None
    return _passphrase(_encoded(value), ENVIRONMENT_VARIABLE, strip_newline=False)


def passphrase_from_prompt(confirm: bool, prompt: str = "Passphrase: ") -> Secret:
    """Ask on the terminal without echo; with `confirm` twice, for a passphrase that is being set.

    Raises InvalidInput where there is no terminal, nothing is typed, or the two differ.
    """
    try:
        with warnings.catch_warnings():
            # getpass falls back to reading stdin with echo and only warns; a passphrase on the screen is
            # worse than asking for another source.
            warnings.simplefilter("error", getpass.GetPassWarning)
            first = _encoded(getpass.getpass(prompt))
            if first and confirm and _encoded(getpass.getpass("The same passphrase again: ")) != first:
                raise InvalidInput("The two passphrases differ; nothing was changed. Please try again.")
    except getpass.GetPassWarning:
        raise InvalidInput(f"There is no terminal to ask for the passphrase on. {_OTHER_SOURCES}") from None
    except (EOFError, OSError, UnicodeError):
        raise InvalidInput(f"No passphrase could be read from the terminal. {_OTHER_SOURCES}") from None
    return _passphrase(first, "the prompt", strip_newline=False)


def default_keyfile_path(store_id: bytes) -> str:
    """Where the keyfile of a store lies unless told otherwise: the user's data directory, by store id.

    Outside the store on purpose: a copied store alone opens nothing. XDG_DATA_HOME is honoured.
    """
    folder = platformdirs.user_data_dir("pixstorefs", appauthor=False)
    return os.path.join(folder, "keyfiles", f"{store_id.hex()}.key")


def secret_from_keyfile(path: Path) -> Secret:
    """The key in a keyfile: one line, `pixstorefs-keyfile-1` and 64 hex digits.

    Raises WrongKey where it is missing, unreadable or no keyfile; the file is never changed.
    """
    shown = repr(os.fspath(path))
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_KEYFILE_SIZE_BYTES + 1)
    except FileNotFoundError:
        raise WrongKey(
            f"The keyfile {shown} does not exist. Without it, or another key of the store, its images "
            "cannot be read. Restore the file from your backup, name its new place, or use a passphrase "
            "of the store."
        ) from None
    except (OSError, ValueError) as error:
        raise WrongKey(f"The keyfile {shown} cannot be read: {_why(error)}. Nothing was changed.") from None
    words = content.split()
    if len(content) <= MAX_KEYFILE_SIZE_BYTES and len(words) == 2 and words[0] == KEYFILE_MAGIC.encode():
        try:
            return Secret("keyfile", bytes.fromhex(words[1].decode("ascii")))
        except (ValueError, InvalidInput):
            pass
    raise WrongKey(
        f"{shown} is not a keyfile (one line: {KEYFILE_MAGIC} and {2 * KEYFILE_MATERIAL_SIZE_BYTES} hex "
        "digits), or it was damaged. Restore it from your backup, or use another key of the store."
    )


def create_keyfile(path: Path, *, random: Callable[[int], bytes] = os.urandom) -> Secret:
    """Make a new keyfile (0600, missing folders 0700), durable when this returns.

    Written beside its place and linked into it, so that the name never shows half a key and never replaces
    a file: an overwritten keyfile is a lost store. Raises InvalidInput where the file exists or cannot be
    made; nothing is left behind then.
    """
    place = os.path.abspath(os.fspath(path))
    secret = Secret("keyfile", random(KEYFILE_MATERIAL_SIZE_BYTES))
    line = f"{KEYFILE_MAGIC} {secret.material.hex()}\n".encode()
    try:
        _make_private_folders(os.path.dirname(place))
        temporary = f"{place}.{os.getpid()}-{os.urandom(4).hex()}.new"
        try:
            _write_private(temporary, line)
            _publish(temporary, place)
        finally:
            _remove(temporary)
        _sync_folder(os.path.dirname(place))
    except FileExistsError:
        raise InvalidInput(
            f"{place!r} exists already and is never overwritten: it may be the only key of a store."
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The keyfile {place!r} cannot be created: {_why(error)}.") from None
    return secret


def _passphrase(content: bytes, source: str, *, strip_newline: bool = True) -> Secret:
    if len(content) > MAX_PASSPHRASE_SIZE_BYTES:
        raise InvalidInput(f"More than {MAX_PASSPHRASE_SIZE_BYTES} bytes came from {source}: no passphrase.")
    if strip_newline and content.endswith(b"\n"):
        # One only: what `echo` and editors add. A passphrase may end in white space of its own.
        content = content[:-2] if content.endswith(b"\r\n") else content[:-1]
    if not content:
        raise InvalidInput(f"An empty passphrase came from {source}: it would protect nothing.")
    return Secret("passphrase", content)


def _encoded(text: str) -> bytes:
    # The environment and the terminal reach us decoded; this gives back the bytes a file would have held.
    return text.encode("utf-8", "surrogateescape")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or "unknown error") if isinstance(error, OSError) else str(error)


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    return f"was ended by signal {-returncode} ({signal.strsignal(-returncode)})"


def _make_private_folders(folder: str) -> None:
    # os.makedirs would give 0700 to the last folder only.
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_private_folders(parent)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    _sync_folder(parent)


def _write_private(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask took
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _publish(temporary: str, place: str) -> None:
    """Give the finished file its name; FileExistsError where the name is taken."""
    try:
        os.link(temporary, place)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links here: take the name first, then replace our own empty file.
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            os.rename(temporary, place)
        except OSError:
            _remove(place)
            raise


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
