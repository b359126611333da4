"""Rounds by number, in several processes: counts of what was tried, and how to run a failed one again."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import people
from disks import in_memory

# A round with the real commands costs a hundred others.
ROUNDS_A_MOUNT = 100
_LEFTOVER_TIMEOUT_S = 20.0
# Log, journal and reserve of a store are a part of its disk: on a small one a round takes half the time.
_MEMORY_MIB = 40


@dataclass
class Failure:
    """How one round failed."""

    number: int
    rule: str
    where: tuple[str, str]
    what: str
    detail: str


@dataclass
class Tally:
    """What the rounds tried and what became of the images."""

    rounds: int = 0
    mounts: int = 0
    images: int = 0
    elsewhere: int = 0
    set_aside: int = 0
    told_lost: int = 0
    tried: Counter[str] = field(default_factory=Counter)

    def count(self, action: str, target: str, kind: str) -> None:
        """One more of what was done, to what, in which kind of store."""
        self.tried.update((action, f"of {target}", f"in {kind}"))

    def add(self, other: dict[str, Any]) -> None:
        """Add what another process counted."""
        for name, count in other.items():
            if name == "tried":
                self.tried.update(count)
            else:
                setattr(self, name, getattr(self, name) + count)

    def lines(self) -> Iterator[str]:
        """The counts, for people."""
        yield f"{self.mounts} of the rounds with a real mount"
        if self.images:
            yield (
                f"{self.images} images compared, "
                f"{self.elsewhere} of them under another name, {self.set_aside} set aside with their keys, "
                f"{self.told_lost} lost and told"
            )
        counts = self.tried.most_common()
        for first in ("of ", "in "):
            yield ", ".join(f"{count} {name}" for name, count in counts if name.startswith(first))
        yield ", ".join(f"{count} {name}" for name, count in counts if name[:3] not in ("of ", "in "))


class Runner(Protocol):
    """Runs rounds in a folder of its own."""

    def round(self, number: int, tally: Tally, *, verbose: bool = False) -> list[Failure]:
        """Run one round; returns how it failed."""


def run(name: str, make: Callable[..., Runner], default_rounds: int) -> int:
    """Run rounds as the command line asks; the exit status is 1 where one failed."""
    asked = _arguments(name, default_rounds)
    # SIGTERM ends the rounds as Ctrl-C does, so that everything is unmounted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tally = Tally()
    failures: list[Failure] = []
    interrupted = False
    try:
        for message in _messages(make, asked):
            if "failure" in message:
                failure = Failure(**message["failure"])
                failures.append(failure)
                if not asked.json:
                    _tell(name, asked.seed, failure)
            else:
                tally.add(message["tally"])
    except KeyboardInterrupt:
        interrupted = True
    if asked.json:
        print(json.dumps({**vars(tally), "failures": [asdict(failure) for failure in failures]}))
    else:
        _summarize(name, tally, failures)
    return 1 if failures or interrupted else 0


def _arguments(name: str, default_rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("rounds", type=int, nargs="?", default=default_rounds)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--round", type=int, default=0, help="the number of the first round (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=int, default=50, help="stop after so many failed rounds")
    parser.add_argument("--kind", help="only stores of this kind, which makes other rounds of them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="print what every command said")
    return parser.parse_args()


def remove_folder(folder: Path) -> None:
    """Remove what a round left. A helper of a command that was killed may still be writing there."""
    deadline_s = time.monotonic() + _LEFTOVER_TIMEOUT_S
    while True:
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return


def _tell(name: str, seed: int, failure: Failure) -> None:
    print(
        f"FAILED: {failure.rule}: {failure.detail}\n  {failure.what}\n"
        f"  again: scripts/torture {name} 1 --seed {seed} --round {failure.number} --verbose",
        flush=True,
    )


def _summarize(name: str, tally: Tally, failures: list[Failure]) -> None:
    for line in tally.lines():
        print(line)
    kinds = Counter((failure.rule, *failure.where) for failure in failures)
    for (rule, action, target), count in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"{count} times: {rule}, after: {action} of {target}")
    print(f"{name}: {tally.rounds} rounds, {len({failure.number for failure in failures})} failed")


def _messages(make: Callable[..., Runner], asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the workers report, until all have ended or too many rounds have failed."""
    with _scene() as folder:
        numbers = range(asked.round, asked.round + asked.rounds)
        workers = min(asked.workers, asked.rounds)
        read_end, write_end = os.pipe()
        pids = [
            _worker(make, asked, numbers[worker::workers], folder / str(worker), (read_end, write_end))
            for worker in range(workers)
        ]
        os.close(write_end)
        failed: set[int] = set()
        done = False
        try:
            with open(read_end, encoding="utf-8") as reports:
                for line in reports:
                    message = json.loads(line)
                    yield message
                    failed |= {message["failure"]["number"]} if "failure" in message else set()
                    if len(failed) >= asked.failures:
                        break
                else:
                    done = True
        finally:
            ended = [_end(pid, ask=not done) for pid in pids]
        if not all(ended):
            sys.exit("a process that ran rounds broke")


def _end(pid: int, *, ask: bool) -> bool:
    """Wait for the end of a worker, which is asked for it or has done its rounds; whether it was well."""
    if ask:
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    return status == 0


@contextmanager
def _scene() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pixstorefs-rounds-", dir=memory) as directory:
        yield Path(directory)


def _worker(
    make: Callable[..., Runner],
    asked: argparse.Namespace,
    numbers: range,
    folder: Path,
    pipe: tuple[int, int],
) -> int:
    """A process that runs these rounds; returns its pid. It is a zombie until it is waited for."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    read_end, write_end = pipe
    # Or it would wait for itself to read on when nobody else does any more.
    os.close(read_end)
    try:
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        folder.mkdir()
        people.preload()
        with in_memory(folder, _MEMORY_MIB) as site:
            _run_rounds(make(site, folder, asked.seed, asked.kind), numbers, write_end, verbose=asked.verbose)
        status = 0
    except (KeyboardInterrupt, BrokenPipeError):
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_rounds(runner: Runner, numbers: range, write_end: int, *, verbose: bool) -> None:
    for number in numbers:
        tally = Tally(rounds=1)
        for failure in runner.round(number, tally, verbose=verbose):
            _report(write_end, {"failure": asdict(failure)})
        _report(write_end, {"tally": vars(tally)})


def _report(write_end: int, message: dict[str, Any]) -> None:
    # A line up to PIPE_BUF is written as a whole beside those of other workers (pipe(7)).
    line = json.dumps(message).encode() + b"\n"
    assert len(line) <= 4096
    os.write(write_end, line)
