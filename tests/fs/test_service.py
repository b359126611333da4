"""`pixstorefs mount --foreground` under a service manager: the protocol of sd_notify(3)."""

import mmap
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import COMMAND_TIMEOUT_S, Mount, command


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """The socket of a service manager, as NOTIFY_SOCKET names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.settimeout(COMMAND_TIMEOUT_S)
        yield listener


def told(listener: socket.socket) -> list[str]:
    return listener.recv(65536).decode().split("\n")


def service(mount: Mount, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("mount", "--foreground", mount.store, mount.mountpoint),
        env=mount.env | {"NOTIFY_SOCKET": address},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_and_stopping(unmounted: Mount, kind: str) -> None:
    """READY comes when the mount answers, STOPPING when it is over."""
    address = f"@pixstorefs-test-{os.getpid()}" if kind == "abstract" else str(unmounted.directory / "notify")
    with manager(address) as listener:
        process = service(unmounted, address)
        assert told(listener) == ["READY=1", "STATUS=mounted"]
        (unmounted.mountpoint / "a.jpg").write_bytes(b"answered")
        assert unmounted.pid == process.pid
        process.send_signal(signal.SIGTERM)
        assert told(listener) == ["STOPPING=1", "STATUS=unmounted, saving"]
        _, log = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert (process.returncode, "WARNING" in log) == (0, False)


def test_status_tells_what_recovery_decided(mounted: Mount) -> None:
    """And a restart by the manager cleans the dead mount of a killed daemon away."""
    mounted.expect_log("recovery:")
    # Past the kernel's cache, so that the daemon has sealed most of it when it is killed.
    descriptor = os.open(mounted.mountpoint / "draft.jpg", os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    os.write(descriptor, mmap.mmap(-1, 1 << 20))
    os.write(descriptor, mmap.mmap(-1, 1 << 20))
    mounted.signal(signal.SIGKILL)
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)
    address = str(mounted.directory / "notify")
    with manager(address) as listener:
        process = service(mounted, address)
        ready, status = told(listener)
        assert ready == "READY=1"
        assert status.startswith("STATUS=mounted; removed 1 objects of drafts")
        assert list(mounted.mountpoint.iterdir()) == []
        mounted.unmount()
        process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert process.returncode == 0


def test_refusal_is_an_exit_status(unmounted: Mount) -> None:
    """Nothing is told: the manager sees the process end, with a status that says whether to try again."""
    unmounted.store.mkdir()
    (unmounted.store / "mine").touch()
    address = str(unmounted.directory / "notify")
    with manager(address) as listener:
        process = service(unmounted, address)
        _, message = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert (process.returncode, "not empty" in message) == (5, True)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            told(listener)


def test_mount_in_the_background_leaves_the_socket_to_who_called_it(unmounted: Mount) -> None:
    """A service that mounts as one of its steps says itself when it is ready."""
    address = str(unmounted.directory / "notify")
    with manager(address) as listener:
        unmounted.env["NOTIFY_SOCKET"] = address
        unmounted.mount()
        unmounted.unmount()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            told(listener)


def test_manager_that_does_not_listen(unmounted: Mount) -> None:
    """The mount is good all the same; a line in the log says why the manager may end it."""
    process = service(unmounted, str(Path("/nonexistent/notify")))
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert "/nonexistent/notify was not told READY=1" in next(line for line in lines if "WARNING" in line)
    (unmounted.mountpoint / "a.jpg").write_bytes(b"works")
    unmounted.unmount()
    process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0
