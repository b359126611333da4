"""Where secrets come from, and that none of them shows."""

import errno
import getpass
import os
import stat
import warnings

import pytest

from pixstorefs.errors import InvalidInput, WrongKey
from pixstorefs.keys import secrets
from pixstorefs.keys.secrets import (
    MAX_PASSPHRASE_SIZE_BYTES,
    Secret,
    create_keyfile,
    default_keyfile_path,
    passphrase_from_command,
    passphrase_from_environment,
    passphrase_from_file,
    passphrase_from_prompt,
    secret_from_keyfile,
)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def answers(monkeypatch, *typed):
    replies = iter(typed)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(replies))


def test_repr_hides_the_material():
    """Neither repr nor str of a secret shows its material."""
    secret = Secret("passphrase", b"hunter2")
    assert "hunter2" not in repr(secret) + str(secret)
    assert "passphrase" in repr(secret)


@pytest.mark.parametrize(("kind", "material"), [("passphrase", b""), ("keyfile", b""), ("keyfile", b"short")])
def test_secret_refuses_unusable_material(kind, material):
    """An empty secret and a keyfile of the wrong length cannot be made."""
    with pytest.raises(InvalidInput):
        Secret(kind, material)


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (b"word", b"word"),
        (b"word\n", b"word"),
        (b"word\r\n", b"word"),
        (b"word\n\n", b"word\n"),
        (b"word\r", b"word\r"),
        (b" two words \n", b" two words "),
        (b"\xff\x00\n", b"\xff\x00"),
        (b"a" * MAX_PASSPHRASE_SIZE_BYTES, b"a" * MAX_PASSPHRASE_SIZE_BYTES),
    ],
)
def test_file_loses_one_newline(tmp_path, content, passphrase):
    """A passphrase file loses one newline at its end and nothing else."""
    (tmp_path / "passphrase").write_bytes(content)
    assert passphrase_from_file(tmp_path / "passphrase") == Secret("passphrase", passphrase)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"a" * (MAX_PASSPHRASE_SIZE_BYTES + 1)])
def test_file_without_a_passphrase_is_refused(tmp_path, content):
    """An empty or endless passphrase file is refused by name."""
    (tmp_path / "passphrase").write_bytes(content)
    with pytest.raises(InvalidInput, match="passphrase"):
        passphrase_from_file(tmp_path / "passphrase")


def test_endless_file_is_not_read_to_its_end():
    """/dev/zero is refused instead of filling the memory."""
    with pytest.raises(InvalidInput, match="More than"):
        passphrase_from_file("/dev/zero")


