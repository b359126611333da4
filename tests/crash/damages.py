"""One random damage to a store: what disks, tools and people do to files, and what they do not mean to.

`damage` chooses with the chance it is given, so that a round can be run again by its number.
"""

import contextlib
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prepared import write_with_hole

_SECTOR_BYTES, _PAGE_BYTES = 512, 4096
_SPARSE_BYTES = 1 << 40
_TRIES = 8
_FOLDERS = ("objects", "objects/0", "copies", "lost+found", "lost+found/objects")
# How often each file is meant, by its name; of objects there are many.
_WEIGHTS = {
    "index.db": 8,
    "index.db-wal": 8,
    "copies/index-1.db": 3,
    "copies/index-2.db": 3,
    "barrier": 3,
    "journal": 3,
    "store.json": 2,
    "keys.json": 2,
    "copies/store.json": 2,
    "copies/keys.json": 2,
}
_OBJECTS_WEIGHT = 8
_FORGEABLE = (
    "lock",
    "lock",
    "store.json",
    "keys.json",
    "copies/store.json",
    "copies/keys.json",
    "snapshot.json",
)
_WITH_HISTORY = (
    *("index.db", "index.db", "index.db-wal", "index.db-wal"),
    *("copies", "barrier", "journal", "keys.json"),
)

_FORGED = (
    b"",
    b"null",
    b"[" * 100_000,
    b'{"pid": 1, "mountpoint": "/"}',
    b'{"pid": 1e400, "mountpoint": Infinity}',
    b'{"pid": 1234567890123456789012345678901234567890, "mountpoint": null}',
    b'{"pid": "\\u001b[2J", "mountpoint": "\\u001b]0;x\\u0007\\nno problems"}',
    b'{"format": 1, "slots": []}',
    b'{"format": 1, "slots": [' + b'{"label": "x"},' * 31 + b'{"label": "x"}]}',
    b'{"magic": "pixstorefs", "format": -1}',
    b'{"store_id": 7, "digests": {}, "finished": "yes"}',
    b"\xff\xfe\x00{",
)
_ODD_NAMES = (
    "9223372036854775808",
    "9223372036854775806",
    "18446744073709551617",
    "340282366920938463463374607431768211456",
    "0000",
    "007",
    "-1",
    "1_000",
    "٤٠٠٠",  # decimal for Python, not for the format
    "²",
    "500",
    " 1",
    "index-1.db.new",
    "new\nline",
    os.fsdecode(b"\xff\xfe"),
)


@dataclass(frozen=True)
class Damage:
    """What was done, to which class of file, and in words."""

    action: str
    target: str
    text: str


@dataclass(frozen=True)
class Scene:
    """The store, what it was before, and a tree beside it that links may point to."""

    store: Path
    history: list[Path]
    canary: Path


Action = Callable[[random.Random, Scene, Path], str]


def damage(chance: random.Random, scene: Scene) -> Damage:
    """Do one damage; returns what it was."""
    while True:
        name = chance.choice(tuple(ACTIONS))
        # Not every file can be damaged in every way; another one of the store can.
        for _ in range(_TRIES):
            with contextlib.suppress(_NotHere):
                return _do(name, chance, scene)


def _do(name: str, chance: random.Random, scene: Scene) -> Damage:
    action, choose = ACTIONS[name]
    path = choose(chance, scene)
    text = action(chance, scene, path)
    relative = path.relative_to(scene.store)
    return Damage(name, _class_of(relative), f"{name}: {relative} {text}".rstrip())


class _NotHere(Exception):
    """This damage cannot be done to this file, or would change nothing."""


def _class_of(relative: Path) -> str:
    parts = relative.parts
    if parts[0] == "objects" and len(parts) == 3:
        return "an object"
    if parts[0] == "lost+found" and len(parts) > 2:
        return "lost+found/*/*"
    return str(relative)


# What is meant


