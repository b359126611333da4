"""What this user has no rights to, and what two processes do at once: told as what it is, not as damage."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import Mount, command, program

NO_RIGHTS = 18


@pytest.mark.parametrize("words", ["mount {store} {mount}", "check {store}", "snapshot {store} {copy}"])
@pytest.mark.parametrize("name", ["index.db", "keys.json", "store.json"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(unmounted: Mount, words: str, name: str) -> None:
    """Every command that opens the store names the file and what to do."""
    unmounted.run("init", unmounted.store)
    (unmounted.store / name).chmod(0)
    unmounted.without_privileges()
    places = {name: unmounted.directory / name for name in ("store", "mount", "copy")}
    refused = unmounted.run(*(word.format_map(places) for word in words.split()))
    assert refused.returncode == NO_RIGHTS, refused.stderr
    assert str(unmounted.store / name) in refused.stderr
    assert "should not happen" not in refused.stderr


def test_a_place_without_rights_cannot_become_a_store(unmounted: Mount) -> None:
    """init and mount name it, whether the store or its parent is missing."""
    closed = unmounted.directory / "closed"
    closed.mkdir(mode=0o500)
    unmounted.without_privileges()
    for words in (("init", closed / "store"), ("mount", closed / "store", unmounted.mountpoint)):
        refused = unmounted.run(*words)
        assert refused.returncode == NO_RIGHTS, refused.stderr
        assert f"{closed}/store: Permission denied" in refused.stderr


def test_rights_of_others_to_secrets_and_store_are_told(unmounted: Mount) -> None:
    """A keyfile or passphrase file that others may read, and a store they may write to; all still open."""
    passphrase, keyfile = unmounted.directory / "word", unmounted.directory / "a key"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o600)
    opened_by = ("--passphrase-file", passphrase)
    assert unmounted.run("init", unmounted.store, *opened_by).returncode == 0
    added = unmounted.run(
        *("key", "add", unmounted.store, "--label", "k", *opened_by, "--new-keyfile", keyfile)
    )
    assert added.returncode == 0, added.stderr
    for path, option in ((passphrase, "--passphrase-file"), (keyfile, "--keyfile")):
        assert unmounted.run("check", unmounted.store, option, path).stderr == ""
        path.chmod(0o644)
        told = unmounted.run("check", unmounted.store, option, path)
        assert (told.returncode, f"chmod 600 {shlex.quote(str(path))}" in told.stderr) == (0, True)
        path.chmod(0o600)
    unmounted.store.chmod(0o777)
    told = unmounted.run("check", unmounted.store, *opened_by)
    assert (told.returncode, f"chmod o-w {unmounted.store}" in told.stderr) == (0, True)


@pytest.mark.parametrize("words", ["status store", "mount store mount", "init store", "umount mount"])
def test_a_directory_that_was_deleted_is_said_to_be(unmounted: Mount, words: str) -> None:
    """Whoever stands in one gets one line, whatever the command."""
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    told = subprocess.run(
        [program("sh"), "-c", script, unmounted.directory / "gone", *command(*words.split())],
        env=unmounted.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2, told.stderr
    assert told.stderr.splitlines()[-1].startswith("pixstorefs: the directory you are in was deleted")


_OPEN_TOGETHER = """
import sys, pixstorefs
from pixstorefs.errors import StoreInUse
sys.stdin.readline()
try:
    with pixstorefs.open_store(sys.argv[1], passphrase="correct horse"):
        print("opened", flush=True)
        sys.stdin.readline()
except StoreInUse:
    print("in use", flush=True)
"""


@pytest.mark.parametrize("attempt", range(5))
def test_processes_that_make_one_store_at_once(unmounted: Mount, attempt: int) -> None:
    """One of four has it; to the others it is in use, as if it had been there before."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN_TOGETHER, unmounted.store],
            env=unmounted.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = []
        for process in processes:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline().strip()
            said.append(line or process.stderr.read())
    finally:
        for process in processes:
            process.communicate("\n")
    assert sorted(said) == ["in use"] * 3 + ["opened"]


def test_two_first_mounts_at_once(unmounted: Mount) -> None:
    """One mounts, the other is told that the store is in use; nothing of it should not happen."""
    places = [unmounted.mountpoint, unmounted.directory / "other"]
    processes = [
        subprocess.Popen(
            command("mount", unmounted.store, place),
            env=unmounted.env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    try:
        assert sorted(status for _, status in ended) == [0, 3], ended
    finally:
        for place in places:
            if Path(place).is_mount():
                unmounted.run("umount", place)
