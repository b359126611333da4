"""Die, fail or lose power at every system call of every scenario, and see what is left.

Run as a program: it preloads faults.c into itself, finds the calls of a scenario by running it, and runs it
again for each of them in a forked child with a fault there. What is left must be exactly the state before or
after the step that was hit; what was acknowledged must be there; and nothing may be left over.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disks import LoopDisk
from scenarios import KEYS, SCENARIOS, KeyStep, Scenario, Step, Tree, describe, named, prepare, settings
from snapshot_case import SnapshotCase
from stores import SMALL_JOURNAL_SIZE_BYTES, Place, image, objects_of

from pixstorefs.check.check import Check, Progress
from pixstorefs.check.view import StoreView
from pixstorefs.errors import PixstoreError, WrongKey
from pixstorefs.index.findings import Reaction
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.objects import journal
from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.store import Store
from pixstorefs.trust.header import create_store, differing_copies, is_store, keys_json, read_header

_SHIM = "PIXSTOREFS_FAULTS"
_COUNT, _DIE_BEFORE, _DIE_AFTER, _FAIL, _FAIL_ON, _SHORTEN, _CUT_POWER = range(7)
KINDS = {
    "die before": (_DIE_BEFORE, 0),
    "die after": (_DIE_AFTER, 0),
    "EIO": (_FAIL, errno.EIO),
    "ENOSPC": (_FAIL, errno.ENOSPC),
    "EIO from then on": (_FAIL_ON, errno.EIO),
    "ENOSPC from then on": (_FAIL_ON, errno.ENOSPC),
    "short write": (_SHORTEN, 0),
    "power cut": (_CUT_POWER, 0),
}
_DIED = 77
_OPENED, _SYNCED, _CLOSED = "opened", "synced", "closed"


@dataclass
class Tally:
    """What the harness proved."""

    points: int = 0
    old: int = 0
    new: int = 0
    failed_and_told: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Shim:
    """The preloaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[_SHIM])

    def arm(self, root: Path, kind: int, at: int, number: int, trace: int = -1) -> None:
        """Begin to count the calls below `root`."""
        self._library.faults_arm(os.fsencode(root), kind, ctypes.c_long(at), number, trace)