def _any_file(chance: random.Random, scene: Scene) -> Path:
    files = [path for path in sorted(scene.store.rglob("*")) if path.is_file()]
    objects = sum(path.parts[-3] == "objects" for path in files)
    weights = [
        _OBJECTS_WEIGHT / objects
        if path.parts[-3] == "objects"
        else _WEIGHTS.get(str(path.relative_to(scene.store)), 1)
        for path in files
    ]
    return chance.choices(files, weights)[0]


def _any_folder(chance: random.Random, scene: Scene) -> Path:
    return scene.store / chance.choice(_FOLDERS)


def _anything(chance: random.Random, scene: Scene) -> Path:
    return _any_folder(chance, scene) if chance.random() < 0.3 else _any_file(chance, scene)


def _forgeable(chance: random.Random, scene: Scene) -> Path:
    return scene.store / chance.choice(_FORGEABLE)


def _with_history(chance: random.Random, scene: Scene) -> Path:
    return scene.store / chance.choice(_WITH_HISTORY)


# What is done


def _flip(chance: random.Random, scene: Scene, path: Path) -> str:
    at = _position(chance, path)
    bit = chance.randrange(8)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {at}"


def _zero(chance: random.Random, scene: Scene, path: Path) -> str:
    size_bytes = path.stat().st_size
    unit = chance.choice((_SECTOR_BYTES, _PAGE_BYTES, size_bytes))
    at = _position(chance, path) // unit * unit
    with open(path, "r+b") as file:
        file.seek(at)
        if not any(file.read(unit)):
            raise _NotHere
        file.seek(at)
        file.write(bytes(min(unit, size_bytes - at)))
    return f"{unit} bytes from {at}"


def _garble(chance: random.Random, scene: Scene, path: Path) -> str:
    at = _position(chance, path) // _SECTOR_BYTES * _SECTOR_BYTES
    size_bytes = min(chance.choice((_SECTOR_BYTES, _PAGE_BYTES, 5 * _PAGE_BYTES)), path.stat().st_size - at)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(chance.randbytes(size_bytes))
    return f"{size_bytes} bytes from {at}"


