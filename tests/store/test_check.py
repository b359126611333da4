"""The check finds every kind of damage, made for real, and nothing in stores that are sound.

Damage to the index is made through a connection with the store's own key: what a page put back to an older
state, or a mistake of ours, would leave.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rows import change_rows
from stores import SEGMENT, Place, content_of, digests, image, objects_of, replace_file, save_file, tree

from pixstorefs.check.check import Check, Progress
from pixstorefs.check.repair import Repair, prepare
from pixstorefs.check.view import StoreView
from pixstorefs.errors import CorruptImage, CorruptStore, InvalidInput, PixstoreError
from pixstorefs.index import invariants as index_invariants
from pixstorefs.index.findings import Finding, Reaction
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.records import Entry, Inode
from pixstorefs.store.draft import Draft
from pixstorefs.store.store import Store

IMAGES = {
    f"photo-{number}": image(size, number) for number, size in enumerate((10, SEGMENT + 1, 3 * SEGMENT))
}


@pytest.fixture
def closed(place: Place) -> Place:
    """A store that was closed cleanly: images, one with two names, directories, a symlink."""
    place.open().close()
    store = place.open_store()
    for name, content in IMAGES.items():
        _create(store, name, content)
    _directory(store, ROOT_INO, b"outer")
    _directory(store, _ino(store, b"outer"), b"inner")
    save_file(store, "below", lambda draft: draft.write(0, image(100, "below")), parent=_ino(store, b"outer"))
    store.tree.add(
        Inode(store.numbers.ino(), 0o120777, 0, 0, 1, 5, 0, 0, 1, 1, 1), ROOT_INO, b"link", b"outer"
    )
    store.tree.link(_ino(store, b"photo-2"), _ino(store, b"outer"), b"second", 3)
    store.tree.put_xattr(_ino(store, b"photo-0"), b"user.note", b"value", 4)
    store.close()
    return place


def _create(store: Store, name: str, content: bytes) -> None:
    save_file(store, name, lambda draft: draft.write(0, content))


def _directory(store: Store, parent: int, name: bytes) -> None:
    store.tree.add(Inode(store.numbers.ino(), 0o040755, 0, 0, 2, 0, 0, 0, 1, 1, 1), parent, name)


def _ino(store: Store, name: bytes) -> int:
    found = store.tree.lookup(ROOT_INO, name)
    assert found is not None
    return found.ino


def check(place: Place, path: Path | None = None, progress: Progress | None = None) -> list[Finding]:
    """Everything a check finds."""
    with StoreView(str(path or place.path), secret_from_keyfile(place.keyfile)) as view:
        return list(Check(view, progress or Progress()).run())


def problems(place: Place, path: Path | None = None) -> list[tuple[str, str | None]]:
    """What it finds wrong: kind and path."""
    return [(found.kind, found.path) for found in check(place, path) if found.reaction is not Reaction.NOTE]


def repair(place: Place) -> list[str]:
    """`check --repair`; returns what was done."""
    secret = secret_from_keyfile(place.keyfile)
    done = prepare(str(place.path), secret)
    store = place.open_store()
    try:
        with StoreView(str(place.path), secret) as view:
            findings = list(Check(view, Progress(), idle=True).run())
        return Repair(store).run(findings, done)
    finally:
        store.close()


def break_rows(place: Place, *statements: str) -> None:
    """Change rows behind the back of the store."""
    change_rows(place.path, secret_from_keyfile(place.keyfile), *statements)


# Sound stores


def test_a_sound_store_has_no_problems(closed: Place) -> None:
    """Nothing is found, everything counted, and no file of the store changed."""
    before = digests(closed.path)
    progress = Progress()
    assert check(closed, progress=progress) == []
    assert progress.images == len(IMAGES) + 1
    assert progress.verified_bytes == progress.total_bytes >= sum(map(len, IMAGES.values()))
    assert digests(closed.path) == before


def test_shapes_that_are_sound(place: Place) -> None:
    """Empty, sparse, padded or not, deep, replaced, exchanged: whatever saving makes is sound."""

    def sparse(draft: Draft) -> None:
        draft.write(SEGMENT, b"x" * 100)
        draft.write(5 * SEGMENT + 7, b"y" * SEGMENT)
        draft.truncate(9 * SEGMENT + 1)

    def shortened(draft: Draft) -> None:
        draft.write(0, b"z" * (3 * SEGMENT))
        draft.truncate(SEGMENT + 10)
        draft.truncate(2 * SEGMENT + 10)

    with place.open(padding=False):
        pass
    for path, padding in ((place.path, False), (place.path.with_name("padded"), True)):
        if padding:
            shutil.move(place.path, place.path.with_name("plain"))
            place.open().close()
            shutil.move(place.path, path)
            shutil.move(place.path.with_name("plain"), place.path)
        store = place.open_store(path)
        for number, size in enumerate((0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 9 * SEGMENT, 777_777)):
            _create(store, f"size-{number}", bytes(size))
        save_file(store, "sparse", sparse)
        save_file(store, "shortened", shortened)
        save_file(store, "only a hole", lambda draft: draft.truncate(1 << 40))
        parent = ROOT_INO
        for _ in range(50):
            _directory(store, parent, b"deep")
            parent = next(
                inode.ino for _, name, inode in store.tree.entries(parent, 0, 99) if name == b"deep"
            )
        replace_file(store, "sparse", b"")
        replace_file(store, "size-1", image(4 * SEGMENT))
        store.tree.exchange(ROOT_INO, b"size-2", ROOT_INO, b"deep", 5)
        store.tree.rename(ROOT_INO, b"size-3", ROOT_INO, b"size-4", 6)
        assert problems(place, path) == [], "while it is open"
        store.close()
        assert check(place, path) == []


def test_a_store_that_was_not_closed(closed: Place) -> None:
    """After a crash: one note, no problem; drafts are no strangers, and nothing is changed."""
    store = closed.open_store()
    store.sync()
    draft = Draft(store.allocator, store.allocator.new_image_id(store.numbers.ino()))
    draft.write(0, image(3 * SEGMENT, "draft"))
    _create(store, "new", image(SEGMENT, "new"))
    replace_file(store, "photo-1", image(SEGMENT, "newer"))
    with store.lock:
        copy = closed.path.with_name("crashed")
        shutil.copytree(store.path, copy)
    draft.close()
    store.close()
    before = digests(copy)

    [note] = check(closed, copy)

    assert note.kind == "not-closed"
    assert digests(copy) == before
    recovered = closed.open_store(copy)
    assert set(tree(recovered)) == {*IMAGES, "new"}
    recovered.close()
    assert check(closed, copy) == []


def test_a_save_that_did_not_reach_the_disk_is_a_note(closed: Place) -> None:
    """Damage that the next mount undoes is told as such, not as a lost image."""
    store = closed.open_store()
    with store.lock:
        store.sync()
        before = set(objects_of(closed.path))
        replace_file(store, "photo-1", image(2 * SEGMENT, "newer"))
        copy = closed.path.with_name("crashed")
        shutil.copytree(store.path, copy)
    store.close()
    [new] = [path for version_id, path in objects_of(copy).items() if version_id not in before]
    new.unlink()

    assert [(found.kind, found.path) for found in check(closed, copy)] == [
        ("not-closed", None),
        ("will-fall-back", "photo-1"),
    ]
    closed.open_store(copy).close()
    assert check(closed, copy) == []


def test_read_only_media(closed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written it is read all the same, also with a log that was not emptied."""
    store = closed.open_store()
    with store.lock:
        _create(store, "new", image(50, "new"))
        shutil.copytree(store.path, tmp_path / "crashed")
    store.close()
    for path in (closed.path, tmp_path / "crashed"):
        before = digests(path)
        monkeypatch.setattr(os, "access", lambda at, _mode, path=path: str(at) != str(path))
        progress = Progress()
        assert [found.kind for found in check(closed, path, progress) if found.reaction.value] == []
        assert progress.images == len(IMAGES) + 2
        assert digests(path) == before
        monkeypatch.undo()


