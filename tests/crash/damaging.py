"""Damage stores at random, use them as a person would, and see what became of every image.

A round takes a prepared store, damages one file or folder of it, and checks, mounts and repairs it. It fails
when an image is lost although its key and its object were whole, when a loss is told nowhere, and when a
command ends as none may. The long form: scripts/torture damage.
"""

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import canary
import prepared
from damages import Damage, Scene, damage
from people import Person, Said, digest, new_content
from prepared import Image, Prepared, object_path
from real_mounts import RealPerson
from rounds import ROUNDS_A_MOUNT, Failure, Tally, remove_folder, run

# What a small store may take beyond what it has: its log, its journal, new copies, what is set aside.
_GROWTH_BYTES = 20 << 20
_LARGEST_OBJECT_BYTES = 1 << 20
_SOURCES = ("index.db", "index.db-wal", "copies/index-1.db", "copies/index-2.db")

# What a message may say to do with a file that it names.
_ADVICE = re.compile(r"\b(move|remove|rename) (it|this one|that one|\S+ away)\b", re.IGNORECASE)
_MOVABLE = (
    *("store.json", "keys.json", "snapshot.json", "lock", "hold", "barrier", "journal"),
    *("reserve", "index.db-wal"),
)


@dataclass
class Before:
    """What could still be had of a damaged store before anybody touched it."""

    objects: set[int]
    keys: set[bytes]
    keys_without_torn_log: set[bytes]

    @classmethod
    def look(cls, held: Prepared, store: Path) -> "Before":
        """Look at it; nothing is changed."""
        files = [store / name for name in _SOURCES if _is_plain(store, name)]
        logs = [path for path in files if path.name.endswith("-wal")]
        others = held.pages.left_in(path for path in files if path not in logs)
        objects = {each.version_id for each in held.images if _is_whole(store, each)}
        front = [held.pages.in_front_of_log(log) for log in logs]
        return cls(objects, others | held.pages.left_in(logs), others.union(*front))

    def has(self, each: Image) -> bool:
        """Whether the image could be opened. What no sync followed may go as after a power loss."""
        keys = self.keys if each.durable else self.keys_without_torn_log
        return each.version_id in self.objects and {each.key, each.image_id} <= keys


@dataclass
class Story:
    """What a person did and was told, and what was saved and deleted on the way."""

    said: list[Said] = field(default_factory=list)
    saved: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    first_check: Said | None = None
    grown: str | None = None

    @property
    def told(self) -> bool:
        """Whether anything told of a problem."""
        return any(said.told for said in self.said)


class _Hung(Exception):
    """A command had to be killed."""


