"""The real command on a real mount, for tests of every kind.

A `Mount` has directories of its own for everything the command would keep in the user's home, so that
tests neither meet each other nor the person who runs them.
"""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

import pixstorefs

# Far longer than anything should take, short enough to tell which command hung.
COMMAND_TIMEOUT_S = 60.0
_LOUD = ("WARNING", "ERROR", "CRITICAL")


def environment(home: Path) -> dict[str, str]:
    """This process's environment, with everything that is the user's own below `home`, and no secrets."""
    result = {name: value for name, value in os.environ.items() if not name.startswith("PIXSTOREFS_")}
    for name in ("DATA", "STATE", "CONFIG", "CACHE"):
        result[f"XDG_{name}_HOME"] = str(home / f"xdg-{name.lower()}")
    result["HOME"] = str(home)
    # The command has to be the code under test also where the package is not installed.
    source = os.path.dirname(next(iter(pixstorefs.__path__)))
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return result


def program(name: str) -> str:
    """Where a program lies; the machine's own, whatever a test does to PATH."""
    path = shutil.which(name)
    assert path, f"{name} is missing"
    return path


def command(*arguments: str | os.PathLike[str]) -> list[str]:
    """The argument vector of `pixstorefs ...`."""
    return [sys.executable, "-m", "pixstorefs", *map(os.fspath, arguments)]


def wait_until_gone(pid: int, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
    """Wait for the end of a process that is not our child, and of all its threads and descriptors."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise TimeoutError(f"process {pid} did not end within {timeout_s} s")
    finally:
        os.close(descriptor)


class Mount:
    """A store below `directory`, and the means to mount it with the real command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.mountpoint = directory / "mount"
        self.env = environment(directory)
        self._expected: list[str] = []
        self._prefix: list[str] = []

    def without_privileges(self) -> None:
        """Run commands as the owner of the test's files who may do nothing beyond, even if that is root.

        In a new user namespace a process keeps its files and loses every capability outside.
        """
        self._prefix = [program("unshare"), "--user"]

    def with_descriptors(self, soft: int, hard: int) -> None:
        """Run commands with limits of their own on how many files a process may have open."""
        self._prefix = [program("prlimit"), f"--nofile={soft}:{hard}"]

    def with_code(self, code: str) -> None:
        """Run commands in which this code has changed something before: a bug, a shorter wait."""
        folder = self.directory / "changed"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        self.env["PYTHONPATH"] = f"{folder}:{self.env['PYTHONPATH']}"

    def with_setting(self, module: str, **constants: float) -> None:
        """Run commands in which constants of a module are others, so that a test has less to wait for."""
        settings = [f"module.{name} = {value!r}\n" for name, value in constants.items()]
        self.with_code("".join((f"import pixstorefs.{module} as module\n", *settings)))

    def without_helper(self) -> None:
        """The same where, in a mount namespace of its own, fusermount3 is not installed. Needs root."""
        hide = "mount --bind /dev/null {0}"
        helper = shutil.which("fusermount3")
        script = f'{hide.format(helper) if helper else ":"} && exec {program("unshare")} --user "$@"'
        self._prefix = [program("unshare"), "--mount", "sh", "-c", script, "sh"]

    def run(
        self, *arguments: str | os.PathLike[str], env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `pixstorefs ...` without a terminal; never raises for its exit status."""
        return subprocess.run(
            self._prefix + command(*arguments),
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    def run_at_terminal(self, words: Sequence[str | os.PathLike[str]], answers: list[str]) -> tuple[int, str]:
        """Run `pixstorefs ...` on a terminal of its own, typing an answer at each prompt."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", *command(*words)], env=self.env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        said = ""
        for answer in answers:
            while not said.endswith(": "):
                said += os.read(ours, 1024).decode()
            os.write(ours, f"{answer}\n".encode())
            said += "\n"
        try:
            while chunk := os.read(ours, 1024):
                said += chunk.decode()
        except OSError:
            pass  # EIO: nobody has the terminal open any more
        os.close(ours)
        return process.wait(COMMAND_TIMEOUT_S), said

    def mount(self, *options: str) -> None:
        """`pixstorefs mount`; the first time it makes the store and a keyfile."""
        result = self.run("mount", *options, self.store, self.mountpoint)
        assert result.returncode == 0, result.stderr

    def unmount(self) -> None:
        """`pixstorefs umount`: when it returns, everything is saved and the daemon has ended."""
        result = self.run("umount", self.mountpoint)
        assert result.returncode == 0, result.stderr

    def remount(self, *options: str) -> None:
        """Unmount cleanly and mount again."""
        self.unmount()
        self.mount(*options)

    def signal(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal to the daemon and wait for its end."""
        pid = pid or self.pid
        os.kill(pid, number)
        wait_until_gone(pid)

    def kill(self, pid: int | None = None) -> None:
        """kill -9 the daemon, and clean the dead mount away. The next mount recovers the store.

        `pid` is needed where the store, which tells it, cannot be read any more.
        """
        self.signal(signal.SIGKILL, pid)
        self._detach()

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        pid = json.loads((self.store / "lock").read_text())["pid"]
        assert isinstance(pid, int)
        return pid

    @property
    def is_mounted(self) -> bool:
        """Whether something is mounted, alive or dead."""
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        return any(line.split(" ")[4] == str(self.mountpoint) for line in mounts)

    @property
    def log_paths(self) -> list[Path]:
        """All logs, oldest first."""
        folder = Path(self.env["XDG_STATE_HOME"]) / "pixstorefs"
        return sorted(folder.glob("*.log*"), key=lambda path: path.stat().st_mtime_ns)

    def log_text(self) -> str:
        """Everything the daemons (and broken commands) logged."""
        return "".join(path.read_text() for path in self.log_paths)

    def expect_log(self, substring: str) -> None:
        """Declare a warning or error that this test causes on purpose."""
        self._expected.append(substring)

    def complaints(self) -> list[str]:
        """Warnings and errors in the log that the test did not declare."""
        return [
            line
            for line in self.log_text().splitlines()
            if line.split(" ", 3)[2:3] in [[level] for level in _LOUD]
            and not any(expected in line for expected in self._expected)
        ]

    def close(self) -> None:
        """Whatever the test left: unmount it, politely and then not, and wait for the daemon."""
        pid = self._daemon()
        if self.is_mounted:
            polite = subprocess.run(["fusermount3", "-u", self.mountpoint], capture_output=True, check=False)
            if polite.returncode != 0:
                self._detach()
        if pid is None:
            return
        try:
            wait_until_gone(pid)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise

    def _daemon(self) -> int | None:
        """The daemon if it lives. A killed one leaves its pid in the lock, for somebody else to get."""
        try:
            pid = self.pid
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, KeyError):
            return None
        return pid if os.fsencode(self.store) in arguments else None

    def _detach(self) -> None:
        while self.is_mounted:
            subprocess.run(["fusermount3", "-u", "-z", self.mountpoint], check=True)


def cannot_run(reason: str) -> NoReturn:
    """Skip the test; with PIXSTOREFS_REQUIRE_ALL=1, where nothing may be missing, fail it."""
    if os.environ.get("PIXSTOREFS_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def watched(directory: Path) -> Iterator[Mount]:
    """A mount that is unmounted at the end, whatever happened.

    A warning or error in the log that the test did not declare by `expect_log` fails it.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot_run("this machine has no usable /dev/fuse")
    mount = Mount(directory)
    try:
        yield mount
    finally:
        mount.close()
    complaints = mount.complaints()
    assert not complaints, "the daemon complained:\n" + "\n".join(complaints)