# Objects

OBJECT_DAMAGES: dict[str, Callable[[Path], object]] = {
    "header": lambda path: _flip(path, 3),
    "content": lambda path: _flip(path, 5000),
    "last tag": lambda path: _flip(path, -1),
    "padding": lambda path: _flip(path, -20),
    "cut by one byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "missing": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: (path.rename(path.with_name("kept")), path.symlink_to("kept")),
}


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def _object_of(place: Place, name: bytes) -> Path:
    store = place.open_store()
    inode = store.tree.lookup(ROOT_INO, name)
    store.close()
    assert inode is not None
    assert inode.version_id is not None
    return place.objects()[inode.version_id]


@pytest.mark.parametrize("damage", OBJECT_DAMAGES)
def test_a_damaged_object(closed: Place, damage: str) -> None:
    """It is found and named; the repair moves its image, and the next one has nothing to do."""
    OBJECT_DAMAGES[damage](_object_of(closed, b"photo-1"))

    assert problems(closed) == [("image-damaged", "photo-1")]

    assert any("photo-1 is now lost+found/" in line for line in repair(closed))
    assert [(found.kind, found.reaction) for found in check(closed)] == [("image-set-aside", Reaction.NOTE)]
    assert repair(closed) == []
    store = closed.open_store()
    names = [name for _, name, _ in store.tree.entries(_ino(store, b"lost+found"), 0, 9)]
    assert names[0].endswith(b"-photo-1")
    assert names[1].startswith(b"report-")
    assert len(names) == 2
    assert store.tree.lookup(ROOT_INO, b"photo-1") is None
    store.close()


