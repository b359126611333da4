"""What a person does with a store that may be damaged, each command with bounds, and what it said.

In a forked child through the commands' own functions, which is quick, or through the real commands and a real
mount. Both end in the same `Said`.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import re
import resource
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from stores import Place, content_of, image, save_file

from pixstorefs.cli import commands, console, run
from pixstorefs.errors import PixstoreError
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.store.store import Store

COMMAND_TIMEOUT_S = 20.0
# Beyond what the process has: a small store needs some MB.
_MEMORY_BYTES = 1 << 30
_SAVED_BYTES = 5_000
# Lines that tell of no loss: what any store may say that nobody has closed, or whose copies were mended.
_HARMLESS = re.compile(
    r"^(pixstorefs: )?("
    r"note: the store was not closed cleanly: it recovers at the next mount"
    r"|note: .*copy in copies/ differ.*"
    r"|note: copies/.* cannot be read; the next one replaces it"
    r"|(recovered: |repaired: )*removed \d+ objects of drafts that were never saved"
    r"|verified \d+ images, .* no problems"
    r"|(recovered: |repaired: )*(copies/)?(store|keys)\.json .*copy.*"
    r"|snapshot of \d+ images, .*"
    r")$"
)
_NEVER = ("should not happen", "Traceback (most recent call last)")


@dataclass
class Said:
    """How a command ended and what it said; `status` None: it hung and was killed, negative: a signal."""

    what: str
    status: int | None
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def told(self) -> bool:
        """Whether a person who reads it knows that something is wrong with the store or an image."""
        if self.status != 0 or self.facts.get("errors"):
            return True
        if self.what == "key list":
            return False  # it tells of the keys alone
        return any(not _HARMLESS.match(line) for line in self.text.splitlines() if line)

    @property
    def content_is_well(self) -> bool:
        """Whether a check called everything in order."""
        return self.status == 0 and "; no problems" in self.text and not self.told

    @property
    def broken(self) -> str | None:
        """Why no command may end like this."""
        if self.status is None:
            return f"{self.what} hung"
        if self.status < 0:
            return f"{self.what} was killed by {signal.Signals(-self.status).name}"
        if self.status == os.EX_SOFTWARE or any(words in self.text for words in _NEVER):
            return f"{self.what} broke"
        return None


def preload() -> None:
    """Import what the commands import when they run, once instead of in every child."""
    for name in ("check.check", "check.repair", "check.view", "cli.check_report", "cli.check_progress"):
        importlib.import_module(f"pixstorefs.{name}")
    for name in ("snapshot.snapshot", "store.key_slots", "daemon.logs", "daemon.linux", "daemon.process"):
        importlib.import_module(f"pixstorefs.{name}")
    # A child that collects would copy every page it looks at.
    gc.freeze()


class Person:
    """Uses the store of `place`, in the folder that holds it; nothing else may change there."""

    def __init__(self, place: Place, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self.place = place
        self._timeout_s = timeout_s
        self._papers = place.path.with_name("papers")
        self._papers.mkdir(exist_ok=True)

    def check(self, *options: str) -> Said:
        """`pixstorefs check`."""
        return self._command("check", *options, self.place.path, "--keyfile", self.place.keyfile)

    def snapshot(self, target: Path) -> Said:
        """`pixstorefs snapshot`."""
        return self._command("snapshot", self.place.path, target, "--keyfile", self.place.keyfile)

    def list_keys(self) -> Said:
        """`pixstorefs key list`."""
        return self._command("key", "list", self.place.path)

    def add_key(self, new: Path) -> Said:
        """`pixstorefs key add`."""
        words = ("--label", new.name, "--new-keyfile", new, "--keyfile", self.place.keyfile)
        return self._command("key", "add", self.place.path, *words)

    def visit(self, save: str | None = None, delete: str | None = None) -> Said:
        """Mount, read everything, save an image and delete one, unmount."""

        def mount() -> None:
            visit_store(self.place, self._papers / "facts", save, delete)

        command = click.Command("mount", callback=mount)
        facts = self._papers / "facts"
        facts.unlink(missing_ok=True)
        said = self.bounded("mount", lambda: run(command, "pixstorefs", []))
        said.facts = json.loads(facts.read_text()) if facts.exists() else {}
        return said

    def _command(self, *words: str | os.PathLike[str]) -> Said:
        arguments = [os.fspath(word) for word in words]
        what = " ".join(word for word in arguments[:2] if not word.startswith("/"))
        return self.bounded(what, lambda: run(commands, "pixstorefs", arguments))

    def bounded(self, what: str, body: Callable[[], int]) -> Said:
        """Run `body` in a child that may take so much time and memory; it must have no threads before."""
        paper = self._papers / "said"
        began_s = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_child(body, paper)
        status = _wait(pid, self._timeout_s)
        text = paper.read_text(errors="replace") if paper.exists() else ""
        return Said(what, status, text, seconds=time.monotonic() - began_s)


def _be_child(body: Callable[[], int], paper: Path) -> None:
    status = 99
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        descriptor = os.open(paper, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (descriptor, 1), (descriptor, 2)):
            os.dup2(source, target)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit_bytes = pages * resource.getpagesize() + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        # The streams of this process may be somebody else's by now: a test's, that captures them.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _wait(pid: int, timeout_s: float) -> int | None:
    """The exit status of a child, negative for a signal; None where it had to be killed."""
    ended = False
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        ended = bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)
        # Also if we are interrupted: nothing may go on writing when its folder is removed.
        if not ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def visit_store(place: Place, facts_path: Path, save: str | None, delete: str | None) -> None:
    """What a mount does with a store, without the kernel: open, read, change, close. Raises as they do."""
    facts: dict[str, Any] = {"read": {}, "errors": []}
    store = place.open_store()
    try:
        for line in store.report:
            console.note(line)
        _read_all(store, ROOT_INO, "", facts)
        for step in (lambda: _save(store, save, facts), lambda: _delete(store, delete, facts)):
            try:
                step()
            except (PixstoreError, OSError) as error:
                facts["errors"].append(f"{type(error).__name__}: {error}")
    finally:
        try:
            store.close()
            facts["closed"] = True
        finally:
            facts_path.write_text(json.dumps(facts))


def _read_all(store: Store, parent: int, above: str, facts: dict[str, Any]) -> None:
    """Note a digest of every file by its path, or why it cannot be read, as a program would see it."""
    try:
        entries = store.tree.entries(parent, 0, 10_000)
    except (PixstoreError, OSError) as error:
        facts["errors"].append(f"listing {above or '/'}: {error}")
        return
    for _, name, inode in entries:
        path = above + os.fsdecode(name)
        if stat.S_ISDIR(inode.mode):
            _read_all(store, inode.ino, path + "/", facts)
        elif stat.S_ISREG(inode.mode):
            try:
                facts["read"][path] = digest(content_of(store, inode))
            except (PixstoreError, OSError) as error:
                facts["read"][path] = f"!{type(error).__name__}: {error}"


def _save(store: Store, name: str | None, facts: dict[str, Any]) -> None:
    if name is not None:
        save_file(store, name, lambda draft: draft.write(0, new_content(name)))
        facts["read"][name] = digest(new_content(name))


def _delete(store: Store, name: str | None, facts: dict[str, Any]) -> None:
    if name is not None and not facts["read"].get(name, "!").startswith("!"):
        store.tree.remove(ROOT_INO, name.encode(), 9)
        facts["deleted"] = facts["read"].pop(name)


def new_content(name: str) -> bytes:
    """What a person saves under a name."""
    return image(_SAVED_BYTES, name)


def digest(content: bytes) -> str:
    """Tells contents apart."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