class Harness:
    """One scenario with a prepared store, run again and again in `site`."""

    def __init__(self, scenario: Scenario, site: "Site", shim: Shim) -> None:
        self._scenario = scenario
        self._site = site
        self._shim = shim
        base = site.folder / "base"
        base.mkdir()
        self._base = Place(base)
        prepare(self._base, scenario)
        self._place = Place(site.disk_folder)
        shutil.copy(self._base.keyfile, self._place.keyfile)
        self._secret = secret_from_keyfile(self._place.keyfile)
        self.states = self._legal_states()

    def _legal_states(self) -> list[Tree]:
        """What the store shows before the first step and after each."""
        self._reset()
        store = self._place.open_store()
        states = [describe(store)]
        for step in self._scenario.steps:
            step(store)
            states.append(describe(store))
        store.close()
        return states

    def trace(self) -> list[str]:
        """The calls of the scenario without a fault, in their order."""
        self._reset()
        with tempfile.TemporaryFile() as file:
            self._run(lambda: self._shim.arm(self._place.path, _COUNT, 0, 0, file.fileno()))
            file.seek(0)
            return file.read().decode().splitlines()

    def check(self, kind: str, at: int, tally: Tally) -> None:
        """Run the scenario with a fault at one call, and judge what is left."""
        self._reset()
        what, number = KINDS[kind]
        status, notes = self._run(lambda: self._shim.arm(self._place.path, what, at, number))
        tally.points += 1
        if what == _CUT_POWER:
            self._site.restart()
        legal = self._legal(what, notes)
        problems = [note for note in notes if note.startswith("!")]
        if status not in (0, _DIED):
            problems.append(f"the process ended with {status}")
        try:
            found = self._reopened()
        except (PixstoreError, OSError, AssertionError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        else:
            if found not in legal:
                problems.append(
                    f"neither old nor new: {self._brief(found)}, legal: {[*map(self._brief, legal)]}"
                )
            tally.old += found == self.states[0]
            tally.new += found == self.states[-1]
        tally.failed_and_told += any(note.startswith("failed") for note in notes)
        tally.problems += [f"{self._scenario.name}, {kind} at call {at}: {problem}" for problem in problems]

    def _legal(self, what: int, notes: list[str]) -> list[Tree]:
        done = sum(note.startswith("done") for note in notes)
        if _SYNCED in notes or _CLOSED in notes:
            return [self.states[done]]
        if what == _CUT_POWER:
            return self.states[: done + 2]
        # Nothing that was acknowledged goes with the process; the step under way may have been done.
        return self.states[done : done + 2]

    def _reopened(self) -> Tree:
        """What a new opening shows; a second one has nothing to recover, and no object is left over."""
        path = str(self._place.path)
        with contextlib.closing(open_unlocked(path, self._secret)) as store:
            found = describe(store)
        with contextlib.closing(open_unlocked(path, self._secret)) as store:
            assert store.report == [], f"recovered twice: {store.report}"
            assert describe(store) == found, "the second opening shows something else"
            store.sync()
            known = set(_objects_wanted(store))
        with StoreView(path, self._secret) as view:
            problems = [
                found for found in Check(view, Progress()).run() if found.reaction is not Reaction.NOTE
            ]
        assert not problems, f"the check found {problems}"
        left = set(objects_of(self._place.path)) ^ known
        assert not left, f"objects left over or missing: {left}"
        return found

    def _brief(self, tree: Tree) -> object:
        return {path: (len(content), nlink) for path, (_, content, nlink, _) in tree.items()}

    def _reset(self) -> None:
        if self._place.path.exists():
            shutil.rmtree(self._place.path)
        shutil.copytree(self._base.path, self._place.path)
        self._site.sync()

    def _run(self, arm: Callable[[], None]) -> tuple[int, list[str]]:
        with settings(self._scenario):
            return in_child(arm, self._act)

    def _act(self, note: Callable[[str], object]) -> None:
        """Open, do the steps, sync, close. A step that fails must have changed nothing; it is tried again."""
        try:
            store = self._place.open_store()
        except (PixstoreError, OSError) as error:
            note(f"failed to open: {error}")
            return
        note(_OPENED)
        for number, step in enumerate(self._scenario.steps):
            if not self._do(store, step, number, note):
                break
        for what, finish in ((_SYNCED, store.sync), (_CLOSED, store.close)):
            try:
                finish()
                note(what)
            except (PixstoreError, OSError) as error:
                note(f"failed: {error}")

    def _do(self, store: Store, step: Step, number: int, note: Callable[[str], object]) -> bool:
        for _ in range(2):
            try:
                step(store)
            except (PixstoreError, OSError) as error:
                note(f"failed: {error}")
                with contextlib.suppress(PixstoreError, OSError):  # an index that cannot be read tells so
                    if describe(store) != self.states[number]:
                        note(f"! step {number} failed and changed something: {error}")
            else:
                note(f"done {number}")
                return True
        return False


class KeyChanges(Harness):
    """Changes of the keys: exactly the old or exactly the new ones open the store, and all images are there.

    A state is the set of secrets that open it. What was acknowledged is durable.
    """

    def _legal_states(self) -> list[Any]:
        self._reset()
        path = str(self._place.path)
        self._secrets = KEYS | {"first": self._secret}
        with contextlib.closing(self._place.open_store()) as store:
            self._tree = describe(store)
        self._reset()
        states = [self._opening(keys_json(path))]
        for step in self._scenario.key_steps:
            step(path)
            states.append(self._opening(keys_json(path)))
        return states

    def _opening(self, slots: bytes) -> frozenset[str]:
        header = read_header(str(self._place.path)).raw
        found = set()
        for name, secret in self._secrets.items():
            with contextlib.suppress(WrongKey):
                keyring.unlock(slots, secret, header)
                found.add(name)
        return frozenset(found)

    def _act(self, note: Callable[[str], object]) -> None:
        for number, step in enumerate(self._scenario.key_steps):
            if not self._do_step(step, number, note):
                break

    def _do_step(self, step: KeyStep, number: int, note: Callable[[str], object]) -> bool:
        """A step that fails and says that nothing was changed is tried again."""
        for _ in range(2):
            try:
                step(str(self._place.path))
            except (PixstoreError, OSError) as error:
                note(f"failed: {error}")
                if "as before" not in str(error):
                    break
                if self._opening_now() != self.states[number]:
                    note(f"! step {number} failed and changed something: {error}")
            else:
                note(f"done {number}")
                return True
        return False

    def _legal(self, what: int, notes: list[str]) -> list[Any]:
        done = sum(note.startswith("done") for note in notes)
        return self.states[done : done + 2]

    def _reopened(self) -> Any:
        found = self._opening_now()
        copy = self._opening((self._place.path / "copies" / "keys.json").read_bytes())
        ahead = self.states[self.states.index(found) :] if found in self.states else []
        assert copy in ahead or self._scenario.unclean, f"{sorted(found)} count, the copy has {sorted(copy)}"
        for name in sorted(found):
            self._secret = self._secrets[name]
            assert super()._reopened() == self._tree, "the images are not what they were"
        assert not differing_copies(str(self._place.path)), "an opening has left a copy that differs"
        assert self._opening_now() == found, "an opening has changed the keys"
        return found

    def _brief(self, state: Any) -> object:
        return sorted(state)

    def _opening_now(self) -> frozenset[str]:
        return self._opening(keys_json(str(self._place.path)))


def _calls(run: Callable[[int], object]) -> list[str]:
    """The calls that `run`, given the descriptor of a file, has its process write down there."""
    with tempfile.TemporaryFile() as file:
        run(file.fileno())
        file.seek(0)
        return file.read().decode().splitlines()


class Creation:
    """Making a store: whatever happens, there is a whole one afterwards, or nothing that looks like one."""

    def __init__(self, site: "Site", shim: Shim) -> None:
        self._site = site
        self._shim = shim
        self._place = Place(site.disk_folder)

    def trace(self) -> list[str]:
        """The calls that make a store."""
        return _calls(lambda descriptor: self._run(_COUNT, 0, 0, descriptor))

    def check(self, kind: str, at: int, tally: Tally) -> None:
        """Make one with a fault at one call, and see whether it opens."""
        what, number = KINDS[kind]
        status, notes = self._run(what, at, number)
        tally.points += 1
        if what == _CUT_POWER:
            self._site.restart()
        made = is_store(str(self._place.path))
        tally.old += not made
        tally.new += made
        tally.failed_and_told += any(note.startswith("failed") for note in notes)
        problem = ""
        if status not in (0, _DIED):
            problem = f"the process ended with {status}"
        elif not made and "made" in notes:
            problem = "the store was acknowledged and is gone"
        elif made:
            try:
                self._use()
            except (PixstoreError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
        if problem:
            tally.problems.append(f"create, {kind} at call {at}: {problem}")

    def _use(self) -> None:
        with self._place.open() as images:
            images.save_image(image(1000, "first"))

    def _run(self, what: int, at: int, number: int, trace: int = -1) -> tuple[int, list[str]]:
        if self._place.path.exists():
            shutil.rmtree(self._place.path)
        self._place.path.mkdir()
        self._site.sync()

        def create(note: Callable[[str], object]) -> None:
            try:
                create_store(str(self._place.path), lambda _: secret_from_keyfile(self._place.keyfile))
                note("made")
            except (PixstoreError, OSError) as error:
                note(f"failed: {error}")

        return in_child(lambda: self._shim.arm(self._place.path, what, at, number, trace), create)


class Snapshots:
    """A snapshot: the store is unharmed, the snapshot is old or new, and another run completes it."""

    def __init__(self, scenario: Scenario, site: "Site", shim: Shim) -> None:
        self._name = scenario.name
        self._site = site
        self._shim = shim
        self._root = site.disk_folder / "both"
        store_folder = site.elsewhere if scenario.elsewhere else self._root
        for folder in (self._root, site.folder / "base", *([store_folder] if scenario.elsewhere else [])):
            folder.mkdir(exist_ok=True)
        self._case = SnapshotCase(scenario, site.folder / "base", store_folder, self._root)

    def trace(self) -> list[str]:
        """The calls of the snapshot without a fault, in their order."""
        return _calls(lambda descriptor: self._run(_COUNT, 0, 0, descriptor))

    def check(self, kind: str, at: int, tally: Tally) -> None:
        """Take the snapshot with a fault at one call, and judge what is left."""
        what, number = KINDS[kind]
        status, notes = self._run(what, at, number)
        tally.points += 1
        if what == _CUT_POWER:
            self._site.restart()
        problems = [note for note in notes if note.startswith("!")]
        if status not in (0, _DIED):
            problems.append(f"the process ended with {status}")
        try:
            old, new, found = self._case.judge(notes)
        except (PixstoreError, OSError, AssertionError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        else:
            problems += found
            tally.old += old
            tally.new += new
        tally.failed_and_told += any(note.startswith("failed") for note in notes)
        tally.problems += [f"{self._name}, {kind} at call {at}: {problem}" for problem in problems]

    def _run(self, what: int, at: int, number: int, trace: int = -1) -> tuple[int, list[str]]:
        self._case.reset()
        self._site.sync()
        return in_child(lambda: self._shim.arm(self._root, what, at, number, trace), self._case.act)


def in_child(
    arm: Callable[[], None], act: Callable[[Callable[[str], object]], None]
) -> tuple[int, list[str]]:
    """Arm and act in a child; returns its exit status and what it wrote down."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(read_end)
            arm()
            act(lambda note: os.write(write_end, note.encode() + b"\n"))
            status = 0
        except BaseException as error:
            os.write(write_end, f"! {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        notes = pipe.read().decode().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), notes


def _objects_wanted(store: Store) -> Iterator[int]:
    pending = [1]
    while pending:
        for _, _, inode in store.tree.entries(pending.pop(), 0, 10_000):
            if inode.image_id and store.version(inode).runs:
                yield store.version(inode).version_id
            elif not inode.image_id:
                pending.append(inode.ino)


class Site:
    """Where the stores lie: memory, or a loop device that can lose its power; `elsewhere` is on neither."""

    def __init__(self, folder: Path, elsewhere: Path, disk: LoopDisk | None) -> None:
        self.folder = folder
        self.elsewhere = elsewhere
        self._disk = disk
        self.disk_folder = disk.path if disk else folder

    def sync(self) -> None:
        """What was prepared survives the cut."""
        if self._disk:
            subprocess.run(["sync", "-f", self._disk.path], check=True)

    def restart(self) -> None:
        """After a power cut."""
        assert self._disk is not None
        self._disk.restart()


@contextlib.contextmanager
def site(*, with_power: bool) -> Iterator[Site]:
    """A place for one scenario."""
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) and not with_power else None
    with (
        tempfile.TemporaryDirectory(prefix="pixstorefs-faults-", dir=memory) as directory,
        tempfile.TemporaryDirectory(prefix="pixstorefs-faults-", dir="/var/tmp") as elsewhere,
    ):
        folder = Path(directory)
        if not with_power:
            yield Site(folder, Path(elsewhere), None)
            return
        with LoopDisk(folder, "ext4", size_mib=128).mounted() as disk:
            yield Site(folder, Path(elsewhere), disk)


def run(scenarios: list[Scenario], kinds: list[str], stride: int) -> Tally:
    """Every `stride`-th call of every scenario, with every kind of fault."""
    shim = Shim()
    tally = Tally()
    for scenario in scenarios:
        for power in sorted({kind == "power cut" for kind in kinds}):
            with site(with_power=power) as place:
                harness = _harness(scenario, place, shim)
                trace = harness.trace()
                tally.calls.update(line.split(" ")[0] for line in trace)
                for offset, kind in enumerate(kind for kind in kinds if (kind == "power cut") is power):
                    for at in range(1 + offset % stride, len(trace) + 1, stride):
                        harness.check(kind, at, tally)
    return tally


def _harness(scenario: Scenario, place: Site, shim: Shim) -> "Harness | Creation | Snapshots":
    if scenario.snapshot:
        return Snapshots(scenario, place, shim)
    if scenario.creates:
        return Creation(place, shim)
    return (KeyChanges if scenario.key_steps else Harness)(scenario, place, shim)


def compile_shim(folder: Path) -> Path:
    """Build faults.c with the machine's compiler. Raises FileNotFoundError where there is none."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, source, "-ldl"],
        check=True,
    )
    return library


def main() -> int:
    """Run as asked and print the counts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="faulting", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenario", action="append", help="only this one (default: all)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one (default: all)")
    parser.add_argument("--stride", type=int, default=1, help="every so many calls (default 1: all)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trace", action="store_true", help="print the calls, without faults")
    asked = parser.parse_args()
    if _SHIM not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            library = str(compile_shim(Path(folder)))
            environment = os.environ | {_SHIM: library, "LD_PRELOAD": library}
            return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    logging.disable()  # every fault is complained of, as it should be
    journal.JOURNAL_SIZE_BYTES = SMALL_JOURNAL_SIZE_BYTES  # every run begins with a copy of the store
    scenarios = [named(name) for name in asked.scenario] if asked.scenario else list(SCENARIOS)
    if asked.trace:
        for scenario in scenarios:
            with site(with_power=False) as place:
                print("\n".join(_harness(scenario, place, Shim()).trace()))
        return 0
    tally = run(scenarios, asked.kind or list(KINDS), asked.stride)
    if asked.json:
        print(json.dumps(tally.__dict__))
    else:
        print(
            f"{len(scenarios)} scenarios, {tally.points} faults: {tally.old} times old, {tally.new} times "
            f"new, {tally.failed_and_told} told as an error, {len(tally.problems)} problems"
        )
        print(", ".join(f"{count} {call}" for call, count in tally.calls.most_common()))
        for problem in tally.problems:
            print(problem)
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
