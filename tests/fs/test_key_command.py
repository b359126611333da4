"""`pixstorefs key` as a user gives it: keys come, go and change, and nobody is locked out by it."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from support import Mount, cannot_run, command

import pixstorefs
from pixstorefs.errors import WrongKey

HORSE = {"PIXSTOREFS_PASSPHRASE": "correct horse"}
PHOTO = b"\xff\xd8\xff" + bytes(1000)


@pytest.fixture
def closed(unmounted: Mount) -> Mount:
    """A store with a photo in it, opened by the keyfile in the user's data directory."""
    result = unmounted.run("init", unmounted.store)
    assert result.returncode == 0, result.stderr
    with pixstorefs.open_store(str(unmounted.store), keyfile=str(default_keyfile(unmounted))) as store:
        store.save_image(PHOTO)
    return unmounted


def key(mount: Mount, action: str, *words: str | Path, env: dict[str, str] | None = None) -> str:
    """Run `pixstorefs key`, which has to succeed; returns what it says on stdout and then on stderr."""
    result = mount.run("key", action, mount.store, *words, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def refused(
    mount: Mount, status: int, *said: str, words: tuple[str | Path, ...], env: dict[str, str] | None = None
) -> None:
    """Run `pixstorefs key`, which has to be refused and to change nothing."""
    before = slots(mount)
    result = mount.run("key", words[0], mount.store, *words[1:], env=env)
    assert result.returncode == status, result.stderr
    for part in said:
        assert part in result.stderr
    assert slots(mount) == before


def slots(mount: Mount) -> list[bytes]:
    return [path.read_bytes() for path in (mount.store / "keys.json", mount.store / "copies" / "keys.json")]


def opens(mount: Mount, *, keyfile: Path | None = None, passphrase: str | None = None) -> bool:
    """Whether the store opens so for writing, with its photo in it; else it is the key that is wrong."""
    try:
        store = pixstorefs.open_store(
            str(mount.store), keyfile=str(keyfile) if keyfile else None, passphrase=passphrase, create=False
        )
    except WrongKey:
        return False
    with store:
        assert [store.read_image(record.id) for record in store.images()] == [PHOTO]
    return True


def default_keyfile(mount: Mount) -> Path:
    (path,) = Path(mount.env["XDG_DATA_HOME"]).rglob("*.key")
    return path


def test_from_a_keyfile_to_a_passphrase_and_another(closed: Mount) -> None:
    """Add a passphrase to what the first mount made, drop the keyfile, change the passphrase."""
    assert "added the key 'mine'" in key(
        closed, "add", "--label", "mine", "--new-passphrase-command", "echo 'correct horse'"
    )
    assert opens(closed, keyfile=default_keyfile(closed))
    assert opens(closed, passphrase="correct horse")
    assert key(closed, "list").splitlines() == [
        "first  keyfile     hkdf-sha256 (a keyfile is random: guessing it is hopeless as it is)",
        "mine   passphrase  argon2id, 64 MiB, 3 passes, 4 lanes",
    ]
    said = key(closed, "remove", "first", env=HORSE)
    assert "removed the key 'first'" in said
    assert "the master key stays the same" in said
    assert not opens(closed, keyfile=default_keyfile(closed))
    (closed.directory / "new").write_text("battery staple\n")
    said = key(closed, "change", "--new-passphrase-file", closed.directory / "new", env=HORSE)
    assert "changed the key 'mine'" in said
    assert "the master key stays the same" in said
    assert not opens(closed, passphrase="correct horse")
    assert opens(closed, passphrase="battery staple")
    assert slots(closed)[0] == slots(closed)[1]


def test_a_recovery_code(closed: Mount) -> None:
    """Shown once, and accepted wherever a passphrase is, as somebody types it from paper."""
    result = closed.run("key", "add", closed.store, "--label", "paper", "--recovery-code")
    assert result.returncode == 0, result.stderr
    code = result.stdout.strip()
    assert re.fullmatch("([0-9A-HJKMNP-TV-Z]{4}-){7}[0-9A-HJKMNP-TV-Z]{4}", code)
    assert code not in result.stderr
    assert opens(closed, passphrase=code.lower().replace("-", " "))
    (closed.directory / "code").write_text(code.replace("-", "") + "\n")
    closed.mount("--passphrase-file", str(closed.directory / "code"))
    closed.unmount()
    assert code not in closed.log_text()
    assert all(code.encode() not in path.read_bytes() for path in closed.store.rglob("*") if path.is_file())
    key(closed, "remove", "first", env={"PIXSTOREFS_PASSPHRASE": code})
    assert "paper" in key(closed, "list")
    assert opens(closed, passphrase=code)


def test_a_recovery_code_that_cannot_be_shown(closed: Mount) -> None:
    """The key is there and nobody has its code: the error says so and what to do."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command("key", "add", closed.store, "--label", "paper", "--recovery-code"),
            # Python keeps what could not be written, and tries again at its end, unless it is told not to.
            env=closed.env | {"PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert "Remove the key 'paper'" in result.stderr


def test_a_keyfile_is_made_or_taken(closed: Mount) -> None:
    """A keyfile that is missing is made, privately; one that exists is used, and never written."""
    keyfile = closed.directory / "other.key"
    said = key(closed, "add", "--label", "other", "--new-keyfile", keyfile)
    assert f"Back the keyfile {keyfile} up" in said
    assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600
    content = keyfile.read_bytes()
    key(closed, "remove", "other")
    assert not opens(closed, keyfile=keyfile)
    # The default keyfile goes, the other one comes back, in one change.
    key(closed, "change", "--new-keyfile", keyfile)
    assert keyfile.read_bytes() == content
    assert not opens(closed, keyfile=default_keyfile(closed))
    assert opens(closed, keyfile=keyfile)


def test_refusals_change_nothing(closed: Mount) -> None:
    """Wrong secrets, labels that are taken or unknown, the last key, two new secrets: each is told."""
    wrong = closed.directory / "wrong.key"
    add = ("add", "--label", "new", "--new-passphrase-command", "echo secret")
    keyfile = closed.directory / "unmade.key"
    new_keyfile = ("--new-keyfile", keyfile)
    refused(closed, 4, "does not exist", words=(*add, "--keyfile", wrong))
    shutil.copy(default_keyfile(closed), wrong)
    wrong.write_text(wrong.read_text()[:-9] + "00000000\n")
    refused(closed, 4, "keyfile given", words=(*add, "--keyfile", wrong))
    refused(closed, 4, "only with a keyfile", words=add, env=HORSE)
    refused(closed, 2, "'first' already", words=("add", "--label", "first", *new_keyfile))
    refused(closed, 2, "at most 200", words=("add", "--label", "x" * 201, *new_keyfile))
    refused(closed, 4, "keyfile given", words=("change", "--keyfile", wrong, *new_keyfile))
    assert not keyfile.exists()
    refused(closed, 2, "only one new secret", words=(*add, *new_keyfile))
    refused(closed, 2, "only one new secret", words=(*add, "--recovery-code"))
    refused(closed, 2, "no new secret", words=("add", "--label", "new"))
    refused(closed, 2, "no new secret", words=("change",))
    refused(closed, 2, "opens the store already", words=("change", "--new-keyfile", default_keyfile(closed)))
    refused(closed, 2, "only key of the store", words=("remove", "first"))
    refused(closed, 2, "has no key 'third'", words=("remove", "third"))
    key(closed, *add)
    refused(closed, 2, "a key that stays", words=("remove", "new"), env={"PIXSTOREFS_PASSPHRASE": "secret"})
    refused(closed, 2, "No such option", words=("add", "--label", "x", "--new-passphrase", "secret"))
    for action in ("list", "add", "remove", "change"):
        words = {"add": ["--label", "x"], "remove": ["x"]}.get(action, [])
        assert closed.run("key", action, closed.directory / "none", *words).returncode == 5


def test_removing_asks_for_a_key_that_stays(closed: Mount) -> None:
    """The keyfile in the data directory is not tried where it is what goes."""
    key(closed, "add", "--label", "mine", "--new-passphrase-command", "echo secret")
    refused(closed, 4, "opens with a passphrase", words=("remove", "first"))


def test_a_mounted_store_is_left_alone(closed: Mount) -> None:
    """The daemon owns the store: refused with pid and mountpoint. The list works all the same."""
    key(closed, "add", "--label", "second", "--new-keyfile", closed.directory / "second.key")
    closed.mount()
    for words in (("add", "--label", "x", "--recovery-code"), ("remove", "second"), ("change",)):
        refused(closed, 3, str(closed.pid), str(closed.mountpoint), words=words)
    assert "second" in key(closed, "list")
    closed.unmount()


def test_damaged_keys(closed: Mount) -> None:
    """One damaged file of the two is mended by the change; without either nothing is written."""
    (closed.store / "keys.json").write_bytes(b"?")
    key(closed, "add", "--label", "second", "--new-keyfile", closed.directory / "second.key")
    assert slots(closed)[0] == slots(closed)[1]
    assert opens(closed, keyfile=closed.directory / "second.key")
    (closed.store / "copies" / "keys.json").unlink()
    key(closed, "remove", "first", "--keyfile", closed.directory / "second.key")
    assert slots(closed)[0] == slots(closed)[1]
    for path in (closed.store / "keys.json", closed.store / "copies" / "keys.json"):
        path.write_bytes(path.read_bytes()[:100])
    refused(closed, 8, "keys.json is damaged", words=("add", "--label", "x", "--recovery-code"))
    refused(closed, 8, "keys.json is damaged", words=("list",))


def test_an_interrupted_change(closed: Mount) -> None:
    """With only the copy changed the old keys count. The next mount says nothing and makes both equal."""
    before = slots(closed)[0]
    key(closed, "change", "--new-keyfile", closed.directory / "new.key")
    (closed.store / "keys.json").write_bytes(before)
    refused(
        closed,
        4,
        "interrupted",
        words=("change", "--keyfile", closed.directory / "new.key", "--new-keyfile", "x"),
    )
    notes = json.loads(closed.run("check", "--json", closed.store).stdout)["notes"]
    assert ["interrupted" in note["message"] for note in notes] == [True]
    assert opens(closed, keyfile=default_keyfile(closed))
    assert slots(closed) == [before, before]


def test_a_removed_key_does_not_come_back(closed: Mount) -> None:
    """Neither by the next mount, nor from the copy when keys.json is lost, nor by a repair."""
    second = closed.directory / "second.key"
    key(closed, "add", "--label", "second", "--new-keyfile", second)
    key(closed, "remove", "first", "--keyfile", second)
    keyfile = default_keyfile(closed)
    for damage in (lambda: None, (closed.store / "keys.json").unlink):
        damage()
        assert not opens(closed, keyfile=keyfile)
        assert opens(closed, keyfile=second)
    assert closed.run("check", "--repair", closed.store, "--keyfile", second).returncode == 0
    assert not opens(closed, keyfile=keyfile)


def test_a_label_plays_no_tricks(closed: Mount) -> None:
    """What stands in keys.json reaches the terminal as text, whoever wrote it."""
    key(closed, "add", "--label", "\x1b[2Jgone", "--new-keyfile", closed.directory / "second.key")
    said = key(closed, "list")
    assert "\x1b" not in said
    assert "'\\x1b[2Jgone'" in said
    key(closed, "remove", "\x1b[2Jgone")


def test_a_store_that_cannot_be_written(closed: Mount) -> None:
    """A change is refused in one sentence, and the keys are as before; the list works."""
    if os.geteuid() != 0:
        cannot_run("a read-only mount of the test's own needs root")
    subprocess.run(["mount", "--bind", closed.store, closed.store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", closed.store], check=True)
        refused(closed, 14, "Read-only", "as before", words=("add", "--label", "x", "--recovery-code"))
        assert "first" in key(closed, "list")
    finally:
        subprocess.run(["umount", closed.store], check=True)


def test_a_full_disk(closed: Mount) -> None:
    """Nothing but the temporary file of a change is lost to a full disk, and the next one works."""
    if os.geteuid() != 0:
        cannot_run("a file system of the test's own needs root")
    whole = closed.store.rename(closed.directory / "whole")
    closed.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", closed.store], check=True)
    try:
        shutil.copytree(whole, closed.store, dirs_exist_ok=True)
        subprocess.run(["dd", "if=/dev/zero", f"of={closed.store}/filler"], capture_output=True, check=False)
        add = ("add", "--label", "x", "--recovery-code")
        refused(closed, 14, "No space", "as before", words=add)
        (closed.store / "filler").unlink()
        key(closed, *add)
        assert opens(closed, keyfile=default_keyfile(closed))
    finally:
        subprocess.run(["umount", closed.store], check=True)


def test_typed_at_a_terminal(closed: Mount) -> None:
    """Asked for twice; two that differ change nothing; a passphrase is changed before a keyfile is."""
    status, said = at_terminal(closed, ["add", "--label", "mine"], ["correct horse", "correct horse"])
    assert (status, "correct horse" in said) == (0, False), said
    before = slots(closed)
    status, said = at_terminal(closed, ["change"], ["correct horse", "staple", "stable"])
    assert (status, slots(closed)) == (2, before), said
    status, said = at_terminal(closed, ["change"], ["correct horse", "staple", "staple"])
    assert (status, "'mine'" in said) == (0, True), said
    assert opens(closed, keyfile=default_keyfile(closed))
    status, said = at_terminal(closed, ["remove", "first"], ["staple"])
    assert status == 0, said
    assert opens(closed, passphrase="staple")


def at_terminal(mount: Mount, words: list[str], answers: list[str]) -> tuple[int, str]:
    """`pixstorefs key` on a terminal of its own."""
    return mount.run_at_terminal(["key", words[0], mount.store, *words[1:]], answers)
