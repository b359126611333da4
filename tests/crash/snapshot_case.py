"""What the fault harness does with snapshots: what to prepare, one run, and the judgement of what is left."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from scenarios import Scenario, Tree, describe, prepare
from stores import Place, check_store, image, objects_of, replace_file, save_file, take_snapshot

from pixstorefs.check.view import StoreView
from pixstorefs.disk.folder import Folder
from pixstorefs.errors import PixstoreError
from pixstorefs.index.findings import Reaction
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.store.store import Store
from pixstorefs.trust.header import is_store
from pixstorefs.trust.snapshot_record import is_unfinished

DONE = "done 0"


class SnapshotCase:
    """A store below `store_folder`, and its snapshot below `folder`, which the faults meet.

    Both are the same, so that objects are linked, or on two file systems, so that they are copied.
    """

    def __init__(self, scenario: Scenario, base: Path, store_folder: Path, folder: Path) -> None:
        self._base, self._base_taken = Place(base), base / "taken"
        prepare(self._base, scenario)
        self._old: Tree = {}
        if scenario.again:
            take_snapshot(self._base, self._base_taken)
            self._old = shown(self._base, self._base_taken)
            with closing(self._base.open_store()) as store:
                replace_file(store, "a", image(2000, "newer"))
                store.tree.remove(ROOT_INO, b"b", 9)
                save_file(store, "more", lambda draft: draft.write(0, image(300_000, "more")))
        with closing(self._base.open_store()) as store:
            self._new = describe(store)
        self._place, self._taken = Place(store_folder), folder / "taken"
        shutil.copy(self._base.keyfile, self._place.keyfile)

    def reset(self) -> None:
        """As it was prepared."""
        for base, path in ((self._base.path, self._place.path), (self._base_taken, self._taken)):
            if path.exists():
                shutil.rmtree(path)
            if base.exists():
                shutil.copytree(base, path)

    def act(self, note: Callable[[str], object]) -> None:
        """Take the snapshot."""
        try:
            take_snapshot(self._place, self._taken)
            note(DONE)
        except PixstoreError as error:
            note(f"failed: {error}")

    def judge(self, notes: list[str]) -> tuple[bool, bool, list[str]]:
        """Whether the old snapshot, or none, is there; whether the new one is; and what is wrong."""
        problems: list[str] = []
        found = self._found(problems)
        old, new = found == self._old, found == self._new
        if not new and (DONE in notes or not old):
            problems.append(f"the snapshot shows {sorted(found)}")
        with closing(self._place.open_store()) as store:
            if describe(store) != self._new:
                problems.append("the store shows something else")
        problems += _found_by_check(self._place, self._place.path)
        take_snapshot(self._place, self._taken, verify=True)
        problems += self._left_over()
        return old, new, problems

    def _found(self, problems: list[str]) -> Tree:
        if not is_store(str(self._taken)):
            return {}
        problems += _found_by_check(self._place, self._taken)
        return shown(self._place, self._taken)

    def _left_over(self) -> Iterator[str]:
        """After another run: nothing is wrong, nothing superfluous is there, and the new state is shown."""
        yield from (f"run again: {found.kind}" for found in check_store(self._place, self._taken))
        if shown(self._place, self._taken) != self._new:
            yield "run again: it shows something else"
        if is_unfinished(Folder.at(str(self._taken))):
            yield "run again: it is not finished"
        with StoreView(str(self._taken), secret_from_keyfile(self._place.keyfile)) as view:
            known = view.index.known_objects(0)
        if objects_of(self._taken).keys() != known:
            yield "run again: there are too many objects or too few"
        if left := [str(path) for path in self._taken.rglob("*.new*")]:
            yield f"run again: {left} are left over"


def shown(place: Place, path: Path) -> Tree:
    """What a store shows that is read as on media that cannot be written."""
    with StoreView(str(path), secret_from_keyfile(place.keyfile)) as view:
        store_id, key = view.store_id, view.index_key
    with closing(Store(str(path), store_id, key, ownership=None, padding=True, read_only=True)) as store:
        return describe(store)


def _found_by_check(place: Place, path: Path) -> list[str]:
    found = check_store(place, path)
    return [f"the check found {each}" for each in found if each.reaction is not Reaction.NOTE]
