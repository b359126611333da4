"""The systems that are compared: how each is prepared, mounted and unmounted. The peers are in peers.py."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from . import process

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PASSPHRASE = "benchmark passphrase, guards nothing"
MOUNT_SECONDS = 60
UNMOUNT_SECONDS = 30


class MountError(Exception):
    """A system cannot be mounted, or hangs."""


class System:
    """A directory to work in, and what can be asked of the system behind it."""

    name = ""
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    keeps_data_in_memory = False
    # How long the daemon works on after sync(2) returned; waited for, so that the next row does not pay.
    settle_seconds = 0.1

    def __init__(self) -> None:
        self.workdir = self.store = self.mountpoint = self.log = ""
        self.secret = ""
        self._daemon: tuple[int, str] | None = None

    def prepare(self, workdir: str) -> None:
        """Make an empty store in an empty directory."""
        self.workdir = workdir
        self.store = os.path.join(self.workdir, "store")
        self.mountpoint = os.path.join(self.workdir, "mount")
        self.log = os.path.join(self.workdir, "log")
        self.secret = os.path.join(self.workdir, "secret")
        for path in (self.store, self.mountpoint):
            os.makedirs(path)
        with open(self.secret, "w", encoding="ascii", opener=_private) as file:
            file.write(PASSPHRASE + "\n")
        self.create_store()

    def create_store(self) -> None:
        """Whatever has to run before the first mount."""

    def mount(self) -> None:
        raise NotImplementedError

    def daemon_pid(self) -> int | None:
        """The process that serves the mount, if there is one and it runs."""
        if self._daemon and process.started(self._daemon[0]) == self._daemon[1]:
            return self._daemon[0]
        return None

    def usable(self) -> bool:
        """Whether the system still answers for its directory."""
        return self.mountpoint in process.mount_points() and self.daemon_pid() is not None

    def store_bytes(self) -> int | None:
        """Bytes allocated on disk for the store."""
        return allocated_bytes(self.store)

    def version(self) -> str:
        return first_line([self.programs[0], "--version"]) if self.programs else ""

    def unmount(self) -> None:
        raise NotImplementedError


class FuseSystem(System):
    """A system served by a daemon that a command starts, in the foreground or not."""

    answer: str | None = None  # what to type at the command's prompt

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def run(self, command: list[str], answer: str | None = None) -> None:
        """Run a command of the system to its end."""
        done = subprocess.run(
            command,
            input=answer,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=MOUNT_SECONDS,
            check=False,
        )
        if done.returncode:
            raise MountError(f"{self.name}: {command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")

    def mount(self) -> None:
        """Start the daemon and wait until the kernel shows the mount."""
        with open(self.log, "ab") as log:
            # A session of its own: Ctrl-C is for the benchmark, which then unmounts in order.
            launcher = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
                cwd=self.workdir,
            )
        assert launcher.stdin
        with contextlib.suppress(BrokenPipeError), launcher.stdin:
            launcher.stdin.write((self.answer or "").encode())

        def decided() -> bool:
            return self.mountpoint in process.mount_points() or launcher.poll() not in (None, 0)

        if not process.wait_until(decided, MOUNT_SECONDS) or self.mountpoint not in process.mount_points():
            if launcher.poll() is None:
                launcher.kill()
            with open(self.log, encoding="utf-8", errors="replace") as log_text:
                raise MountError(f"{self.name} did not mount: {log_text.read().strip()[-800:]}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(1.5)  # a launcher that puts its daemon in the background ends now
        self._remember_daemon(None if launcher.poll() is not None else launcher.pid)

    def _remember_daemon(self, foreground: int | None) -> None:
        pid = self.find_daemon() or foreground
        if pid is None:
            raise MountError(f"{self.name} is mounted, but no process of it is to be found")
        self._daemon = (pid, process.started(pid))

    def find_daemon(self) -> int | None:
        found = process.with_argument(self.mountpoint)
        return found[-1] if found else None

    def unmount(self) -> None:
        """Unmount and see the daemon end. By force only if it does not do so by itself."""
        if self.mountpoint not in process.mount_points():
            self._end_launch()
        deadline = time.monotonic() + UNMOUNT_SECONDS
        while self.mountpoint in process.mount_points():
            late = time.monotonic() > deadline
            command = ["fusermount3", "-uz" if late else "-u", self.mountpoint]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                time.sleep(0.2)
            if late:
                break
        self._end_daemon()

    def _end_launch(self) -> None:
        """End what was interrupted before it had mounted: it would mount when nobody unmounts any more."""
        for pid in process.with_argument(self.mountpoint):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            process.wait_until(lambda pid=pid: not process.alive(pid), UNMOUNT_SECONDS / 2)

    def abandon(self) -> None:
        """End the daemon of a mount that hangs; what waits for the mount then gets an error."""
        if pid := self.daemon_pid():
            os.kill(pid, signal.SIGKILL)

    def _end_daemon(self) -> None:
        for sign in (0, signal.SIGTERM, signal.SIGKILL):
            pid = self.daemon_pid()
            if pid is None:
                break
            if sign:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            process.wait_until(lambda pid=pid: not process.alive(pid), UNMOUNT_SECONDS / 2)


class Plain(System):
    """`ext4`: a plain directory on the file system where the stores lie. What no encryption costs."""

    name = "ext4"

    def mount(self) -> None:
        self.store = self.mountpoint

    def usable(self) -> bool:
        return True

    def abandon(self) -> None:
        pass

    def version(self) -> str:
        return f"plain directory on {process.filesystem_of(self.workdir)}"

    def unmount(self) -> None:
        pass


class Floor(FuseSystem):
    """`floor`: an in-memory pyfuse3 file system. What FUSE and Python cost without any work done."""

    name = "floor"
    keeps_data_in_memory = True

    def command(self) -> list[str]:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "floor.py")
        return [sys.executable, script, self.mountpoint]

    def store_bytes(self) -> int | None:
        return None

    def version(self) -> str:
        return "in-memory pyfuse3 file system, nothing encrypted or stored"


class Pixstorefs(FuseSystem):
    """The project itself, run by the interpreter that runs the benchmark."""

    name = "pixstorefs"
    settle_seconds = 1.3  # the barrier comes at most one second after the first unsynced save
    options: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        inherited = os.environ.get("PYTHONPATH")
        return os.environ | {"PYTHONPATH": PROJECT + (os.pathsep + inherited if inherited else "")}

    def create_store(self) -> None:
        os.rmdir(self.store)  # mount --create makes it, also where a round before had one

    def command(self) -> list[str]:
        base = [sys.executable, "-P", "-m", "pixstorefs", "mount", "--create", self.store, self.mountpoint]
        return [*base, "--passphrase-file", self.secret, *self.options]

    def find_daemon(self) -> int | None:
        try:
            with open(os.path.join(self.store, "lock"), encoding="utf-8") as file:
                pid = int(json.load(file)["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return super().find_daemon()
        return pid if process.alive(pid) else super().find_daemon()

    def version(self) -> str:
        code = "import pixstorefs; print(getattr(pixstorefs, '__version__', 'in development'))"
        return first_line([sys.executable, "-c", code], self.environment())


def allocated_bytes(path: str) -> int:
    """What the files below a path occupy, directories included. Files that vanish meanwhile count nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in ("", *names):
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def first_line(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The first line a program says about itself."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[0] if lines and not done.returncode else "unknown"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
