"""What a person types first: the bare command, a number without a unit, a passphrase through a pipe."""

import subprocess

import pytest
from support import Mount, command


@pytest.mark.parametrize("words", [(), ("key",)])
def test_a_command_alone_shows_its_help(unmounted: Mount, words: tuple[str, ...]) -> None:
    """As --help does; nothing is said to be wrong, and nothing more to be tried."""
    shown = unmounted.run(*words)
    asked = unmounted.run(*words, "--help")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.rstrip() == asked.stdout.rstrip()


def test_a_time_without_a_unit_is_asked_for_one(unmounted: Mount) -> None:
    """Before anything is made."""
    refused = unmounted.run("mount", "--idle-unmount", "15", unmounted.store, unmounted.mountpoint)
    assert (refused.returncode, "15m for minutes" in refused.stderr) == (2, True), refused.stderr
    assert not unmounted.store.exists()


def test_a_passphrase_from_stdin(unmounted: Mount) -> None:
    """`-`, by convention; a file of that name does not get in the way."""
    (unmounted.directory / "-").write_text("another")
    (unmounted.directory / "-").chmod(0o644)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words, unmounted.store),
            cwd=unmounted.directory,
            env=unmounted.env,
            input="correct horse\n",
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("init", "--passphrase-file", "-").returncode == 0
    checked = run("check", "--passphrase-file", "-")
    assert (checked.returncode, checked.stderr) == (0, "")
    added = run("key", "add", "--passphrase-file", "-", "--new-keyfile", "key", "--label", "k")
    assert added.returncode == 0, added.stderr
    assert run("check", "--passphrase-file", "./-").returncode == 4
