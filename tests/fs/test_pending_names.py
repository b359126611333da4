"""Files that were never saved and take the names of others: as POSIX says, and harmless when the mount dies.

`photo` is saved, a new file is renamed over it and on to another name, and not closed yet. From then on the
mount has no `photo`; the index keeps it until the new file is saved.
"""

import os
from collections.abc import Callable

import pytest
from differential_machine import RENAME_NOREPLACE, rename
from sides import Case, Sides, look, tried
from support import Mount

OLD, NEW = b"old" * 50_000, b"new" * 60_000


def _write(name: str, content: bytes = OLD) -> None:
    with open(name, "wb") as file:
        file.write(content)


def _read(name: str) -> object:
    if not os.path.isfile(name):
        return None
    with open(name, "rb") as file:
        return file.read()


def _tree() -> object:
    """Everything in the working directory, directories with what they hold."""
    return {
        name: (look(name)[:2], sorted(os.listdir(name)) if os.path.isdir(name) else _read(name))
        for name in sorted(os.listdir())
    }


def _open_new(*names: str) -> int:
    """A new file that is not closed, renamed to each of the names in turn."""
    fd = os.open("tmp", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(fd, NEW)
    last = "tmp"
    for name in names:
        os.rename(last, name)
        last = name
    return fd


def _left_behind() -> object:
    _write("photo")
    fd = _open_new("photo", "other")
    seen = _tree(), tried(lambda: os.stat("photo")), tried(lambda: os.unlink("photo"))
    os.close(fd)
    return seen, _tree()


def _left_behind_twice() -> object:
    _write("photo")
    _write("second")
    fd = _open_new("photo", "second", "third")
    seen = _tree()
    os.close(fd)
    return seen, _tree()


def _back_again() -> object:
    _write("photo")
    fd = _open_new("photo", "other", "photo")
    seen = _tree()
    os.close(fd)
    return seen, _tree()


def _deleted_after_all() -> object:
    _write("photo")
    fd = _open_new("photo", "other")
    os.unlink("other")
    seen = _tree()
    os.close(fd)
    return seen, _tree()


def _replaced_by_another_new_one() -> object:
    _write("photo")
    first = _open_new("photo", "other")
    second = _open_new("other")
    seen = _tree()
    os.close(first)
    os.close(second)
    return seen, _tree()


def _replaced_by_a_saved_one() -> object:
    _write("photo")
    _write("saved", b"saved")
    fd = _open_new("photo", "other")
    os.rename("saved", "other")
    seen = _tree()
    os.close(fd)
    return seen, _tree()


def _name_taken(take: Callable[[], object], name: str) -> Case:
    def case() -> object:
        _write("photo")
        _write("saved", b"saved")
        fd = _open_new("photo", "other")
        results = [tried(take), _tree()]
        os.close(fd)
        return [*results, _tree()]

    case.__name__ = f"name_taken_by_{name}"
    return case


def _name_taken_by_a_new_file(order: int) -> Case:
    def case() -> object:
        _write("photo")
        fds = [_open_new("photo", "other"), os.open("photo", os.O_CREAT | os.O_EXCL | os.O_WRONLY)]
        os.write(fds[1], b"another")
        results = [_tree()]
        for fd in fds[::order]:
            os.close(fd)
            results.append(_tree())
        return results

    case.__name__ = f"name_taken_by_a_new_file_{order}"
    return case


def _directory_of_the_left_name() -> object:
    os.mkdir("d")
    _write("d/photo")
    fd = _open_new("d/photo", "other")
    seen = _tree(), tried(lambda: os.rmdir("d"))
    os.mkdir("e")
    os.mkdir("f")
    _write("e/photo")
    second = _open_new("e/photo", "more")
    os.rename("f", "e")
    seen += (_tree(),)
    os.close(fd)
    os.close(second)
    return seen, _tree()


def _still_open() -> object:
    _write("photo")
    with open("photo", "r+b", buffering=0) as file:
        fd = _open_new("photo", "other")
        seen = look(file.fileno()), file.read(10)
        file.write(b"changed")
        os.fchmod(file.fileno(), 0o600)
        os.close(fd)
        file.seek(0)
        return seen, look(file.fileno()), file.read(20), _tree()


def _linked(*, change: bool) -> Case:
    """The other name of a file outlives the one that was taken, whatever happens to the file meanwhile."""

    def case() -> object:
        _write("photo")
        os.link("photo", "second name")
        with open("photo", "r+b", buffering=0) as file:
            fd = _open_new("photo", "other")
            seen = [_tree(), look(file.fileno())]
            if change:
                os.fchmod(file.fileno(), 0o600)
                file.write(b"changed")
                os.fsync(file.fileno())
            os.link("second name", "third name")
            seen.append(_tree())
            os.close(fd)
            seen.append(_tree())
        os.unlink("third name")
        return [*seen, _tree()]

    case.__name__ = f"linked_and_{'changed' if change else 'unchanged'}"
    return case


CASES = [
    _left_behind,
    _left_behind_twice,
    _back_again,
    _deleted_after_all,
    _replaced_by_another_new_one,
    _replaced_by_a_saved_one,
    _name_taken(lambda: os.mkdir("photo"), "mkdir"),
    _name_taken(lambda: os.symlink("x", "photo"), "symlink"),
    _name_taken(lambda: os.mkfifo("photo"), "mkfifo"),
    _name_taken(lambda: os.link("saved", "photo"), "link"),
    _name_taken(lambda: os.rename("saved", "photo"), "rename"),
    _name_taken(lambda: rename(b"saved", b"photo", RENAME_NOREPLACE), "rename_noreplace"),
    _name_taken_by_a_new_file(1),
    _name_taken_by_a_new_file(-1),
    _directory_of_the_left_name,
    _still_open,
    _linked(change=False),
    _linked(change=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_the_mount_shows_what_any_file_system_would(sides: Sides, case: Case) -> None:
    """Before and after the new file is closed."""
    mounted, plain = sides.outcomes(case)
    assert mounted == plain


def _killed(mount: Mount, act: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> object:
    """What a mount has after its daemon was killed while files that `act` left open were not closed."""
    monkeypatch.chdir(mount.mountpoint)
    fds = act()
    monkeypatch.chdir("/")
    mount.kill()
    for fd in fds:
        assert tried(lambda fd=fd: os.close(fd)) != "done"
    mount.mount()
    monkeypatch.chdir(mount.mountpoint)
    tree = _tree()
    monkeypatch.chdir("/")
    return tree


def _saved(content: bytes) -> object:
    return (("0o100644", 1), content)


def _two_photos(*names: str) -> list[int]:
    _write("photo")
    _write("second", b"second")
    return [_open_new(*names)]


@pytest.mark.parametrize(
    "names", [("photo",), ("photo", "other"), ("photo", "second"), ("photo", "second", "x")]
)
def test_killed_before_the_close_every_old_image_is_there(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """However often the new file was renamed, and over what."""
    tree = _killed(mounted, lambda: _two_photos(*names), monkeypatch)
    assert tree == {"photo": _saved(OLD), "second": _saved(b"second")}


def test_killed_after_the_close_only_the_new_image_is_there(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names that were left go in the transaction that saves the new file."""

    def act() -> list[int]:
        for fd in _two_photos("photo", "second", "x"):
            os.close(fd)
        return []

    assert _killed(mounted, act, monkeypatch) == {"x": _saved(NEW)}


def test_killed_after_the_new_file_was_deleted_the_old_image_is_gone(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting the new file is done at once, and with it what it had replaced."""

    def act() -> list[int]:
        fds = _two_photos("photo", "other")
        os.unlink("other")
        return fds

    assert _killed(mounted, act, monkeypatch) == {"second": _saved(b"second")}


def test_killed_after_another_took_the_name_both_wishes_hold(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second new file with the name that was left is saved; the first one was not."""

    def act() -> list[int]:
        fds = _two_photos("photo", "other")
        _write("photo", b"another")
        return fds

    assert _killed(mounted, act, monkeypatch) == {"photo": _saved(b"another"), "second": _saved(b"second")}
