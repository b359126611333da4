"""Power cuts while writers work: the store's file system is shut down without flushing, and comes back."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import killing
import ledger
from disks import LoopDisk
from support import Mount

_WRITERS = 3
_LONGEST_LIFE_S = 2.5
# A barrier runs at most one second after the first unsynced save. The rest is for a busy machine.
_BARRIER_MARGIN_S = 4.0


@dataclass
class Tally:
    """What a series of power cuts proved."""

    cuts: int = 0
    acknowledged: int = 0
    synced: int = 0
    checked: int = 0
    unsynced_files_lost: int = 0
    recoveries: int = 0


def cut_repeatedly(mount: Mount, disk: LoopDisk, cuts: int, seed: int) -> Tally:
    """Cut the power `cuts` times; raises AssertionError with the losses as soon as there is one.

    The store is on `disk`, the ledgers and the mountpoint are not.
    """
    chance = random.Random(seed)
    tally = Tally()
    mount.store = disk.path / "store"
    mount.expect_log("recovery:")
    for number in range(cuts):
        mount.mount()
        verdict, control_lost = _one_life(mount, disk, number, chance.uniform(0.05, _LONGEST_LIFE_S))
        assert not verdict.losses, f"cut {number + 1}: {verdict.losses}"
        tally.cuts += 1
        tally.acknowledged += verdict.acknowledged
        tally.synced += verdict.synced
        tally.checked += verdict.checked
        tally.unsynced_files_lost += control_lost
        tally.recoveries += "recovery:" in mount.log_text()
    return tally


def _one_life(mount: Mount, disk: LoopDisk, number: int, life_s: float) -> tuple[ledger.Verdict, bool]:
    images = mount.mountpoint / f"cut-{number}"
    images.mkdir()
    ledgers = [mount.directory / f"ledger-{disk.path.name}-{number}-{writer}" for writer in range(_WRITERS)]
    control = disk.path / f"control-{number}"
    daemon = mount.pid
    with killing.writing(images, ledgers):
        time.sleep(life_s)
        control.write_bytes(b"not synced")
        cut_at_s = time.monotonic()
        disk.cut_power()
    mount.kill(daemon)
    for path in mount.log_paths:
        path.unlink()  # a daemon whose disk is gone complains of everything
    disk.restart()

    def survives(kind: str, done_s: float) -> bool:
        return (kind in ledger.SYNCED and done_s < cut_at_s) or done_s < cut_at_s - _BARRIER_MARGIN_S

    mount.mount()
    verdict = ledger.judge(images, ledgers, survives)
    mount.unmount()
    check = mount.run("check", mount.store)
    assert check.returncode == 0, check.stdout + check.stderr
    return verdict, not _holds(control, b"not synced")


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content
