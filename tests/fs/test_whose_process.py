"""The pid that a lock file tells may be anybody's: no command speaks of that process, or waits for it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from support import COMMAND_TIMEOUT_S, Mount, cannot_run, command, program, wait_until_gone

from pixstorefs.daemon import owner


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that has nothing to do with any store, and is stopped."""
    with subprocess.Popen([program("sleep"), "1000"]) as process:
        process.send_signal(signal.SIGSTOP)
        while not owner.is_stopped(process.pid):
            time.sleep(0.01)
        yield process.pid
        process.kill()


def test_a_silent_mount_is_not_blamed_on_a_stranger(mounted: Mount, stranger: int) -> None:
    """A dead pid that somebody else got, or one that was written there on purpose."""
    pid = mounted.pid
    lock = mounted.store / "lock"
    note = json.loads(lock.read_text())
    lock.write_text(json.dumps(note | {"pid": stranger}))
    os.kill(pid, signal.SIGSTOP)
    try:
        told = [
            mounted.run(*words)
            for words in (
                ("status", mounted.store),
                ("status", "--json"),
                ("umount", mounted.mountpoint),
                ("mount", mounted.store, mounted.mountpoint),
                ("umount", "--lazy", mounted.mountpoint),
            )
        ]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not [each for each in told if str(stranger) in each.stdout + each.stderr]
    assert "process not known, and does not answer" in told[0].stdout
    wait_until_gone(pid)


def test_a_daemon_in_another_pid_namespace(unmounted: Mount) -> None:
    """It is process 1 there, which is nobody's business here."""
    if os.geteuid() != 0:
        cannot_run("only root can make a process namespace")
    unmounted.run("init", unmounted.store)
    words = command("mount", "--foreground", unmounted.store, unmounted.mountpoint)
    inside = [program("unshare"), "--pid", "--fork", "--kill-child", *words]
    with subprocess.Popen(inside, env=unmounted.env, stderr=subprocess.PIPE, text=True) as outer:
        try:
            assert outer.stderr is not None
            while "mounted " not in outer.stderr.readline():
                assert outer.poll() is None
            assert unmounted.pid == 1
            [status] = json.loads(unmounted.run("status", "--json", unmounted.store).stdout)
            assert (status["answers"], status["stopped"], status["pid"]) == (True, False, None)
            again = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
            assert (again.returncode, "process 1" in again.stderr) == (3, False), again.stderr
            gone = unmounted.run("umount", unmounted.mountpoint)
            assert (gone.returncode, "is not known" in gone.stderr) == (0, True), gone.stderr
            outer.wait(COMMAND_TIMEOUT_S)
        finally:
            outer.kill()
