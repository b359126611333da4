"""Replace what a store consists of by links, as somebody would who can write to it, and use it as root.

Beside the store lie a tree and another store. Links of every kind lead there from every place in the store
and in a snapshot's target, some of them swapped back and forth while commands run. Nobody who opens the store
may be led out of it. The long form: scripts/torture attack.
"""

import ctypes
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import canary
import prepared
from people import Person, Said
from prepared import Files, History, Kind, Prepared
from real_mounts import RealPerson
from rounds import ROUNDS_A_MOUNT, Failure, Tally, remove_folder, run
from stores import Place

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_LIBC = ctypes.CDLL(None, use_errno=True)

_FOLDERS = ("objects", "objects/0", "copies", "lost+found", "lost+found/objects")
_FILES = (
    *("index.db", "index.db-wal", "index.db-shm", "store.json", "keys.json", "lock", "hold", "reserve"),
    *("copies/index-1.db", "copies/index-2.db", "copies/store.json", "copies/keys.json"),
    *("barrier", "journal", "owner", "snapshot.json", "objects/0/8", "objects/0/12"),
)
# Names that a store makes and gives up again.
_MADE = (
    *("index.db.new", "index.db.restored", "store.json.new", "keys.json.new", "snapshot.json.new"),
    *("journal.new", "copies/index.new", "copies/keys.json.new", "copies/store.json.new"),
    *("objects/object.new", "objects/1", "objects/99", "lost+found/salvage", "lost+found/salvage/salvage.db"),
    *("fence", "index.db.fenced", "journal.fenced", "lost+found/owner-20260101T000000Z"),
    *("index.salvage", "index.salvage/salvage.db", "barrier.new"),
    *("index.db.new-wal", "index.db.restored-wal", "lost+found/objects/4000"),
    *(f"objects/0/{version_id}" for version_id in range(20, 40)),
)
_STRAY = "objects/0/4000"
# What a round puts beside the store itself.
_OURS = {"aside", "held", "mount", "new-key"}


def _take_snapshot(place: Place, history: History) -> None:
    """A snapshot of the store as it is by now, beside it."""
    said = Person(place, timeout_s=120).snapshot(place.path.with_name("taken"))
    assert said.status == 0, said.text


_STEPS = (prepared.create, prepared.fill, _take_snapshot, prepared.change)
KINDS = (
    Kind("clean", _STEPS),
    Kind("clean, no copies", (*_STEPS, prepared.remove_copies(("index-1.db", "index-2.db")))),
    Kind("killed", (*_STEPS, prepared.killed(0))),
    Kind("killed, large log", (*_STEPS, prepared.killed(200))),
    Kind("with lost+found", (*_STEPS, prepared.restore)),
)


class Scene:
    """A store, a target for snapshots, and what nobody may touch, all in one folder."""

    def __init__(self, held: Prepared, taken: Files, folder: Path, chance: random.Random) -> None:
        self.kind = held.kind
        self.place = held.write_out(folder)
        self.target = folder / "taken"
        prepared.write_out(taken, self.target)
        self.canary = folder / "canary"
        canary.build(self.canary)
        self.other = folder / "other"
        prepared.write_out(held.files, self.other)
        self._chance = chance
        self._folder = folder

    def look(self) -> canary.Look:
        """What must stay as it is."""
        return canary.look(self.canary) | canary.look(self.other)

    def names(self) -> set[str]:
        """What lies beside the store."""
        return {path.name for path in self._folder.iterdir()} - {"papers"}

    def plant(self, root: Path) -> str:
        """Put a link in the place of something below `root`; returns what was done."""
        chance = self._chance
        name = chance.choice(chance.choice((_FOLDERS, _FOLDERS, _FILES, _FILES, _MADE)))
        path = root / name
        above = path.parent
        if any(each.is_symlink() for each in (above, above.parent)) or not above.is_dir():
            return ""
        same = self.other / name
        wanted = [same] if same.exists() and chance.random() < 0.5 else [*self._own(name)]
        target = chance.choice(wanted)
        _set_aside(path, self._folder / "aside")
        if target.is_file() and chance.random() < 0.6:
            os.link(target, path)
            return f"{root.name}/{name} is another name of {target.relative_to(self._folder)}"
        path.symlink_to(target)
        return f"{root.name}/{name} is a link to {target.relative_to(self._folder)}"

    def _own(self, name: str) -> Iterator[Path]:
        yield self.canary / "folder"
        yield self.canary / "notes.txt"
        if "." in name:
            yield self.canary / "nothing"
            yield self.canary / "folder" / "a"

    def damage(self) -> str:
        """Something for a repair to do, or nothing."""
        done = []
        index, stray = self.place.path / "index.db", self.place.path / _STRAY
        if self._chance.random() < 0.4 and index.is_file() and not _leads_out(index):
            os.truncate(index, self._chance.choice((0, 8192, 20_000)))
            done.append("index.db is cut")
        if self._chance.random() < 0.4 and not _leads_out(stray):
            stray.write_bytes(b"of nobody")
            done.append("a stray object")
        return ", ".join(done)


def _leads_out(path: Path) -> bool:
    return any(each.is_symlink() for each in (path, *path.parents[:2])) or (
        path.exists() and path.stat().st_nlink > 1
    )


def _set_aside(path: Path, aside: Path) -> None:
    if os.path.lexists(path):
        aside.mkdir(exist_ok=True)
        path.rename(aside / f"{path.name}-{len(list(aside.iterdir()))}")