def test_two_objects_swapped(closed: Place) -> None:
    """Each is whole in itself, and belongs somewhere else."""
    one, other = _object_of(closed, b"photo-1"), _object_of(closed, b"photo-2")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert {path for _, path in problems(closed)} == {"photo-1", "photo-2"}


def test_an_image_with_two_names_moves_whole(closed: Place) -> None:
    """No name of a damaged image stays behind."""
    _object_of(closed, b"photo-2").unlink()
    assert problems(closed) == [("image-damaged", "photo-2")]
    assert sum("is now lost+found/" in line for line in repair(closed)) == 2
    assert problems(closed) == []
    store = closed.open_store()
    aside = store.tree.entries(_ino(store, b"lost+found"), 0, 9)
    assert sorted(inode.nlink for _, _, inode in aside) == [1, 2, 2]
    assert {name[33:] for _, name, inode in aside if inode.nlink == 2} == {b"photo-2", b"second"}
    store.close()


def test_an_object_that_belongs_to_no_image(closed: Place) -> None:
    """It is told, and moved to the store's own lost+found."""
    stranger = next(iter(closed.objects().values())).with_name("4000")
    stranger.write_bytes(b"whose?")

    [finding] = check(closed)

    assert (finding.kind, finding.version_id) == ("stray-object", 4000)
    assert repair(closed)
    assert (closed.path / "lost+found" / "objects" / "4000").read_bytes() == b"whose?"
    assert check(closed) == []
    assert repair(closed) == []


def test_the_folder_of_objects_is_lost(closed: Place) -> None:
    """Every image is told, and the check comes to its end."""
    shutil.rmtree(closed.path / "objects")
    assert [kind for kind, _ in problems(closed)] == ["image-damaged"] * 4 + ["objects-unreadable"]


# The index


