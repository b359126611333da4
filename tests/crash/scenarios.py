"""What the fault harness does to a store: each scenario a list of atomic steps on a prepared store."""

import contextlib
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from stores import SEGMENT, Place, content_of, image, replace_file, save_file

from pixstorefs.api import ImageStore
from pixstorefs.disk.sync_threads import Sync, SyncThreads
from pixstorefs.index import database as index_database
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import Secret, secret_from_keyfile
from pixstorefs.records import Inode
from pixstorefs.store.draft import Draft
from pixstorefs.store.key_slots import KeySlots
from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.store import Store

Step = Callable[[Store], object]
KeyStep = Callable[[str], object]
# Path -> (type, content, link count, xattrs). Times are left out: a version that comes back has its own.
Tree = dict[str, tuple[str, bytes, int, tuple[tuple[bytes, bytes], ...]]]


@dataclass(frozen=True)
class Scenario:
    """`steps` run one after the other on a store that `prepare` made and closed (or left `unclean`).

    `key_steps` instead change its keys, or only open it, by its path; `unclean` is then a change that was
    interrupted between its two files.
    """

    name: str
    steps: tuple[Step, ...]
    key_steps: tuple[KeyStep, ...] = ()
    unclean: bool = False
    # There is no store yet: it is made, and that is all.
    creates: bool = False
    # A snapshot of the store is taken: the first or another one; on a file system of its own, or the same.
    snapshot: bool = False
    again: bool = False
    elsewhere: bool = False
    # Every barrier moves the log into the database, as it would after megabytes of changes.
    checkpoints: bool = False
    # The syncs of a barrier come in the reverse order: the log is durable before the objects are.
    log_first: bool = False


def describe(store: Store) -> Tree:
    """Everything that a store shows."""
    found: Tree = {}
    _walk(store, ROOT_INO, "", found)
    return found


def _walk(store: Store, parent: int, prefix: str, found: Tree) -> None:
    for _, name, inode in store.tree.entries(parent, 0, 10_000):
        path = prefix + name.decode()
        content = content_of(store, inode) if inode.image_id else b""
        xattrs = tuple(sorted(store.tree.xattrs(inode.ino).items()))
        found[path] = (oct(stat.S_IFMT(inode.mode)), content, inode.nlink, xattrs)
        if stat.S_ISDIR(inode.mode):
            _walk(store, inode.ino, path + "/", found)


def prepare(place: Place, scenario: Scenario) -> None:
    """A store with a few images, a hard link and a directory."""
    place.open().close()
    store = place.open_store()
    try:
        for name in "abcd":
            save_file(store, name, lambda draft, name=name: draft.write(0, image(SEGMENT + 10, name)))
        store.tree.link(_ino(store, "c"), ROOT_INO, b"c-linked", 3)
        store.tree.add(_directory(store), ROOT_INO, b"directory")
        store.tree.put_xattr(_ino(store, "d"), b"user.note", b"first", 3)
        store.sync()
        if scenario.unclean and not scenario.key_steps:
            _leave_unclean(place, store)
    finally:
        store.close()
    if scenario.key_steps:
        _prepare_keys(place, scenario)
    elif scenario.unclean:
        shutil.rmtree(place.path)
        place.path.with_name("unclean").rename(place.path)
    # Each run begins by allocating it, which makes that one of the steps.
    (place.path / "reserve").unlink()


def _leave_unclean(place: Place, store: Store) -> None:
    """A copy of the store as a kill leaves it: unsynced saves, displaced images, an open draft."""
    with store.lock:
        replace_file(store, "a", image(SEGMENT, "a2"))
        save_file(store, "new", lambda draft: draft.write(0, image(100, "new")))
        store.tree.rename(ROOT_INO, b"new", ROOT_INO, b"b", 4)
        store.tree.remove(ROOT_INO, b"d", 4)
        draft = Draft(store.allocator, store.allocator.new_image_id(store.numbers.ino()))
        draft.write(0, image(3 * SEGMENT, "draft"))
        shutil.copytree(place.path, place.path.with_name("unclean"))
        draft.close()


# Of keyfiles: no argon2id at every call.
KEYS = {name: Secret("keyfile", name.encode().ljust(32)) for name in ("second", "third", "fourth")}


def _prepare_keys(place: Place, scenario: Scenario) -> None:
    """The store opens with its keyfile and with the second key."""
    first = secret_from_keyfile(place.keyfile)
    with KeySlots(str(place.path)) as slots:
        slots.add(first, lambda: KEYS["second"], "second")
    if scenario.unclean:
        counts = (place.path / "keys.json").read_bytes()
        with KeySlots(str(place.path)) as slots:
            slots.change(first, lambda: KEYS["third"])
        (place.path / "keys.json").write_bytes(counts)


def _add_key(name: str) -> KeyStep:
    def add(path: str) -> None:
        with KeySlots(path) as slots:
            slots.add(KEYS["second"], lambda: KEYS[name], name)

    return add


def _remove_first_key(path: str) -> None:
    with KeySlots(path) as slots:
        slots.remove("first", KEYS["second"])


def _change_second_key(path: str) -> None:
    with KeySlots(path) as slots:
        assert slots.change(KEYS["second"], lambda: KEYS["fourth"]) == "second"


def _open_and_close(path: str) -> None:
    open_unlocked(path, KEYS["second"]).close()


def _ino(store: Store, name: str) -> int:
    inode = store.tree.lookup(ROOT_INO, name.encode())
    assert inode is not None
    return inode.ino


def _directory(store: Store) -> Inode:
    return Inode(store.numbers.ino(), stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 3, 3, 3)


