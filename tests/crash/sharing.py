"""Two machines with one store on a server, through sshfs: killed, cut off, asleep, and back again.

Each machine has a network mount, a host name, a machine id and a boot id of its own. One takes the store from
the other as a person would (`break_lock`) when that one seems to be gone. Nothing that was acknowledged as
durable may be lost, never may two of them write, and who lost the store has to be told. As root.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rounds import Failure, Tally, remove_folder, run
from sharing_machine import image, name_of
from support import program

import pixstorefs
from pixstorefs.errors import ImageNotFound
from pixstorefs.keys.secrets import create_keyfile

SFTP_SERVER = "/usr/lib/openssh/sftp-server"
_ANSWER_TIMEOUT_S = 120
EVENTS = ("in turn", "at once", "killed", "cut off", "asleep", "connection lost")


class Wrong(Exception):
    """What should not have happened: the rule and a detail."""


class Remote:
    """A machine as this test drives it."""

    def __init__(self, name: str, folder: Path, export: Path) -> None:
        folder.mkdir()
        (folder / "key").write_bytes((export.parent / "key").read_bytes())
        self.name = name
        self._server_pid = folder / "server.pid"
        shell = folder / "shell"
        shell.write_text(f"#!/bin/sh\necho $$ >{self._server_pid}\nexec {SFTP_SERVER}\n")
        shell.chmod(0o700)
        self._process = subprocess.Popen(
            [
                *(program("unshare"), "--mount", "--uts", sys.executable, "-P"),
                *(
                    str(Path(__file__).with_name("sharing_machine.py")),
                    name,
                    str(export),
                    str(folder / "nas"),
                ),
                str(shell),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what it logs; what counts is what it answers
            text=True,
            start_new_session=True,
        )
        self.pid = self.answer()["ok"]

    def ask(self, *words: Any) -> None:
        """Give a command, without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest command that has none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the machine {self.name} ended"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def do(self, *words: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.ask(*words)
        return self.answer()

    def kill(self) -> None:
        """The machine is switched off, with all that it has in memory."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def server(self, number: signal.Signals) -> None:
        """Signal the server's end of the connection."""
        os.kill(int(self._server_pid.read_text()), number)

    def end(self) -> None:
        """End everything of the machine. Its mount namespace goes with it, and the mount in that."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
                self.server(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Round:
    """One store, two machines, one event between them."""

    def __init__(
        self, folder: Path, chance: random.Random, events: tuple[str, ...], machines: contextlib.ExitStack
    ) -> None:
        self._export = folder / "export"
        self._export.mkdir()
        self._chance = chance
        self._folder = folder
        self._key = str(folder / "key")
        self._durable: set[str] = set()
        self._saved: set[str] = set()
        self._number = 0
        names = ["north1", "south1"]
        chance.shuffle(names)
        self.event = chance.choice(events)
        create_keyfile(Path(self._key))
        with pixstorefs.open_store(str(self._export / "store"), keyfile=self._key) as store:
            for _ in range(3):
                name = self._next()
                store.save_image(image(name))
                self._durable.add(name)
        self._first, self._second = (Remote(name, folder / name, self._export) for name in names)
        for machine in (self._first, self._second):
            machines.callback(machine.end)

    def _next(self) -> str:
        self._number += 1
        return f"i{self._number:05}"

    def run(self) -> None:
        """Let it happen. Raises Wrong."""
        if self.event == "at once":
            self._open_at_once()
        else:
            self._must(self._first.do("open", False), "opens")
            self._save_some(self._first, sync=True)
            self._refused(self._second.do("open", False))
            getattr(self, "_" + self.event.replace(" ", "_"))()
        self._save_some(self._second, sync=self._chance.random() < 0.5)
        self._must(self._second.do("close"), "closes")
        self._durable |= self._saved
        self._look()

    # Events

    def _in_turn(self) -> None:
        """To and fro: each sees what the other one wrote, whatever its network mount remembers."""
        for _ in range(2):
            self._save_some(self._first, sync=False)
            self._must(self._first.do("close"), "closes")
            self._durable |= self._saved
            self._must(self._second.do("open", False), "opens")
            answer = self._second.do("names")
            self._must(answer, "reads")
            if missing := sorted(self._durable - set(answer["ok"])):
                raise Wrong("the next owner does not see all", ", ".join(missing))
            self._first, self._second = self._second, self._first
        self._second = self._first

    def _open_at_once(self) -> None:
        both = [self._first, self._second]
        for machine in both:
            machine.ask("open", False)
        answers = [machine.answer() for machine in both]
        owners = [machine for machine, answer in zip(both, answers, strict=True) if "ok" in answer]
        if len(owners) > 1:
            raise Wrong("both own the store", str(answers))
        if not owners:  # both refused, which is no harm: a person tries again
            self._second.do("open", False)
            owners = [self._second]
        self._second = owners[0]

    def _killed(self) -> None:
        self._saves_under_way(self._first)
        self._first.kill()
        self._take_over()

    def _connection_lost(self) -> None:
        self._first.server(signal.SIGKILL)
        self._take_over()
        self._is_told(self._first)

    def _cut_off(self) -> None:
        """The network holds back what the machine sends, and brings it when another one has the store."""
        under_way = self._saves_under_way(self._first)
        time.sleep(self._chance.random() * 0.05)
        self._first.server(signal.SIGSTOP)
        self._take_over()
        self._save_some(self._second, sync=True)
        self._first.server(signal.SIGCONT)
        for name in under_way:
            if "ok" in self._first.answer():
                self._durable.add(name)
        self._is_told(self._first)

    def _asleep(self) -> None:
        os.kill(self._first.pid, signal.SIGSTOP)
        self._take_over()
        self._save_some(self._second, sync=True)
        os.kill(self._first.pid, signal.SIGCONT)
        self._is_told(self._first)

    def _take_over(self) -> None:
        self._refused(self._second.do("open", False))
        self._must(self._second.do("open", True), "opens when the lock is broken")

    # What has to be so

    def _save_some(self, machine: Remote, *, sync: bool) -> None:
        for _ in range(self._chance.randrange(1, 4)):
            name = self._next()
            self._must(machine.do("save", name), "saves")
            self._saved.add(name)
        if sync:
            self._must(machine.do("sync"), "syncs")
            self._durable |= self._saved

    def _saves_under_way(self, machine: Remote) -> list[str]:
        """Nobody waits for these: they may come to their end or not."""
        names = [self._next() for _ in range(3)]
        for name in names:
            machine.ask("save", name)
        return names

    def _must(self, answer: dict[str, Any], what: str) -> None:
        if "error" in answer:
            raise Wrong(f"the owner {what}", f"{answer['error']}: {answer['message']}")

    def _refused(self, answer: dict[str, Any]) -> None:
        if answer.get("error") != "OwnedElsewhere":
            raise Wrong("two own the store", str(answer))
        if f"on {self._first.name}" not in answer["message"]:
            raise Wrong("it is not said who has the store", answer["message"])

    def _is_told(self, machine: Remote) -> None:
        for words in (("save", self._next()), ("close",)):
            answer = machine.do(*words)
            if "error" not in answer:
                raise Wrong("the machine that lost the store is not told", words[0])

    def _look(self) -> None:
        """The store, on the server itself: everything durable is there, and nothing is wrong with it."""
        for machine in (self._first, self._second):
            machine.end()
        status, said = self._check()
        if "lost the store" in said:
            status, said = self._check("--repair")
        # 1: objects that belong to no image, which a machine that lost the store had begun.
        if status not in (0, 1):
            raise Wrong("the check finds something", said)
        with pixstorefs.open_store(str(self._export / "store"), keyfile=self._key, create=False) as store:
            records = list(store.images())
            with contextlib.suppress(ImageNotFound):  # what a machine had saved when it lost the store
                records += store.images("lost+found")
            found = {name_of(store.read_image(record.id)) for record in records}
        if missing := sorted(self._durable - found):
            raise Wrong("acknowledged images are lost", ", ".join(missing))

    def _check(self, *options: str) -> tuple[int, str]:
        checked = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "pixstorefs", "check", *options),
                *("--keyfile", self._key, str(self._export / "store")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return checked.returncode, checked.stdout + checked.stderr


class Rounds:
    """Runs rounds by their number."""

    def __init__(self, site: Path, library: Path, seed: int, kind: str | None = None) -> None:
        """Rounds take place in `site`. `kind`: the only event that happens."""
        self._site = site
        self._events = (kind,) if kind else EVENTS
        self._seed = seed

    def round(self, number: int, tally: Tally, *, verbose: bool = False) -> list[Failure]:
        """Run round `number`; returns how it failed."""
        folder = self._site / "round"
        folder.mkdir()
        try:
            with contextlib.ExitStack() as machines:
                one = Round(folder, random.Random(f"share {self._seed} {number}"), self._events, machines)
                tally.count("share", "a store", one.event)
                try:
                    one.run()
                except Wrong as wrong:
                    rule, detail = wrong.args
                    return [Failure(number, rule, (one.event, "two machines"), one.event, detail[:2000])]
            if verbose:
                print(f"round {number}: {one.event}: well")
            return []
        finally:
            remove_folder(folder)


if __name__ == "__main__":
    sys.exit(run("share", Rounds, default_rounds=200))