def test_every_page_of_the_index_is_read(closed: Place) -> None:
    """Whichever page is damaged, the check says so."""
    index = closed.path / "index.db"
    whole = index.read_bytes()
    assert len(whole) >= 10 * 4096
    for page in range(len(whole) // 4096):
        _flip(index, page * 4096 + 1000)
        with pytest.raises(CorruptStore):
            _raise_damage(closed)
        index.write_bytes(whole)
    assert check(closed) == []


def _raise_damage(place: Place) -> None:
    for found in check(place):
        if found.kind == "index-damaged":
            raise CorruptStore(found.message)


OF = "(SELECT ino FROM entry WHERE name=x'{}')"
PHOTO_0, PHOTO_1, OUTER, INNER = (
    OF.format(name.hex()) for name in (b"photo-0", b"photo-1", b"outer", b"inner")
)
LINK = OF.format(b"link".hex())
VERSION_1 = f"(SELECT version_id FROM inode WHERE ino={PHOTO_1})"
# What is broken, by which statements, and what is found of it.
BROKEN_ROWS: dict[str, tuple[list[str], set[str]]] = {
    "no root": (["DELETE FROM inode WHERE ino=1"], {"no-root", "name-without-directory"}),
    "a name of the root": (
        [f"INSERT INTO entry VALUES ({OUTER}, 900000, x'61', 1, 1)", "UPDATE state SET next_cookie=900001"],
        {"named-root", "wrong-link-count"},
    ),
    "a name without a file": ([f"DELETE FROM inode WHERE ino={LINK}"], {"name-without-file"}),
    "a name without a directory": (
        [f"UPDATE entry SET parent=777777 WHERE ino={PHOTO_0}"],
        {"name-without-directory", "lost-home"},
    ),
    "a name in a file": (
        [f"UPDATE entry SET parent={PHOTO_0} WHERE ino={PHOTO_1}"],
        {"name-without-directory", "lost-home"},
    ),
    "an empty name": ([f"UPDATE entry SET name=x'' WHERE ino={PHOTO_0}"], {"bad-name"}),
    "a name with a slash": ([f"UPDATE entry SET name=x'612f62' WHERE ino={PHOTO_0}"], {"bad-name"}),
    "a name with a NUL": ([f"UPDATE entry SET name=x'610062' WHERE ino={PHOTO_0}"], {"bad-name"}),
    "dot dot": ([f"UPDATE entry SET name=x'2e2e' WHERE ino={PHOTO_0}"], {"bad-name"}),
    "a name too long": ([f"UPDATE entry SET name=zeroblob(256) WHERE ino={PHOTO_0}"], {"bad-name"}),
    "an image without a name": ([f"DELETE FROM entry WHERE ino={PHOTO_0}"], {"file-without-name"}),
    "a directory without a name": (
        [f"DELETE FROM entry WHERE ino={OUTER}"],
        {"file-without-name", "wrong-link-count"},
    ),
    "a directory named twice": (
        [f"INSERT INTO entry VALUES (1, 900000, x'61', {INNER}, 1)", "UPDATE state SET next_cookie=900001"],
        {"directory-named-twice", "wrong-link-count"},
    ),
    "a directory inside itself": (
        [f"UPDATE entry SET parent={INNER}, linked=1 WHERE ino={OUTER}"],
        {"unreachable", "wrong-link-count"},
    ),
    "a wrong link count": ([f"UPDATE inode SET nlink=7 WHERE ino={PHOTO_0}"], {"wrong-link-count"}),
    "a wrong count of subdirectories": (
        [f"UPDATE inode SET nlink=2 WHERE ino={OUTER}"],
        {"wrong-link-count"},
    ),
    "a wrong home": ([f"UPDATE inode SET home_cookie=5 WHERE ino={PHOTO_0}"], {"lost-home"}),
    "a directory with content": (
        [f"UPDATE inode SET version_id=1 WHERE ino={INNER}"],
        {"wrong-type"},
    ),
    "a symlink without a target": ([f"UPDATE inode SET target=NULL WHERE ino={LINK}"], {"wrong-type"}),
    "a wrong length of a target": ([f"UPDATE inode SET size_bytes=9 WHERE ino={LINK}"], {"wrong-type"}),
    "an image without an id": (
        [f"UPDATE inode SET image_id=NULL WHERE ino={PHOTO_0}"],
        {"wrong-type"},
    ),
    "another's image id": (
        [f"UPDATE inode SET image_id=zeroblob(16) WHERE ino={PHOTO_0}"],
        {"wrong-image-id", "image-damaged"},
    ),
    "no version": ([f"DELETE FROM version WHERE version_id={VERSION_1}"], {"no-key", "stray-object"}),
    "no key": (
        [f"UPDATE version SET key=NULL, retired_by=token WHERE version_id={VERSION_1}"],
        {"no-key"},
    ),
    "another's version": (
        [f"UPDATE inode SET version_id={VERSION_1} WHERE ino={PHOTO_0}"],
        {"no-key", "stray-version"},
    ),
    "a wrong size": ([f"UPDATE inode SET size_bytes=4 WHERE ino={PHOTO_0}"], {"wrong-size"}),
    "current content retired": (
        [f"UPDATE version SET retired_by=token WHERE version_id={VERSION_1}"],
        {"current-retired"},
    ),
    "a version of nobody": (
        [
            "INSERT INTO version SELECT 5000, 777777, token, key, iv, x'', 0, 0, 0, x'', NULL, NULL "
            f"FROM version WHERE version_id={VERSION_1}",
            "UPDATE state SET next_version_id=5001",
        ],
        {"stray-version"},
    ),
    "a version with a short key": (
        [f"UPDATE version SET key=x'00' WHERE version_id={VERSION_1}"],
        {"bad-version"},
    ),
    "a version with half a run": (
        [f"UPDATE version SET runs=x'00' WHERE version_id={VERSION_1}"],
        {"bad-version"},
    ),
    "a version that was retired before it was made": (
        [
            "INSERT INTO version SELECT 5000, ino, token, key, iv, x'', 0, 0, 0, x'', NULL, token-1 "
            f"FROM version WHERE version_id={VERSION_1}",
            "UPDATE state SET next_version_id=5001",
        ],
        {"bad-version"},
    ),
    "runs out of order": (
        [f"UPDATE version SET runs=CAST(runs||runs AS BLOB) WHERE version_id={VERSION_1}"],
        {"image-damaged"},
    ),
    "runs beyond the size": (
        [
            f"UPDATE version SET size_bytes=5 WHERE version_id={VERSION_1}",
            f"UPDATE inode SET size_bytes=5 WHERE ino={PHOTO_1}",
        ],
        {"image-damaged"},
    ),
    "displaced after a clean stop": (
        [f"INSERT INTO displaced VALUES (1, 1, x'61', {PHOTO_0}, {PHOTO_1})"],
        {"displaced"},
    ),
    "an inode number in use": (["UPDATE state SET next_ino=3"], {"used-number"}),
    "a cookie in use": (["UPDATE state SET next_cookie=3"], {"used-number"}),
    "a version id in use": (["UPDATE state SET next_version_id=2, object_floor=1"], {"used-number"}),
    "an object floor not reached": (["UPDATE state SET object_floor=999999"], {"used-number"}),
    "a token in use": (["UPDATE state SET next_token=2, durable_token=1"], {"used-number", "index-outdated"}),
    "a durable token not reached": (["UPDATE state SET durable_token=999999"], {"used-number"}),
    "attributes of nobody": (["UPDATE xattr SET ino=777777"], {"stray-xattr"}),
}


@pytest.mark.parametrize("broken", BROKEN_ROWS)
def test_broken_rows(closed: Place, broken: str) -> None:
    """Exactly what was broken is told; after a repair nothing is, and a second one does nothing."""
    statements, expected = BROKEN_ROWS[broken]
    assert check(closed) == []
    break_rows(closed, *statements)

    assert {kind for kind, _ in problems(closed)} == expected

    repair(closed)
    assert problems(closed) == []
    assert repair(closed) == []
    _assert_content_is_somewhere(closed, broken)


def _assert_content_is_somewhere(place: Place, broken: str) -> None:
    """The images whose content was not touched can still be read, under some name."""
    lost = {
        **dict.fromkeys(("an image without an id", "another's image id", "another's version"), "photo-0"),
        **dict.fromkeys(("no version", "no key", "runs out of order", "runs beyond the size"), "photo-1"),
        **dict.fromkeys(("a version with a short key", "a version with half a run"), "photo-1"),
    }
    expected = {content for name, content in IMAGES.items() if name != lost.get(broken)}
    store = place.open_store()
    found, todo = set(), [ROOT_INO]
    while todo:
        for _, _, inode in store.tree.entries(todo.pop(), 0, 99):
            if inode.image_id is None:
                todo += [inode.ino] if inode.mode & 0o170000 == 0o040000 else []
            elif inode.size_bytes:
                with contextlib.suppress(CorruptImage):
                    found.add(content_of(store, inode))
    store.close()
    assert expected <= found


def test_every_invariant_is_broken_by_a_test() -> None:
    """No invariant is there that no test ever saw at work."""
    kinds: set[str] = set().union(*(expected for _, expected in BROKEN_ROWS.values()))
    told = set(re.findall(r'Violation\(\s*"([a-z-]+)"', Path(index_invariants.__file__).read_text()))
    assert len(told) >= len(index_invariants.INVARIANTS)
    assert told <= kinds


def test_the_newest_content_is_adopted(closed: Place) -> None:
    """An inode put back to an older state: the content that was saved last is the image's again."""
    store = closed.open_store()
    old = store.tree.lookup(ROOT_INO, b"photo-1")
    assert old is not None
    replace_file(store, "photo-1", image(2 * SEGMENT, "newer"))
    store.close()
    break_rows(closed, f"UPDATE inode SET version_id={old.version_id} WHERE ino={old.ino}")
    assert {kind for kind, _ in problems(closed)} == {"no-key", "stray-version"}

    assert any("has its newest content again" in line for line in repair(closed))

    assert check(closed) == []
    store = closed.open_store()
    assert tree(store)["photo-1"] == image(2 * SEGMENT, "newer")
    store.close()


def test_header_and_key_slots(closed: Place) -> None:
    """One of a file and its copy is a note; without both nothing opens, and the error says what is lost."""
    for name in ("store.json", "keys.json"):
        first, copy = closed.path / name, closed.path / "copies" / name
        kept = first.read_bytes()
        first.write_bytes(b"?")
        assert [(found.kind, name in found.message) for found in check(closed)] == [("copy-differs", True)]
        copy.unlink()
        with pytest.raises(PixstoreError, match=name):
            check(closed)
        first.write_bytes(kept)
        assert [found.reaction for found in check(closed)] == [Reaction.NOTE]
        repair(closed)
        assert check(closed) == []
    (closed.path / "index.db").unlink()
    with pytest.raises(CorruptStore, match=r"index\.db"):
        check(closed)


def test_a_copy_of_the_index(closed: Place) -> None:
    """One that cannot be read is a note: the index itself is whole, and the next copy replaces it."""
    path = closed.path / "copies" / "index-1.db"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert [(found.kind, found.reaction) for found in check(closed)] == [("copy-damaged", Reaction.NOTE)]


def test_one_path_only(closed: Place) -> None:
    """A part of the tree is checked without the rest."""
    _object_of(closed, b"photo-0").unlink()
    with StoreView(str(closed.path), secret_from_keyfile(closed.keyfile)) as view:
        for names, expected in (([b"outer"], []), ([b"photo-0"], ["photo-0"]), ([], ["photo-0"])):
            check_part = Check(view, Progress())
            ino = check_part.inode_at(names)
            assert ino is not None
            assert [found.path for found in check_part.run_below(ino)] == expected
        assert Check(view, Progress()).inode_at([b"outer", b"missing"]) is None


def test_going_on(closed: Place) -> None:
    """A check that goes on verifies what is left, looks at what was bad again, and counts both."""
    _object_of(closed, b"photo-0").unlink()
    with StoreView(str(closed.path), secret_from_keyfile(closed.keyfile)) as view:
        progress = Progress()
        found = Check(view, progress).run()
        assert next(found).path == "photo-0"
        seen = Progress(
            after_version_id=2, images=2, verified_bytes=7, bad_version_ids=progress.bad_version_ids
        )
        assert [finding.path for finding in Check(view, seen).run()] == ["photo-0"]
        assert seen.images == len(IMAGES) + 1
        assert seen.bad_version_ids == progress.bad_version_ids


def test_lost_and_found_is_a_file(closed: Place) -> None:
    """The repair says so instead of replacing it."""
    store = closed.open_store()
    _create(store, "lost+found", b"mine")
    store.close()
    _object_of(closed, b"photo-0").unlink()
    with pytest.raises(InvalidInput, match="rename it"):
        repair(closed)
    assert problems(closed) == [("image-damaged", "photo-0")]


def test_long_names_fit(closed: Place) -> None:
    """An image whose name has 255 bytes keeps as much of it as fits behind the id."""
    store = closed.open_store()
    name = "ö" * 127 + "x"
    _create(store, name, image(77))
    store.close()
    _object_of(closed, name.encode()).unlink()
    repair(closed)
    store = closed.open_store()
    [(_, moved, inode), *_] = store.tree.entries(_ino(store, b"lost+found"), 0, 9)
    store.close()
    assert inode.image_id is not None
    assert moved == inode.image_id.hex().encode() + b"-" + "ö".encode() * 111
    assert Entry(1, 1, moved).name.decode()


def test_a_folder_that_is_only_called_like_lost_and_found(closed: Place) -> None:
    """What is damaged in `lost+found of 2026` is moved like everything else."""
    store = closed.open_store()
    _directory(store, ROOT_INO, b"lost+found of 2026")
    folder = _ino(store, b"lost+found of 2026")
    save_file(store, "x.jpg", lambda draft: draft.write(0, image(100, "x")), parent=folder)
    store.close()
    objects_of(closed.path)[max(objects_of(closed.path))].unlink()
    assert problems(closed) == [("image-damaged", "lost+found of 2026/x.jpg")]
    assert len(repair(closed)) == 1
    assert problems(closed) == []
