"""Names, paths and what a file in the store says are others' words: no message passes them on raw."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from stores import Place, image, objects_of, save_file
from support import Mount, cannot_run

from pixstorefs.store import barrier

HOSTILE = "a\x1b]0;title\x07\nforged\u202e"
SHOWN = r"a\x1b]0;title\x07\nforged\u202e"
# Python takes the locale's word for the encoding of paths then, and that is ASCII.
PLAIN_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("at_terminal", [False, True])
def test_what_a_lock_file_says_cannot_steer_a_terminal(unmounted: Mount, at_terminal: bool) -> None:
    """A mountpoint that somebody wrote into it shows its controls as escapes, in one line."""
    unmounted.run("init", unmounted.store)
    with open(unmounted.store / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        json.dump({"pid": 1, "mountpoint": HOSTILE}, lock)
        lock.flush()
        words = ("mount", unmounted.store, unmounted.mountpoint)
        if at_terminal:
            status, said = unmounted.run_at_terminal(words, [])
        else:
            told = unmounted.run(*words)
            status, said = told.returncode, told.stderr
    assert status == 3
    assert SHOWN in said
    assert "\x1b]0;" not in said
    assert "\u202e" not in said


def _shown_alone(told: subprocess.CompletedProcess[str]) -> None:
    """The hostile name is in one line of a message, and nowhere raw."""
    [line] = [line for line in told.stderr.splitlines() if SHOWN in line]
    assert not line.startswith("forged")
    for raw in ("\x1b", "\x07", "\u202e"):
        assert raw not in told.stdout + told.stderr


def test_what_a_recovery_tells_of_an_image(unmounted: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first mount after a crash names what did not reach the disk in one line each."""
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    place = Place(unmounted.directory)
    place.open().close()
    store = place.open_store()
    save_file(store, HOSTILE, lambda draft: draft.write(0, image(1000)))
    unmounted.store = unmounted.directory / "crashed"
    shutil.copytree(place.path, unmounted.store)
    store.close()
    objects_of(unmounted.store).popitem()[1].unlink()
    unmounted.expect_log("its content did not reach the disk")
    told = unmounted.run(
        "mount", "--log-names", unmounted.store, unmounted.mountpoint, "--keyfile", place.keyfile
    )
    assert told.returncode == 0, told.stderr
    _shown_alone(told)
    unmounted.unmount()


def test_what_a_snapshot_tells_of_a_damaged_image(unmounted: Mount) -> None:
    """It names what it refuses to take in one line each."""
    place = Place(unmounted.directory)
    place.open().close()
    store = place.open_store()
    save_file(store, HOSTILE, lambda draft: draft.write(0, image(1000)))
    save_file(store, "whole", lambda draft: draft.write(0, image(1000)))
    store.close()
    objects_of(place.path)[min(objects_of(place.path))].unlink()
    told = unmounted.run("snapshot", place.path, unmounted.directory / "taken", "--keyfile", place.keyfile)
    assert told.returncode == 12, told.stderr
    _shown_alone(told)


def test_status_and_log_show_a_hostile_path_in_one_line(unmounted: Mount) -> None:
    """A newline in a path forges no other mount, and no record of the log."""
    unmounted.mountpoint = unmounted.directory / HOSTILE
    unmounted.mount()
    told = unmounted.run("status", unmounted.store)
    umounted = unmounted.run("umount", unmounted.mountpoint)
    assert f"on {unmounted.directory}/{SHOWN}\n" in told.stdout
    assert umounted.returncode == 0, umounted.stderr
    assert SHOWN.replace(r"\n", " | ") in unmounted.log_text()
    assert "\x1b" not in told.stdout + unmounted.log_text()


def test_a_path_that_is_not_utf8_is_shown_by_its_bytes(unmounted: Mount) -> None:
    """And ends no command of anybody with an error."""
    unmounted.mountpoint = unmounted.directory / os.fsdecode(b"caf\xe9")
    unmounted.mount()
    told = unmounted.run("status")
    assert told.returncode == 0, told.stderr
    assert f"on {unmounted.directory}/caf\\udce9\n" in told.stdout
    assert unmounted.run("umount", unmounted.mountpoint).returncode == 0


def _latin_1(folder: Path) -> dict[str, str]:
    """A locale in which a path of UTF-8 is other letters, and any byte is one."""
    made = folder / "en_US.ISO-8859-1"
    try:
        words = ["localedef", "--no-archive", "-i", "en_US", "-f", "ISO-8859-1", made]
        subprocess.run(words, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        cannot_run("a locale cannot be made here (localedef, and the sources that the package locales has)")
    return {"LOCPATH": str(folder), "LC_ALL": made.name}


@pytest.mark.parametrize("letters", [b"Gr\xc3\xb6\xc3\x9fe \xe5\x86\x99", b"caf\xe9"])
@pytest.mark.parametrize("locale", ["C", "plain", "latin-1", "ascii output"])
def test_a_path_of_any_bytes_in_any_locale(unmounted: Mount, letters: bytes, locale: str) -> None:
    """Every command finds the mount, alive and dead, and prints what it can in that locale."""
    unmounted.mountpoint = unmounted.directory / os.fsdecode(letters)
    unmounted.env |= {
        "C": lambda: {"LC_ALL": "C"},
        "plain": lambda: PLAIN_LOCALE,
        "latin-1": lambda: _latin_1(unmounted.directory),
        "ascii output": lambda: {"PYTHONIOENCODING": "ascii"},
    }[locale]()
    unmounted.mount()
    told = unmounted.run("status", unmounted.mountpoint)
    assert (told.returncode, f"process {unmounted.pid}\n" in told.stdout) == (0, True), told.stderr
    again = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
    assert (again.returncode, "already mounted" in again.stderr) == (3, True)
    unmounted.signal(signal.SIGKILL)
    unmounted.mount()
    assert unmounted.run("umount", unmounted.mountpoint).returncode == 0
    told = unmounted.run("status", unmounted.store)
    assert (told.returncode, told.stdout) == (1, f"{unmounted.store} is not mounted\n")


def test_what_a_locale_cannot_print_is_escaped(unmounted: Mount) -> None:
    """Somebody else's mount on a path of other letters ends no command with an error."""
    unmounted.mountpoint = unmounted.directory / "Größe"
    unmounted.mount()
    told = unmounted.run("status", env={"PYTHONIOENCODING": "ascii"})
    assert told.returncode == 0, told.stderr
    assert f"on {unmounted.directory}/Gr\\xf6\\xdfe\n" in told.stdout
