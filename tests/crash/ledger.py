"""Writers that keep a ledger of what the mount acknowledged, and the judge who reads it after a crash.

Run as a program it is one writer: it saves images with content that only their name and number determine,
and notes in its ledger, outside the mount, when it begins a step and when the mount has acknowledged it, with
the time of the machine's monotonic clock.
"""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NAMES_PER_WRITER = 8
# Steps after which a program may rely on the disk. An fsync covers the name of a new file, too.
SYNCED = ("fsync", "fsynced replace")
_SIZES_BYTES = (0, 1, 3_000, 100_000, 131_072, 131_073, 400_000, 1_500_000)


def content(name: str, number: int) -> bytes:
    """The content of save `number` of an image: its size, and a stream that only both determine."""
    seed = hashlib.sha256(f"{name} {number}".encode()).digest()
    size_bytes = _SIZES_BYTES[seed[0] % len(_SIZES_BYTES)]
    return hashlib.shake_256(seed).digest(size_bytes)


def write_forever(directory: str, ledger_path: str, writer: int, first_number: int) -> None:
    """Save, replace and delete images until somebody ends us."""
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    choose = random.Random(writer * 1_000_003 + first_number)
    number = first_number
    while True:
        name = f"w{writer}-{choose.randrange(NAMES_PER_WRITER)}.bin"
        path = os.path.join(directory, name)
        kind = choose.choice(["overwrite", "replace", "fsync", "fsync", "fsynced replace", "delete"])
        number += 1
        _note(ledger, "begin", kind, name, number)
        if kind == "delete":
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        else:
            target = path + ".tmp" if "replace" in kind else path
            with open(target, "wb", buffering=0) as file:
                data = memoryview(content(name, number))
                while data:
                    data = data[file.write(data[:65_536]) :]
                if kind in SYNCED:
                    os.fsync(file.fileno())
            if target != path:
                os.rename(target, path)
                if kind in SYNCED:
                    _sync_directory(directory)
        _note(ledger, "done", kind, name, number)


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _note(ledger: int, what: str, kind: str, name: str, number: int) -> None:
    os.write(ledger, json.dumps([what, kind, name, number, time.monotonic()]).encode() + b"\n")


@dataclass
class Verdict:
    """What a crash left of what was acknowledged."""

    acknowledged: int = 0
    synced: int = 0
    checked: int = 0
    losses: list[str] = field(default_factory=list)


@dataclass
class _History:
    """Legal states of one name: the last that had to survive and everything begun since. None: deleted."""

    legal: list[int | None] = field(default_factory=lambda: [None])
    steps: list[str] = field(default_factory=list)
    highest: int = 0


def survives_kill(kind: str, done_s: float) -> bool:
    """Everything that was acknowledged survives the end of the daemon."""
    return True


def judge(
    directory: Path, ledgers: list[Path], survives: Callable[[str, float], bool] = survives_kill
) -> Verdict:
    """Compare the mount after a crash with the ledgers: every image is one of its legal versions, whole.

    `survives` tells of an acknowledged step, by its kind and its moment, whether it had to survive.
    """
    verdict = Verdict()
    for ledger in ledgers:
        histories: dict[str, _History] = {}
        for line in ledger.read_bytes().splitlines():
            what, kind, name, number, at_s = json.loads(line)
            history = histories.setdefault(name, _History())
            state = None if kind == "delete" else number
            history.highest = max(history.highest, number)
            history.steps.append(f"{what} {kind} {number} at {at_s:.4f}")
            if what == "begin":
                history.legal.append(state)
                continue
            verdict.acknowledged += 1
            verdict.synced += kind in SYNCED
            if survives(kind, at_s):
                history.legal = [state]
        for name, history in histories.items():
            verdict.checked += 1
            _judge_name(directory / name, history, verdict)
    return verdict


def _judge_name(path: Path, history: _History, verdict: Verdict) -> None:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        if None not in history.legal:
            _lose(path, "gone", history, verdict)
        return
    except OSError as error:
        _lose(path, str(error), history, verdict)
        return
    if not any(number is not None and found == content(path.name, number) for number in history.legal):
        numbers = range(history.highest + 1)
        whole = [number for number in numbers if content(path.name, number) == found]
        _lose(path, f"{len(found)} bytes, which are {whole or 'no version'}", history, verdict)


def _lose(path: Path, what: str, history: _History, verdict: Verdict) -> None:
    steps = "; ".join(history.steps[-6:])
    verdict.losses.append(f"{path.name}: {what}, legal {history.legal}, after: {steps}")


if __name__ == "__main__":
    write_forever(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
