"""The same person with the real commands and a real mount."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from people import Person, Said, digest, new_content
from stores import Place
from support import command, environment, program, wait_until_gone

_POLL_S = 0.02


class RealPerson(Person):
    """As a `Person`, but everything goes through processes of `pixstorefs` and the kernel. A context manager.

    At the end nothing is mounted and no process of ours is left, whatever happened.
    """

    def __init__(self, place: Place, timeout_s: float = 20.0) -> None:
        super().__init__(place, timeout_s)
        self.mountpoint = place.path.with_name("mount")
        self.mountpoint.mkdir(exist_ok=True)
        self._env = environment(place.path.with_name("papers"))

    def __enter__(self) -> "RealPerson":
        return self

    def __exit__(self, *_: object) -> None:
        self.clean_up()

    def mount(self) -> Said:
        """`pixstorefs mount`."""
        return self._command(
            "mount", "--no-create", self.place.path, self.mountpoint, "--keyfile", self.place.keyfile
        )

    def visit(self, save: str | None = None, delete: str | None = None) -> Said:
        """Mount, read everything, save an image and delete one, unmount."""
        said = self.mount()
        if said.status != 0:
            self.clean_up()
            return said
        facts = self._papers / "facts"
        facts.unlink(missing_ok=True)

        def look() -> int:
            facts.write_text(json.dumps(_used(self.mountpoint, save, delete)))
            return 0

        used = self.bounded("using the mount", look)
        if used.status != 0:
            self.clean_up()
            return used
        ended = self._command("umount", self.mountpoint)
        self.clean_up()
        said.facts = json.loads(facts.read_text()) | {"closed": ended.status == 0}
        said.text += ended.text
        said.status = ended.status
        return said

    def kill(self) -> None:
        """kill -9 the daemon, and clean the dead mount away."""
        for pid in self._daemons():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid)
        # By name alone: whoever asks a mount whose daemon hangs hangs with it.
        while str(self.mountpoint) in _mountpoints():
            subprocess.run(
                [program("fusermount3"), "-u", "-z", self.mountpoint], capture_output=True, check=False
            )

    def clean_up(self) -> None:
        """Nothing is mounted afterwards, and no daemon lives."""
        deadline_s = time.monotonic() + self._timeout_s
        while str(self.mountpoint) not in _mountpoints() and self._daemons():
            if time.monotonic() > deadline_s:
                break
            time.sleep(_POLL_S)
        self.kill()

    def _command(self, *words: str | os.PathLike[str]) -> Said:
        began_s = time.monotonic()
        arguments = [os.fspath(word) for word in words]
        paper = self._papers / "said"
        with open(paper, "wb") as file:
            process = subprocess.Popen(
                command(*arguments), env=self._env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            status: int | None
            try:
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                status = None
                process.kill()
                process.wait()
        text = paper.read_text(errors="replace")
        return Said(arguments[0], status, text, seconds=time.monotonic() - began_s)

    def _daemons(self) -> list[int]:
        """Processes of `pixstorefs` that have this store in their arguments."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (process / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(self.place.path) in arguments and b"pixstorefs" in arguments:
                    found.append(int(process.name))
        return found


def _mountpoints() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return {line.split(" ")[4] for line in lines}


def _used(mountpoint: Path, save: str | None, delete: str | None) -> dict[str, Any]:
    """Read everything below, save and delete; what was read, and what failed."""
    facts: dict[str, Any] = {"read": {}, "errors": []}
    for folder, _, names in os.walk(mountpoint, onerror=lambda error: facts["errors"].append(str(error))):
        for name in names:
            path = Path(folder, name)
            try:
                facts["read"][str(path.relative_to(mountpoint))] = digest(path.read_bytes())
            except OSError as error:
                facts["read"][str(path.relative_to(mountpoint))] = f"!{error}"
    try:
        if save is not None:
            (mountpoint / save).write_bytes(new_content(save))
            facts["read"][save] = digest(new_content(save))
        if delete is not None and not facts["read"].get(delete, "!").startswith("!"):
            (mountpoint / delete).unlink()
            facts["deleted"] = facts["read"].pop(delete)
    except OSError as error:
        facts["errors"].append(str(error))
    return facts