def _cut(chance: random.Random, scene: Scene, path: Path) -> str:
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise _NotHere
    left = chance.choice((0, 0, chance.randrange(size_bytes), size_bytes - 1, size_bytes // 8192 * 4096))
    os.truncate(path, left)
    return f"from {size_bytes} to {left} bytes"


def _grow(chance: random.Random, scene: Scene, path: Path) -> str:
    how = chance.choice(("garbage", "zeros", "sparse"))
    size_bytes = chance.choice((1, 4096, 10_000))
    if how == "sparse":
        os.truncate(path, _SPARSE_BYTES)
        return "to a sparse terabyte"
    with open(path, "ab") as file:
        file.write(chance.randbytes(size_bytes) if how == "garbage" else bytes(size_bytes))
    return f"by {size_bytes} bytes of {how}"


def _remove(chance: random.Random, scene: Scene, path: Path) -> str:
    if not os.path.lexists(path):
        raise _NotHere
    _clear(path)
    return ""


def _older(chance: random.Random, scene: Scene, path: Path) -> str:
    """Put an older one of the store's own history back; of the index with its log or alone."""
    moment = chance.choice(scene.history) if scene.history else None
    relative = path.relative_to(scene.store)
    if moment is None or not (moment / relative).exists():
        raise _NotHere
    names = [str(relative)]
    if relative.name == "index.db" and chance.random() < 0.5 and (moment / "index.db-wal").exists():
        names.append("index.db-wal")
    if all(_same(scene.store / name, moment / name) for name in names):
        raise _NotHere
    for name in names:
        _clear(scene.store / name)
        if (moment / name).is_dir():
            shutil.copytree(moment / name, scene.store / name)
        else:
            content = (moment / name).read_bytes()
            write_with_hole(scene.store / name, 0o600, content.rstrip(b"\0"), len(content))
    return f"{'with its log ' if len(names) > 1 else ''}as of moment {moment.name} of {len(scene.history)}"


def _swap(chance: random.Random, scene: Scene, path: Path) -> str:
    parts = path.relative_to(scene.store).parts
    if parts[0] == "objects":
        others = [other for other in sorted(scene.store.glob("objects/*/*")) if other != path]
    else:
        others = [scene.store / name for name in _WEIGHTS if scene.store / name != path]
    others = [other for other in others if other.is_file()]
    if not others:
        raise _NotHere
    other = chance.choice(others)
    aside = path.with_name("swapped")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return f"with {other.relative_to(scene.store)}"


def _retype(chance: random.Random, scene: Scene, path: Path) -> str:
    """Something of another type takes its place, or comes where nothing was."""
    kind = chance.choice(tuple(_TYPES))
    if not path.parent.is_dir():
        raise _NotHere
    if (kind == "directory" and path.is_dir()) or (kind == "device" and os.geteuid() != 0):
        raise _NotHere
    _clear(path)
    _TYPES[kind](path, scene.canary)
    return f"by a {kind}"


def _odd_name(chance: random.Random, scene: Scene, path: Path) -> str:
    if not path.is_dir():
        raise _NotHere
    name = chance.choice(_ODD_NAMES)
    kind = chance.choice(("file", "directory", *_TYPES))
    if os.path.lexists(path / name) or (kind == "device" and os.geteuid() != 0):
        raise _NotHere
    _TYPES[kind](path / name, scene.canary)
    return f"gets the {kind} {name!r}"


def _forge(chance: random.Random, scene: Scene, path: Path) -> str:
    content = chance.choice(_FORGED)
    _clear(path)
    path.write_bytes(content)
    return f"is {content[:50]!r}"


def _fifo(path: Path, canary: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, canary: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    # A path to a socket has at most 107 bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        server.bind(f"/proc/self/fd/{folder}/socket-{os.getpid()}")
        (path.parent / f"socket-{os.getpid()}").rename(path)
    finally:
        os.close(folder)
        server.close()


def _device(path: Path, canary: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it never ends


_TYPES: dict[str, Callable[[Path, Path], None]] = {
    "directory": lambda path, canary: path.mkdir(),
    "file": lambda path, canary: _ignored(path.write_bytes(b"a file")),
    "FIFO": _fifo,
    "socket": _socket,
    "device": _device,
    "dangling link": lambda path, canary: path.symlink_to(canary / "nothing"),
    "link to a file": lambda path, canary: path.symlink_to(canary / "notes.txt"),
    "link to a directory": lambda path, canary: path.symlink_to(canary / "folder"),
}


def _ignored(_: object) -> None:
    pass


ACTIONS: dict[str, tuple[Action, Callable[[random.Random, Scene], Path]]] = {
    "flip": (_flip, _any_file),
    "zero": (_zero, _any_file),
    "garble": (_garble, _any_file),
    "cut": (_cut, _any_file),
    "grow": (_grow, _any_file),
    "remove": (_remove, _anything),
    "older": (_older, _with_history),
    "swap": (_swap, _any_file),
    "replace": (_retype, _anything),
    "odd name": (_odd_name, _any_folder),
    "forge": (_forge, _forgeable),
}


def _position(chance: random.Random, path: Path) -> int:
    """A byte of the file, mostly of the part in front of the zeros at its end."""
    content = path.read_bytes()
    if not content:
        raise _NotHere
    used = len(content.rstrip(b"\0"))
    return chance.randrange(used if used and chance.random() < 0.9 else len(content))


def _same(first: Path, second: Path) -> bool:
    if first.is_dir() and second.is_dir():
        names = {path.name for path in first.iterdir()} | {path.name for path in second.iterdir()}
        return all(_same(first / name, second / name) for name in names)
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