def _save(name: str, size_bytes: int) -> Step:
    return lambda store: save_file(
        store, name, lambda draft: draft.write(0, image(size_bytes, name) if size_bytes else b"")
    )


def _rewritten(draft: Draft) -> None:
    """Written in order, then its sealed front once more: everything is sealed anew into another object."""
    draft.write(0, image(6 * SEGMENT, "long"))
    draft.write(10, b"changed")


def _prepared(draft: Draft) -> None:
    """The object is made before there is anything to write to it."""
    draft.prepare()
    draft.write(0, image(1000, "prepared"))


def _give_up(store: Store) -> None:
    """A file that is made and never saved."""
    draft = Draft(store.allocator, store.allocator.new_image_id(store.numbers.ino()))
    draft.prepare()
    draft.close()


def _update(name: str, size_bytes: int) -> Step:
    return lambda store: replace_file(store, name, image(size_bytes, "new") if size_bytes else b"")


def _rename(name: str, new_name: str) -> Step:
    return lambda store: store.tree.rename(ROOT_INO, name.encode(), ROOT_INO, new_name.encode(), 5)


def _remove(name: str) -> Step:
    return lambda store: store.tree.remove(ROOT_INO, name.encode(), 5)


def _put_note(value: str) -> Step:
    return lambda store: store.tree.put_xattr(_ino(store, "d"), b"user.note", value.encode(), 5)


def _delete_image(store: Store) -> None:
    inode = store.tree.lookup(ROOT_INO, b"c")
    if inode is not None and inode.image_id is not None:
        assert ImageStore(store).delete_image(inode.image_id.hex())


def _sync(store: Store) -> None:
    store.sync()


def _make_durable(store: Store) -> None:
    store.make_durable()


SCENARIOS = (
    Scenario("save", (_save("new", 2 * SEGMENT + 1),)),
    Scenario("save an empty file", (_save("new", 0),)),
    Scenario("save into an object made ahead", (lambda store: save_file(store, "new", _prepared),)),
    Scenario("save nothing", (_give_up, _save("new", 1000))),
    Scenario("save what was rewritten", (lambda store: save_file(store, "long", _rewritten),)),
    Scenario("save over another", (_save("a", 1000),)),
    Scenario(
        "save over two others",
        (lambda store: save_file(store, "b", lambda draft: draft.write(0, image(1000, "b")), left=("a",)),),
    ),
    Scenario("update", (_update("a", SEGMENT + 1),)),
    Scenario("update to nothing", (_update("a", 0),)),
    Scenario("update twice", (_update("a", 1000), _update("a", 2000))),
    Scenario("update a linked image", (_update("c", 1000),)),
    Scenario("update with checkpoints", (_update("a", 1000), _sync, _update("b", 500)), checkpoints=True),
    Scenario("rename", (_rename("a", "new"),)),
    Scenario("rename over", (_rename("a", "b"),)),
    Scenario("save and rename over", (_save("tmp", 1000), _rename("tmp", "a"))),
    Scenario("update, the log first", (_update("a", SEGMENT + 1),), log_first=True),
    Scenario("rename over, the log first", (_save("tmp", 1000), _rename("tmp", "a")), log_first=True),
    Scenario("save, fsync and rename over", (_save("tmp", 1000), _make_durable, _rename("tmp", "a"))),
    Scenario("update, fsync and update", (_update("a", 1000), _make_durable, _update("a", 2000))),
    Scenario("exchange", (lambda store: store.tree.exchange(ROOT_INO, b"a", ROOT_INO, b"b", 5),)),
    Scenario("delete", (_remove("a"),)),
    Scenario("delete a link", (_remove("c"),)),
    Scenario("delete all links", (_delete_image,)),
    Scenario("link", (lambda store: store.tree.link(_ino(store, "a"), ROOT_INO, b"a-linked", 5),)),
    Scenario("make a directory", (lambda store: store.tree.add(_directory(store), ROOT_INO, b"made"),)),
    Scenario("set an xattr", (_put_note("second"),)),
    Scenario("recover", (), unclean=True),
    Scenario("create", (), creates=True),
    Scenario("add a key", (), (_add_key("third"),)),
    Scenario("remove a key", (), (_remove_first_key,)),
    Scenario("change a key", (), (_change_second_key,)),
    Scenario("change keys again and again", (), (_add_key("third"), _remove_first_key, _change_second_key)),
    Scenario("open after an interrupted change of keys", (), (_open_and_close,), unclean=True),
    Scenario("snapshot", (), snapshot=True),
    Scenario("snapshot again", (), snapshot=True, again=True),
    Scenario("snapshot to another disk", (), snapshot=True, elsewhere=True),
    Scenario("snapshot again to another disk", (), snapshot=True, again=True, elsewhere=True),
)


@contextlib.contextmanager
def settings(scenario: Scenario) -> Iterator[None]:
    """What is special in the process that runs the scenario."""
    patch = pytest.MonkeyPatch()
    if scenario.checkpoints:
        patch.setattr(index_database, "_CHECKPOINT_FROM_BYTES", 0)

    def run(_: SyncThreads, syncs: Sequence[Sync]) -> None:
        for sync in reversed(syncs) if scenario.log_first else syncs:
            sync()

    # One of the orders that threads may take, the same in every run, so that a call keeps its number.
    patch.setattr(SyncThreads, "run", run)
    try:
        yield
    finally:
        patch.undo()


def named(name: str) -> Scenario:
    """The scenario of this name."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    sys.exit(f"no scenario {name!r}; there are: {', '.join(scenario.name for scenario in SCENARIOS)}")