def swapping(first: Path, second: Path) -> int:
    """Start a process that exchanges two names all the time; returns its pid. It ends with its parent."""
    pid = os.fork()
    if pid:
        return pid
    # prctl(2): PR_SET_PDEATHSIG.
    _LIBC.prctl(1, signal.SIGKILL)
    names = os.fsencode(first), os.fsencode(second)
    while True:
        _LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)


class Round:
    """One round; `number` and the seed decide everything but the moments of the races."""

    def __init__(self, scene: Scene, chance: random.Random, tally: Tally) -> None:
        self._scene = scene
        self._chance = chance
        self._tally = tally
        self.plants: list[str] = []
        self.said: list[Said] = []

    def run(self) -> Iterator[tuple[str, str]]:
        """Do it; yields what failed: the rule, and how."""
        before, names = self._scene.look(), self._scene.names()
        self.plants.append(self._scene.damage())
        race = self._chance.random() < 0.4
        if race:
            self._race()
        else:
            self._plant_and_use()
        self.plants = [plant for plant in self.plants if plant]
        self._tally.count("races" if race else "links", _place_of(self.plants), self._scene.kind)
        differences = [*canary.differences(before, self._scene.look())]
        differences += [f"{name} is new beside it" for name in self._scene.names() - names - _OURS]
        if differences:
            yield (
                "led out of the store",
                f"{len(differences)} differences: {'; '.join(sorted(differences)[:4])}",
            )
        broken = {said.broken: said for said in reversed(self.said) if said.broken is not None}
        for rule, said in broken.items():
            yield rule, f"{said.text[:300]!r}"

    def _plant_and_use(self) -> None:
        for _ in range(self._chance.choice((1, 1, 2, 3))):
            root = self._scene.target if self._chance.random() < 0.25 else self._scene.place.path
            self.plants.append(self._scene.plant(root))
        self._use()

    def _race(self) -> None:
        """One folder is itself and a link to another one by turns."""
        scene, chance = self._scene, self._chance
        root = scene.target if chance.random() < 0.3 else scene.place.path
        name = chance.choice(_FOLDERS)
        path = root / name
        path.mkdir(0o700, parents=True, exist_ok=True)
        target = scene.other / name if (scene.other / name).is_dir() and chance.random() < 0.5 else None
        target = target or scene.canary / "folder"
        link = root.with_name("held")
        link.symlink_to(target)
        self.plants.append(f"{root.name}/{name} becomes a link to {target.name} and back")
        pid = swapping(path, link)
        try:
            self._use()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _use(self) -> None:
        if self._chance.randrange(ROUNDS_A_MOUNT):
            self._act(Person(self._scene.place))
            return
        with RealPerson(self._scene.place) as person:
            self._act(person)
        self._tally.mounts += 1

    def _act(self, person: Person) -> None:
        chance = self._chance
        deeds: list[Callable[[], Said]] = [
            lambda: person.visit("new-1.jpg", "new-name.jpg"),
            lambda: person.visit("new-2.jpg", "image-12.jpg"),
            lambda: person.check("--repair"),
            lambda: person.snapshot(self._scene.target),
            lambda: person.add_key(self._scene.place.path.with_name("new-key")),
        ]
        for deed in chance.sample(deeds, chance.choice((2, 3, 5))):
            self.said.append(deed())
            if self.said[-1].status is None:
                return  # it hung; the others would, too


def _place_of(plants: list[str]) -> str:
    return plants[-1].split(" ")[0] if plants else "nothing"


class Rounds:
    """Prepares each kind of store when it first comes, and runs rounds by their number."""

    def __init__(self, site: Path, library: Path, seed: int, kind: str | None = None) -> None:
        """Rounds take place in `site`; what is prepared is kept in `library`."""
        self._site = site
        self._library = library
        self._seed = seed
        self._kinds = [each for each in KINDS if kind in (None, each.name)]
        self._prepared: dict[str, tuple[Prepared, Files]] = {}

    def round(self, number: int, tally: Tally, *, verbose: bool = False) -> list[Failure]:
        """Run round `number`; returns how it failed."""
        chance = random.Random(f"attack {self._seed} {number}")
        held, taken = self._held(chance.choice(self._kinds))
        folder = self._site / "round"
        folder.mkdir()
        try:
            one = Round(Scene(held, taken, folder, chance), chance, tally)
            failures = list(one.run())
            what = f"{held.kind}; {'; '.join(one.plants) or 'nothing'}"
            if verbose:
                print(f"round {number}: {what}")
                for said in one.said:
                    print(f"  {said.seconds:.2f} s {said.what}, status {said.status}: {said.text[:1000]!r}")
            where = ("links", _place_of(one.plants))
            return [Failure(number, rule, where, what, detail) for rule, detail in failures]
        finally:
            remove_folder(folder)

    def _held(self, kind: Kind) -> tuple[Prepared, Files]:
        if kind.name not in self._prepared:
            folder = self._site / "preparing"
            folder.mkdir()
            held = prepared.prepare(kind, folder, self._library / f"kind-{KINDS.index(kind)}")
            self._prepared[kind.name] = held, prepared.take_in(folder / "taken")
            shutil.rmtree(folder)
        return self._prepared[kind.name]


if __name__ == "__main__":
    sys.exit(run("attack", Rounds, default_rounds=2_000))
