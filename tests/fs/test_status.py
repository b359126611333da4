"""`pixstorefs status` on real mounts, live, recovered and dead."""

import datetime
import json
import mmap
import os
import signal
import subprocess
from subprocess import PIPE

import pytest
from support import Mount, command


def test_status_of_a_mount(mounted: Mount) -> None:
    """By store, by mountpoint, and among all: the same mount, its process and its free room."""
    for words in ((), (mounted.store,), (mounted.mountpoint,)):
        result = mounted.run("status", *words)
        assert result.returncode == 0, result.stderr
        assert f"{mounted.store} on {mounted.mountpoint}\n  process {mounted.pid}\n" in result.stdout
    disk = os.statvfs(mounted.mountpoint)
    (status,) = json.loads(mounted.run("status", "--json", mounted.store).stdout)
    assert status["pid"] == mounted.pid
    assert status["recovery"] == []
    assert (status["alive"], status["read_only"]) == (True, False)
    taken = datetime.datetime.fromisoformat(status["since"])
    assert taken.timestamp() == int((mounted.store / "lock").stat().st_mtime)
    assert abs(status["free_bytes"] - disk.f_bavail * disk.f_frsize) < 1 << 30


@pytest.mark.parametrize("words", [("status",), ("status", "--json"), ("--version",)])
def test_output_that_cannot_be_written(unmounted: Mount, words: tuple[str, ...]) -> None:
    """A full disk is said to be one; a reader that has gone away had enough."""
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            command(*words), env=unmounted.env, stdout=full, stderr=PIPE, text=True, check=False
        )
    assert told.returncode == 16
    assert told.stderr == "pixstorefs: what was asked for cannot be written: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    left = subprocess.run(
        command(*words), env=unmounted.env, stdout=writer, stderr=PIPE, text=True, check=False
    )
    os.close(writer)
    assert (left.returncode, left.stderr) == (141, "")


def test_status_tells_what_recovery_decided(mounted: Mount) -> None:
    """A draft that was open when the daemon was killed is swept, and the status of the next mount says so."""
    mounted.expect_log("recovery:")
    # Past the kernel's cache, so that the daemon has sealed most of it when it is killed.
    descriptor = os.open(mounted.mountpoint / "draft.jpg", os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    os.write(descriptor, mmap.mmap(-1, 1 << 20))
    os.write(descriptor, mmap.mmap(-1, 1 << 20))
    mounted.kill()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    mounted.mount()
    assert "recovery: removed 1 objects of drafts" in mounted.run("status", mounted.store).stdout
    mounted.remount()
    assert "the store was consistent" in mounted.run("status", mounted.store).stdout
    mounted.remount("--read-only")
    assert ", read-only\n" in mounted.run("status", mounted.store).stdout


def test_status_of_what_is_not_mounted(mounted: Mount) -> None:
    """A dead mount and none at all: told, with exit status 1, wherever the store is by now."""
    mounted.signal(signal.SIGKILL)
    dead = mounted.run("status", mounted.mountpoint)
    assert (dead.returncode, "dead: its process was killed" in dead.stdout) == (1, True)
    aside = mounted.store.rename(mounted.directory / "moved")
    moved = mounted.run("status")
    assert (moved.returncode, "dead: its process was killed" in moved.stdout) == (0, True), moved.stderr
    aside.rename(mounted.store)
    mounted.run("umount", mounted.mountpoint)
    gone = mounted.run("status", mounted.store)
    assert (gone.returncode, gone.stdout) == (1, f"{mounted.store} is not mounted\n")