@pytest.mark.parametrize("path", ["missing", ".", "nul\0byte"])
def test_unreadable_file_is_refused(tmp_path, monkeypatch, path):
    """A passphrase file that cannot be read is the caller's mistake."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        passphrase_from_file(path)


def test_file_may_be_a_pipe():
    """A passphrase comes through a descriptor as well."""
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    assert passphrase_from_file(f"/dev/fd/{reader}").material == b"from a pipe"
    os.close(reader)


def test_command_output_is_the_passphrase():
    """The command runs in a shell, and its output loses one newline."""
    assert passphrase_from_command("echo one two | tr o 0").material == b"0ne tw0"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo unseen; exit 3", "exit status 3"),
        ("echo unseen; kill -TERM $$", "signal 15"),
        ("true", "empty"),
        ("yes unseen", "More than"),
        ("nul\0byte", "cannot be started"),
    ],
)
def test_failing_command_is_named_without_its_output(command, message):
    """A command that fails, prints nothing or never ends is refused, its output not shown."""
    with pytest.raises(InvalidInput, match=message) as caught:
        passphrase_from_command(command)
    assert "unseen" not in str(caught.value)


def test_environment():
    """The variable gives the bytes it holds; unset gives None, and empty is refused."""
    assert passphrase_from_environment({}) is None
    given = passphrase_from_environment({"PIXSTOREFS_PASSPHRASE": "gr\u00fcn\udcff\n"})
    assert given == Secret("passphrase", b"gr\xc3\xbcn\xff\n")
    with pytest.raises(InvalidInput, match="PIXSTOREFS_PASSPHRASE"):
        passphrase_from_environment({"PIXSTOREFS_PASSPHRASE": ""})


def test_prompt_asks_once_to_open_and_twice_to_set(monkeypatch):
    """Without confirmation one answer is enough; with it both must be equal."""
    answers(monkeypatch, "gr\u00fcn")
    assert passphrase_from_prompt(confirm=False).material == b"gr\xc3\xbcn"
    answers(monkeypatch, "word", "word")
    assert passphrase_from_prompt(confirm=True).material == b"word"
    answers(monkeypatch, "word", "other")
    with pytest.raises(InvalidInput, match="differ"):
        passphrase_from_prompt(confirm=True)


def test_prompt_refuses_nothing(monkeypatch):
    """An empty answer and a closed terminal are refused."""
    answers(monkeypatch, "")
    with pytest.raises(InvalidInput, match="empty"):
        passphrase_from_prompt(confirm=True)

    def closed(prompt):
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", closed)
    with pytest.raises(InvalidInput, match="No passphrase"):
        passphrase_from_prompt(confirm=False)


def test_prompt_never_echoes(monkeypatch):
    """Where the echo cannot be turned off, nothing is asked."""

    def echoing(prompt):
        warnings.warn("Can not control echo", getpass.GetPassWarning, stacklevel=1)
        return "seen"

    monkeypatch.setattr(getpass, "getpass", echoing)
    with pytest.raises(InvalidInput, match="no terminal"):
        passphrase_from_prompt(confirm=False)


def test_keyfile_round_trip(tmp_path):
    """A new keyfile is one private line in private folders, and gives its secret back."""
    path = tmp_path / "a" / "b" / "store.key"
    before = os.umask(0)
    try:
        secret = create_keyfile(path, random=lambda length: bytes(range(length)))
    finally:
        os.umask(before)
    assert path.read_text() == f"pixstorefs-keyfile-1 {bytes(range(32)).hex()}\n"
    assert secret_from_keyfile(path) == secret == Secret("keyfile", bytes(range(32)))
    assert (mode(path), mode(path.parent), mode(path.parent.parent)) == (0o600, 0o700, 0o700)
    assert os.listdir(path.parent) == ["store.key"]


def test_keyfiles_differ(tmp_path):
    """Two keyfiles hold two keys."""
    assert create_keyfile(tmp_path / "1.key") != create_keyfile(tmp_path / "2.key")


@pytest.mark.parametrize("hard_links", [True, False])
def test_keyfile_is_never_overwritten(tmp_path, monkeypatch, hard_links):
    """A file of that name stays as it is, with and without hard links, and no temporary one is left."""
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse_links)
    path = tmp_path / "store.key"
    path.write_text("precious")
    with pytest.raises(InvalidInput, match="never overwritten"):
        create_keyfile(path)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["store.key"]


def test_keyfile_without_hard_links(tmp_path, monkeypatch):
    """A file system without hard links gets its keyfile too."""
    monkeypatch.setattr(os, "link", refuse_links)
    secret = create_keyfile(tmp_path / "store.key")
    assert secret_from_keyfile(tmp_path / "store.key") == secret
    assert mode(tmp_path / "store.key") == 0o600
    assert os.listdir(tmp_path) == ["store.key"]


def refuse_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_failed_keyfile_leaves_nothing(tmp_path, monkeypatch):
    """A full disk while writing leaves no file behind."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidInput, match="No space left"):
        create_keyfile(tmp_path / "store.key")
    assert os.listdir(tmp_path) == []


def test_keyfile_below_a_file_is_refused(tmp_path):
    """A parent that is a file is the caller's mistake."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be created: Not a directory"):
        create_keyfile(tmp_path / "file" / "store.key")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"pixstorefs-keyfile-1",
        b"pixstorefs-keyfile-1 " + b"00" * 31,
        b"pixstorefs-keyfile-1 " + b"00" * 33,
        b"pixstorefs-keyfile-1 " + b"zz" * 32,
        b"pixstorefs-keyfile-1 " + b"\xff" * 64,
        b"pixstorefs-keyfile-2 " + b"00" * 32,
        b"pixstorefs-keyfile-1 " + b"00" * 32 + b" more",
        b"pixstorefs-keyfile-1 " + b"00" * 32 + b"\n" * 5000,
        b"\x80" * 100_000,
    ],
)
def test_malformed_keyfile_opens_nothing(tmp_path, content):
    """Anything but the one line is no key, and the message does not show what it is."""
    (tmp_path / "store.key").write_bytes(content)
    with pytest.raises(WrongKey, match="is not a keyfile") as caught:
        secret_from_keyfile(tmp_path / "store.key")
    assert "00" * 31 not in str(caught.value)


def test_missing_keyfile_says_what_to_do(tmp_path):
    """A missing keyfile is named, with what that means and what helps."""
    with pytest.raises(WrongKey, match=r"store\.key' does not exist.*Restore"):
        secret_from_keyfile(tmp_path / "store.key")
    with pytest.raises(WrongKey, match="cannot be read"):
        secret_from_keyfile(tmp_path)


def test_keyfile_may_have_been_edited(tmp_path):
    """White space around the line, as an editor or a mail leaves it, does no harm."""
    (tmp_path / "store.key").write_bytes(b"  pixstorefs-keyfile-1  " + b"AB" * 32 + b"\r\n\n")
    assert secret_from_keyfile(tmp_path / "store.key").material == b"\xab" * 32


def test_default_place_of_keyfiles(monkeypatch, tmp_path):
    """The keyfile of a store lies in the user's data directory under the store's id."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    expected = tmp_path / "pixstorefs" / "keyfiles" / f"{'ab' * 16}.key"
    assert default_keyfile_path(b"\xab" * 16) == str(expected)
    assert secrets.create_keyfile(expected) == secret_from_keyfile(expected)