class Round:
    """One round; `number` and the seed decide everything but the keys and the clock."""

    def __init__(self, held: Prepared, folder: Path, chance: random.Random, tally: Tally) -> None:
        self._held = held
        self._chance = chance
        self._tally = tally
        self._place = held.write_out(folder)
        self._canary = folder / "canary"
        canary.build(self._canary)
        self.damage: Damage | None = None
        self.story = Story()

    def run(self) -> Iterator[tuple[str, str]]:
        """Do it; yields what failed: the rule, and how."""
        store = self._place.path
        before_canary = canary.look(self._canary)
        self.damage = damage(self._chance, Scene(store, self._held.history, self._canary))
        self._tally.count(self.damage.action, self.damage.target, self._held.kind)
        before = Before.look(self._held, store)
        room_bytes = _used_bytes(store) + _GROWTH_BYTES
        if self._chance.randrange(ROUNDS_A_MOUNT) == 0:
            with RealPerson(self._place) as person:
                last = self._live(person, room_bytes)
            self._tally.mounts += 1
        else:
            last = self._live(Person(self._place), room_bytes)
        for difference in canary.differences(before_canary, canary.look(self._canary)):
            yield "written outside the store", difference
        broken = {said.broken: said for said in reversed(self.story.said) if said.broken is not None}
        yield from ((rule, _brief(said)) for rule, said in broken.items())
        if last is None:
            return
        if self.story.grown is not None:
            yield "grew out of bounds", self.story.grown
        yield from self._judge(last, before)

    def _live(self, person: Person, room_bytes: int) -> Said | None:
        """What a person does; returns the last look, None where a command hung: the rest would, too."""
        try:
            return self._use(person, room_bytes)
        except _Hung:
            return None

    def _use(self, person: Person, room_bytes: int) -> Said:
        """Look, mount, repair where there is a reason, go on; returns the last look."""
        chance, story = self._chance, self.story
        deletable = [each.path for each in self._held.images if not each.linked and "/" not in each.path]
        names = chance.sample(deletable, 3) if deletable else [None] * 3
        if chance.random() < 0.1:
            self._note(person.list_keys(), room_bytes)
            self._note(person.snapshot(self._place.path.with_name("taken")), room_bytes)
        if chance.random() < 0.5:
            story.first_check = self._note(person.check(), room_bytes)
        first = self._visit(person, "new-1.jpg", names[0], room_bytes)
        if not story.told and story.first_check is None:
            self._note(person.check(), room_bytes)
        if story.told:
            self._note(person.check("--repair"), room_bytes)
            if first.status != 0:
                first = self._visit(person, "new-1.jpg", names[0], room_bytes)
            if first.status != 0 and self._follow_advice():
                self._note(person.check("--repair"), room_bytes)
        for number in (1, 2):
            self._visit(person, f"new-{number + 1}.jpg", names[number], room_bytes)
        self._note(person.check(), room_bytes)
        return self._visit(person, None, None, room_bytes)

    def _follow_advice(self) -> bool:
        """Move out of the store what the messages say is to be moved; whether there was such advice."""
        store = self._place.path
        advice = " ".join(said.text for said in self.story.said if _ADVICE.search(said.text))
        names = [name for name in _MOVABLE if name in advice and os.path.lexists(store / name)]
        for name in names:
            (store / name).rename(self._place.path.with_name("papers") / f"moved-{name}")
        return bool(names)

    def _visit(self, person: Person, save: str | None, delete: str | None, room_bytes: int) -> Said:
        said = self._note(person.visit(save, delete), room_bytes)
        if said.status == 0 and save is not None:
            content = digest(new_content(save))
            if said.facts["read"].get(save) == content:
                self.story.saved[save] = content
        if "deleted" in said.facts:
            self.story.deleted.add(said.facts["deleted"])
        return said

    def _note(self, said: Said, room_bytes: int) -> Said:
        self.story.said.append(said)
        if said.status is None:
            raise _Hung
        used_bytes = _used_bytes(self._place.path)
        if used_bytes > room_bytes and self.story.grown is None:
            self.story.grown = f"{used_bytes - room_bytes + _GROWTH_BYTES} bytes more after {said.what}"
        return said

    # What became of it

    def _judge(self, last: Said, before: Before) -> Iterator[tuple[str, str]]:
        shown: dict[str, str] = last.facts.get("read", {})
        contents = set(shown.values())
        lost = []
        for each in self._held.images:
            if each.digest in self.story.deleted:
                continue
            self._tally.images += 1
            if each.digest in contents:
                self._tally.elsewhere += shown.get(each.path) != each.digest
            else:
                lost.append(each)
        for name, content in self.story.saved.items():
            if content not in contents and last.status == 0:
                yield "a save after the damage is gone", name
        yield from self._strangers(shown)
        if lost or last.status != 0:
            yield from self._judge_losses(last, lost, before)
        if last.status == 0 and last.facts["errors"]:
            yield "does not work after the repair", str(last.facts["errors"])
        late = [said for said in self.story.said[-4:-2] if said.what == "mount" and said.facts.get("errors")]
        repairs = [said for said in self.story.said if said.what == "check --repair"]
        checks = [said for said in self.story.said if said.what == "check"]
        if repairs and repairs[-1].status == 0 and checks[-1].status != 0:
            yield "not repaired by a repair that ended well", _brief(checks[-1])
        if late:
            yield "refuses changes after the repair", str(late[0].facts["errors"])

    def _judge_losses(self, last: Said, lost: list[Image], before: Before) -> Iterator[tuple[str, str]]:
        openable = [each for each in lost if before.has(each)]
        if last.status != 0:
            # Without a key, or without its objects, it may stay shut, if it says so.
            if openable:
                yield "stays shut", f"{_brief(last)} though these were whole: {_paths(openable)}"
            else:
                self._tally.told_lost += len(lost)
            return
        kept = [each for each in openable if self._is_kept(each)]
        gone = [each for each in openable if each not in kept]
        self._tally.set_aside += len(kept)
        if gone:
            yield "lost though key and object were whole", _paths(gone)
        missing = [each for each in lost if each.durable]
        self._tally.told_lost += len(missing) if self.story.told else 0
        if missing and not self.story.told:
            yield "a loss was told nowhere", _paths(missing)
        first = self.story.first_check
        if missing and first is not None and first.content_is_well:
            yield "the check said no problems", _paths(missing)

    def _strangers(self, shown: dict[str, str]) -> Iterator[tuple[str, str]]:
        known = self._held.older.union(self.story.saved.values(), (each.digest for each in self._held.images))
        for path, content in shown.items():
            if content in known or content.startswith("!") or path.startswith("lost+found/report"):
                continue
            if path.startswith("new-"):
                continue  # its visit did not end well, and it may be there or not
            yield "content that nobody saved", path

    def _is_kept(self, each: Image) -> bool:
        """Whether object and key lie somewhere below lost+found, or the key in a copy."""
        store = self._place.path
        aside = (path for path in store.glob("lost+found/**/*") if path.is_file() and not path.is_symlink())
        objects = [object_path(store, each.version_id), *aside]
        if each.object_digest is not None and not any(
            _digest_of(path) == each.object_digest for path in objects
        ):
            return False
        keys: set[bytes] = set()
        for database in [*store.glob("copies/*.db"), *store.glob("lost+found/**/*.db*")]:
            keys |= self._held.pages.left_in([database]) | self._held.pages.inside(database)
        return {each.key, each.image_id} <= keys


