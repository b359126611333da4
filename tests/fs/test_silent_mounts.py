"""A mount whose daemon was stopped: whoever asks about it, or about another, gets an answer all the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Mount, wait_until_gone, watched

from pixstorefs.daemon import asking, owner


@contextmanager
def stopped(mount: Mount) -> Iterator[int]:
    """Stop the daemon; it goes on at the end. Gives its process."""
    pid = mount.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        while not owner.is_stopped(pid):
            time.sleep(0.01)
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def ask_shortly(mount: Mount) -> None:
    """Have commands wait less for a mount that does not answer: they do so for each question."""
    mount.with_code("from pixstorefs.daemon import asking\nasking.ask.__defaults__ = (1.5,)\n")


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Mount]:
    """A mount that does not answer, and does again when the test has ended."""
    (tmp_path / "silent").mkdir()
    with watched(tmp_path / "silent") as mount:
        mount.mount()
        ask_shortly(mount)
        with stopped(mount):
            yield mount
        assert os.listdir(mount.mountpoint) == []


def test_status_tells_which_mount_does_not_answer(mounted: Mount, silent: Mount) -> None:
    """One stopped daemon hides neither its own state nor that of another mount, asked by any name."""
    ask_shortly(mounted)
    told = f"{silent.store} on {silent.mountpoint}\n  process {silent.pid} is stopped and does not answer"
    everything = mounted.run("status")
    assert everything.returncode == 0, everything.stderr
    assert told in everything.stdout
    assert f"{mounted.store} on {mounted.mountpoint}\n  process {mounted.pid}\n" in everything.stdout
    link = silent.directory / "link"
    link.symlink_to(silent.mountpoint)
    for path in (silent.store, silent.mountpoint, link):
        one = mounted.run("status", path)
        assert (one.returncode, told in one.stdout) == (1, True), one.stderr
    below = mounted.run("status", silent.mountpoint / "album")
    assert (below.returncode, "does not answer" in below.stderr) == (6, True)
    states = {each["mountpoint"]: each for each in json.loads(mounted.run("status", "--json").stdout)}
    found = [states[str(mount.mountpoint)] for mount in (mounted, silent)]
    assert [(each["alive"], each["answers"], each["stopped"]) for each in found] == [
        (True, True, False),
        (True, False, True),
    ]


def test_mount_and_umount_do_not_wait_for_a_mount_that_does_not_answer(silent: Mount) -> None:
    """Both refuse, name the process and what lets it go on, and leave the mount as it is."""
    for words in (("mount", silent.store, silent.mountpoint), ("umount", silent.mountpoint)):
        refused = silent.run(*words)
        assert refused.returncode == 3, refused.stderr
        assert f"kill -CONT {silent.pid}" in refused.stderr
        assert silent.is_mounted


def test_a_mount_that_does_not_answer_can_be_detached(mounted: Mount) -> None:
    """--lazy takes it away at once; the process goes on later and ends by itself."""
    ask_shortly(mounted)
    pid = mounted.pid
    with stopped(mounted):
        detached = mounted.run("umount", "--lazy", mounted.mountpoint)
        assert detached.returncode == 0, detached.stderr
        assert f"kill -CONT {pid}" in detached.stderr
        assert not mounted.is_mounted
    wait_until_gone(pid)


def test_an_unanswered_question_keeps_no_pipe_open(silent: Mount) -> None:
    """Whoever reads what a command prints sees its end, whatever process still waits for the daemon."""
    words = "from functools import partial; from pixstorefs.daemon import asking, mounts; import sys; " + (
        "print(asking.ask({1: partial(mounts.room, sys.argv[1])}, 0.5), flush=True)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", words, silent.mountpoint],
        env=silent.env,
        capture_output=True,
        text=True,
        timeout=asking.ANSWER_DEADLINE_S * 4,
        check=False,
    )
    assert (asked.stdout, asked.stderr) == ("{}\n", "")


@pytest.mark.parametrize(
    "note",
    [
        "1" * 40,
        "[" * 100_000,
        '{"pid": Infinity, "mountpoint": null}',
        '{"pid": 0, "mountpoint": null}',
        "{}",
    ],
)
def test_a_lock_file_may_say_anything(tmp_path: Path, note: str) -> None:
    """What is not the note of an owner is nobody's, and no error."""
    (tmp_path / "lock").write_text(note)
    assert owner.read(str(tmp_path)) is None


def test_who_does_not_hold_the_lock_is_not_waited_for(mounted: Mount) -> None:
    """Whoever can write to a store can name any process in its lock file: umount asks who has the lock."""
    lock = mounted.store / "lock"
    note = json.loads(lock.read_text())
    pid = note["pid"]
    # This process lives as long as the test does.
    lock.write_text(json.dumps(note | {"pid": os.getpid()}))
    unmounted = mounted.run("umount", mounted.mountpoint)
    assert unmounted.returncode == 0, unmounted.stderr
    assert not mounted.is_mounted
    assert str(os.getpid()) not in unmounted.stderr
    wait_until_gone(pid)


def test_a_pipe_for_a_lock_file_is_not_waited_for(tmp_path: Path) -> None:
    """A store that others can write to must not keep a command waiting for ever."""
    os.mkfifo(tmp_path / "lock")
    assert owner.read(str(tmp_path)) is None
