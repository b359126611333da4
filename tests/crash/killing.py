"""kill -9 at random moments while writers work, and the count of what was lost."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ledger
from support import Mount

_WRITERS = 3
_LONGEST_LIFE_S = 0.8


@dataclass
class Tally:
    """What a series of kills proved."""

    kills: int = 0
    acknowledged: int = 0
    checked: int = 0
    recovered_drafts: int = 0


def kill_repeatedly(mount: Mount, kills: int, seed: int) -> Tally:
    """Kill the daemon `kills` times; raises AssertionError with the losses as soon as there is one."""
    chance = random.Random(seed)
    tally = Tally()
    mount.expect_log("recovery:")
    for round_number in range(kills):
        mount.mount()
        verdict = _one_life(mount, round_number, chance.uniform(0.05, _LONGEST_LIFE_S))
        assert not verdict.losses, f"kill {round_number + 1}: {verdict.losses}"
        tally.kills += 1
        tally.acknowledged += verdict.acknowledged
        tally.checked += verdict.checked
    tally.recovered_drafts = mount.log_text().count("recovery:")
    return tally


def _one_life(mount: Mount, round_number: int, life_s: float) -> ledger.Verdict:
    images = mount.mountpoint / f"round-{round_number}"
    images.mkdir()
    ledgers = [mount.directory / f"ledger-{round_number}-{writer}" for writer in range(_WRITERS)]
    with writing(images, ledgers):
        time.sleep(life_s)
        # The dead mount stays until the writers have ended: in the empty directory below it a delete would
        # find nothing and be noted as done. The next mount cleans it away.
        mount.signal(signal.SIGKILL)
    mount.mount()
    verdict = ledger.judge(images, ledgers)
    mount.unmount()
    return verdict


@contextmanager
def writing(images: Path, ledgers: list[Path]) -> Iterator[None]:
    """One writer for each ledger; all have begun their work at the start and ended at the end."""
    writers = [
        subprocess.Popen(
            [sys.executable, ledger.__file__, images, path, str(writer), "0"], stderr=subprocess.DEVNULL
        )
        for writer, path in enumerate(ledgers)
    ]
    try:
        _wait_for_work(ledgers)
        yield
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def _wait_for_work(ledgers: list[Path]) -> None:
    """A kill before anything was acknowledged would prove nothing."""
    deadline = time.monotonic() + 30
    while not all(path.exists() and b'"done"' in path.read_bytes() for path in ledgers):
        assert time.monotonic() < deadline, "the writers did not get to work"
        time.sleep(0.01)