def _is_plain(store: Path, name: str) -> bool:
    path = store / name
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


def _is_whole(store: Path, each: Image) -> bool:
    if each.object_digest is None:
        return True
    path = object_path(store, each.version_id)
    links = any(above.is_symlink() for above in (path, path.parent, path.parent.parent))
    return not links and _digest_of(path) == each.object_digest


def _digest_of(path: Path) -> str | None:
    """None for what no object is: reading a FIFO or a terabyte would not end."""
    if not path.is_file() or path.stat().st_size > _LARGEST_OBJECT_BYTES:
        return None
    return digest(path.read_bytes())


def _used_bytes(store: Path) -> int:
    return sum(path.lstat().st_blocks for path in store.rglob("*")) * 512


def _brief(said: Said) -> str:
    text = said.text if len(said.text) < 700 else f"{said.text[:250]} ... {said.text[-400:]}"
    return f"{said.what}, status {said.status}: {text.strip()!r} {said.facts.get('errors', '')}"


def _paths(images: list[Image]) -> str:
    return f"{len(images)} images: {', '.join(each.path for each in images[:5])}"


class Rounds:
    """Prepares each kind of store when it first comes, and runs rounds by their number."""

    def __init__(self, site: Path, library: Path, seed: int, kind: str | None = None) -> None:
        """Rounds take place in `site`; what is prepared is kept in `library`."""
        self._site = site
        self._library = library
        self._seed = seed
        self._kinds = [each for each in prepared.KINDS if kind in (None, each.name)]
        self._prepared: dict[str, Prepared] = {}

    def round(self, number: int, tally: Tally, *, verbose: bool = False) -> list[Failure]:
        """Run round `number`; returns how it failed."""
        chance = random.Random(f"damage {self._seed} {number}")
        held = self._held(chance.choice(self._kinds))
        folder = self._site / "round"
        folder.mkdir()
        try:
            one = Round(held, folder, chance, tally)
            failures = list(one.run())
            assert one.damage is not None
            if verbose:
                print(f"round {number}: {held.kind}; {one.damage.text}")
                for said in one.story.said:
                    print(f"  {said.seconds:.2f} s {_brief(said)} {json.dumps(said.facts)[:2000]}")
            where = (one.damage.action, one.damage.target)
            return [
                Failure(number, rule, where, f"{held.kind}; {one.damage.text}", detail)
                for rule, detail in failures
            ]
        finally:
            remove_folder(folder)

    def _held(self, kind: prepared.Kind) -> Prepared:
        if kind.name not in self._prepared:
            folder = self._site / "preparing"
            folder.mkdir()
            kept = self._library / f"kind-{prepared.KINDS.index(kind)}"
            self._prepared[kind.name] = prepared.prepare(kind, folder, kept)
            shutil.rmtree(folder)
        return self._prepared[kind.name]


if __name__ == "__main__":
    sys.exit(run("damage", Rounds, default_rounds=10_000))
