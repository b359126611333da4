"""The long forms of the crash tests, for scripts/torture: as many rounds as asked for, and the counts.

And of the load: as many minutes as asked for, and what they cost.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import cutting
import filling
import killing
import loading
from disks import LoopDisk
from support import Mount

# A new store every so often: recovery piles up in one, and the first moments of one are tried often, too.
_ROUNDS_A_STORE = {"kills": 50, "cuts": 20, "full": 50}
_DEFAULT_ROUNDS = {"kills": 1000, "cuts": 200, "full": 100, "load": 10}


def kills(rounds: int, seed: int) -> Any:
    """kill -9 under three writers."""
    with _mount() as mount:
        return killing.kill_repeatedly(mount, rounds, seed)


def cuts(kind: str) -> Callable[[int, int], Any]:
    """Power cuts of one file system under three writers."""

    def run(rounds: int, seed: int) -> Any:
        with _mount() as mount, LoopDisk(mount.directory, kind, 512, memory=False).mounted(mount) as disk:
            return cutting.cut_repeatedly(mount, disk, rounds, seed)

    return run


def full(rounds: int, seed: int) -> Any:
    """A small disk filled by four writers."""
    with (
        _mount() as mount,
        LoopDisk(mount.directory, "ext4", filling.DISK_SIZE_MIB, memory=False).mounted(mount) as disk,
    ):
        mount.store = disk.path / "store"
        mount.mount()
        tally = filling.fill_repeatedly(mount, rounds)
        mount.unmount()
        return tally


def load(minutes: int) -> None:
    """stress-ng and fio, eight workers; prints what they did and the memory it took."""
    with (
        _mount() as mount,
        LoopDisk(mount.directory, "ext4", loading.DISK_SIZE_MIB, memory=False).mounted(mount) as disk,
    ):
        mount.store = disk.path / "store"
        mount.mount()
        tally = loading.load(mount, minutes * 60, slice_s=20, stressors_at_once=6)
    print(f"load: {tally}, 0 losses", flush=True)


@contextmanager
def _mount() -> Iterator[Mount]:
    with tempfile.TemporaryDirectory(prefix="pixstorefs-torture-", dir="/var/tmp") as directory:
        mount = Mount(Path(directory))
        try:
            yield mount
        finally:
            mount.close()


def repeat(name: str, run: Callable[[int, int], Any], rounds: int, a_store: int, seed: int) -> None:
    """Run in stores of `a_store` rounds each, printing the counts; AssertionError at the first loss."""
    totals: dict[str, int] = {}
    done = 0
    while done < rounds:
        count = min(a_store, rounds - done)
        tally = run(count, seed)
        for field in fields(tally):
            totals[field.name] = totals.get(field.name, 0) + getattr(tally, field.name)
        done += count
        seed += 1
        counts = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in totals.items())
        print(f"{name}: {counts}, 0 losses", flush=True)
    assert all(totals.values()), f"{name}: one of the counts is zero, so this proved nothing"


def main() -> int:
    """Torture as asked; the exit status is 1 at the first loss."""
    parser = argparse.ArgumentParser(prog="torture", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("kills", "cuts", "full", "load"))
    parser.add_argument("rounds", type=int, nargs="?", help="kills, cuts of each disk, rounds, or minutes")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    missing = [name for name in loading.PROGRAMS if asked.what == "load" and not shutil.which(name)]
    if missing:
        parser.error(f"{' and '.join(missing)} missing: scripts/test installs what the tests drive")
    rounds = asked.rounds or _DEFAULT_ROUNDS[asked.what]
    runs: dict[str, dict[str, Callable[[int, int], Any]]] = {
        "kills": {"kills": kills},
        "cuts": {"cuts on ext4": cuts("ext4"), "cuts on xfs": cuts("xfs")},
        "full": {"full": full},
    }
    try:
        if asked.what == "load":
            load(rounds)
        for name, run in runs.get(asked.what, {}).items():
            repeat(name, run, rounds, _ROUNDS_A_STORE[asked.what], asked.seed)
    except AssertionError as error:
        print(f"LOST: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
