"""One mounted system at work: timing of commands and clients on it, and the sets of files that lie in it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from . import process
from .source import Source
from .systems import System
from .volume import Directory

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "client.py")
DROP_CACHES = "/proc/sys/vm/drop_caches"
QUIET_SECONDS = 0.15  # the daemons still answer the kernel's forgets after a drop of the caches
WARM_UP_IMAGES = 40
GB = 1e9


class RowError(Exception):
    """A row could not be measured on one system."""


class Site:
    """A system, the source, and what a row needs to measure one on the other."""

    def __init__(self, system: System, source: Source, volume: Directory) -> None:
        self.system, self.source, self.sizes = system, source, source.sizes
        self.flushes = volume.flushes
        self.doubts: list[str] = []  # in what way a row asked for more than the system did
        self.resources: dict[str, dict[str, float]] = {}  # set -> what its last ingest cost, this repetition
        self.watch_resources = True

    def path(self, *names: str) -> str:
        return os.path.join(self.system.mountpoint, *names)

    def warm_up(self) -> None:
        """A little of everything, so that no row pays for a daemon's first request of a kind."""
        folder, files = self.make("warm-up"), os.path.join(self.path("warm-up"), "tree")
        parts = -(-self.sizes.small // WARM_UP_IMAGES)
        self.source.warm("small")
        self.clients(("copy-and-read", self.source.set_path("small"), folder, 0, parts))
        self.clients(("tree", files, 1, WARM_UP_IMAGES))
        for job in (("rename", files), ("stat", 1, files)):
            self.clients(job)
        self.run("ls", "-lR", folder)
        self.remove("warm-up")
        self.settle()

    # Timing

    def settle(self) -> None:
        """Let the system finish what it does after the reply, so that nobody else's row pays for it."""
        os.sync()
        time.sleep(self.system.settle_seconds)

    def _quiet(self, cold: bool) -> None:
        os.sync()
        if cold:
            with open(DROP_CACHES, "w", encoding="ascii") as file:
                file.write("3")
            time.sleep(QUIET_SECONDS)

    def command(self, *argv: str, cold: bool = False) -> float:
        """Seconds a command takes."""
        self._quiet(cold)
        # The program itself is never what is cold.
        subprocess.run([argv[0], "--version"], capture_output=True, check=False)
        return self.run(*argv)

    def run(self, *argv: str) -> float:
        """Run a command to its end, as things are."""
        environment = os.environ | {"LC_ALL": "C"}
        with open(os.path.join(self.system.workdir, "errors"), "w+b") as errors:
            began = time.perf_counter()
            running = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
            with _ended([running]):
                # Without a timeout: with one, Popen polls in steps of up to 50 ms, most of a short row.
                code = running.wait()
            took = time.perf_counter() - began
            if code:
                errors.seek(0)
                text = errors.read(400).decode(errors="replace").strip()
                raise RowError(f"{argv[0]} ended with {code}: {text}")
        return took

    def clients(self, *jobs: tuple[object, ...], cold: bool = False) -> float:
        """Seconds from the start of several clients' work to the end of the last one's."""
        running = [
            subprocess.Popen(
                [sys.executable, "-I", "-S", CLIENT, *map(str, job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for job in jobs
        ]
        with _ended(running):
            for client in running:
                _expect(client, "ready")
            self._quiet(cold)
            began = time.perf_counter()
            for client in running:
                client.stdin.write("\n")
                client.stdin.flush()
            for client in running:
                _expect(client, "done")
            took = time.perf_counter() - began
            for client in running:
                client.communicate()
        return took

    # The sets of files

    def remove(self, name: str) -> None:
        """Delete a set, unmeasured."""
        if os.path.lexists(self.path(name)):
            self.run("rm", "-rf", self.path(name))

    def make(self, name: str) -> str:
        """An empty directory."""
        self.remove(name)
        self.run("mkdir", self.path(name))
        return self.path(name)

    def ingest(self, name: str) -> float:
        """Copy a set into a new directory; the copy stays for the rows that follow."""
        self.remove(name)
        self.source.warm(name)
        if not self.watch_resources:
            return self.command("cp", "-r", self.source.set_path(name), self.path(name))
        self.settle()
        daemon = self.system.daemon_pid()
        stored, used = self.system.store_bytes(), process.cpu_seconds(daemon) if daemon else 0.0
        took = self.command("cp", "-r", self.source.set_path(name), self.path(name))
        self.settle()
        size, found = self.source.set_bytes(name), {}
        if daemon:
            found["cpu"] = (process.cpu_seconds(daemon) - used) / size * GB
        if stored is not None:
            found["disk"] = (self.system.store_bytes() - stored) / size
        self.resources[name] = found
        return took

    def ensure(self, *names: str) -> None:
        """Have the named sets in the system, copied unmeasured where they are missing."""
        for name in names:
            if os.path.isdir(self.path(name)):
                continue
            if name == "tree":
                job = ("tree", self.path(name), self.sizes.folders, self.sizes.files_a_folder)
                self.clients(job)
            else:
                self.source.warm(name)
                self.run("cp", "-r", self.source.set_path(name), self.path(name))
            self.settle()

    def cost_of(self, name: str, what: str) -> float | None:
        """What the ingest of a set cost in this repetition."""
        if name not in self.resources:
            self.ingest(name)
        return self.resources[name].get(what)


def _expect(client: subprocess.Popen, word: str) -> None:
    if client.stdout.readline().strip() != word:
        said = client.communicate()[1].strip().splitlines() or ["ended"]
        raise RowError(f"client {client.args[4]}: {said[-1]}")


@contextlib.contextmanager
def _ended(running: list[subprocess.Popen]) -> Iterator[None]:
    """See the processes end, whatever happens."""
    try:
        yield
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.wait(10)
            for pipe in (one.stdin, one.stdout, one.stderr):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
