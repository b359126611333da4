"""A small disk that writers fill again and again through the mount, deleting in between."""

import contextlib
import errno
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ledger
from support import Mount

DISK_SIZE_MIB = 64
_WRITERS = 4
_NAMES_PER_WRITER = 90
_STEPS = 80
_GIVING_UP_TIMEOUT_S = 10.0


@dataclass
class Tally:
    """What a series of rounds proved."""

    rounds: int = 0
    saved: int = 0
    refused: int = 0
    deleted: int = 0
    deleted_when_full: int = 0


class Writer:
    """Saves, replaces and deletes its own images; knows which versions of each may be there."""

    def __init__(self, directory: Path, number: int, tally: Tally) -> None:
        self._directory = directory
        self._number = number
        self._tally = tally
        self._chance = random.Random(number)
        self._save_number = 0
        # None: no image. A save that was refused may have been done all the same, with room that came later.
        self.legal: dict[str, set[int | None]] = {}

    def work(self) -> None:
        """One round. Raises where a delete fails, or a save fails for another reason than the full disk."""
        for _ in range(_STEPS):
            name = f"w{self._number}-{self._chance.randrange(_NAMES_PER_WRITER)}.bin"
            kind = self._chance.choice(["save", "save", "save", "replace", "delete"])
            if kind == "delete":
                self._delete(name)
                self._tally.deleted += 1
                continue
            try:
                self._save(name, replace=kind == "replace")
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self._tally.refused += 1
                for other in self._chance.sample(sorted(self.legal), min(3, len(self.legal))):
                    self._delete(other)
                    self._tally.deleted_when_full += 1

    def _save(self, name: str, *, replace: bool) -> None:
        self._save_number += 1
        path = self._directory / name
        target = self._directory / f"{name}.tmp" if replace else path
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                data = memoryview(ledger.content(name, self._save_number))
                while data:
                    data = data[os.write(descriptor, data[:65_536]) :]
            finally:
                os.close(descriptor)
            if replace:
                target.rename(path)
        except OSError:
            if replace:
                with contextlib.suppress(FileNotFoundError):
                    target.unlink()
            else:
                self.legal.setdefault(name, {None}).add(self._save_number)
            raise
        self.legal[name] = {self._save_number}
        self._tally.saved += 1

    def delete_all(self) -> None:
        """Make room."""
        for name in list(self.legal):
            self._delete(name)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._directory / name).unlink()
        self.legal[name] = {None}

    def losses(self) -> list[str]:
        """Images that are not what they must be. A draft is given up a moment after its close has failed."""
        deadline = time.monotonic() + _GIVING_UP_TIMEOUT_S
        while True:
            wrong = [name for name, legal in self.legal.items() if self._found(name) not in legal]
            if not wrong or time.monotonic() > deadline:
                return [f"{name}: {self._found(name)} instead of {self.legal[name]}" for name in wrong]
            time.sleep(0.1)

    def _found(self, name: str) -> int | str | None:
        try:
            found = (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return str(error)  # while a draft that found no room is being given up, any close of it tells so
        for number in self.legal[name]:
            if number is not None and found == ledger.content(name, number):
                return number
        return f"{len(found)} other bytes"


def fill_repeatedly(mount: Mount, rounds: int) -> Tally:
    """Fill the disk of a mounted store; raises AssertionError with the losses as soon as there is one."""
    tally = Tally()
    mount.expect_log("was not saved")
    writers = [Writer(mount.mountpoint, number, tally) for number in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in range(rounds):
            for done in [pool.submit(writer.work) for writer in writers]:
                done.result()
            losses = [loss for writer in writers for loss in writer.losses()]
            assert not losses, f"round {tally.rounds + 1}: {losses}"
            tally.rounds += 1
    writers[0].delete_all()
    data = bytes(range(256)) * 20_000
    (mount.mountpoint / "last.bin").write_bytes(data)
    mount.remount()
    assert (mount.mountpoint / "last.bin").read_bytes() == data
    assert not [loss for writer in writers for loss in writer.losses()]
    return tally
