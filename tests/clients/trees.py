"""What a tree of files is, as programs see it, and how two of them differ."""

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

_SHOWN_DIFFERENCES = 20


@dataclass(frozen=True)
class Node:
    """One name. Directories have no size here, for every file system counts it differently."""

    mode: str
    uid: int
    gid: int
    links: int
    mtime_ns: int
    size_bytes: int | None
    sha256: str | None
    target: bytes | None
    xattrs: tuple[tuple[str, bytes], ...]
    names: tuple[bytes, ...]


@dataclass
class Tree:
    """A directory that does not change, described once."""

    path: Path

    @cached_property
    def nodes(self) -> dict[bytes, Node]:
        """What `describe` says of it."""
        return describe(self.path)


def describe(root: str | os.PathLike[str], *, times: bool = True) -> dict[bytes, Node]:
    """Every name below `root` (b"" is the root itself), with all that a copy has to preserve."""
    start = os.fsencode(root)
    found: dict[bytes, os.stat_result] = {b"": os.lstat(start)}
    pending = [b""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(start, folder)) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                # Not entry.stat(): it may be answered by what the directory listing said.
                found[name] = os.lstat(os.path.join(start, name))
                if stat.S_ISDIR(found[name].st_mode):
                    pending.append(name)
    names: dict[int, list[bytes]] = defaultdict(list)
    for name, status in sorted(found.items()):
        names[status.st_ino].append(name)
    return {
        name: _node(os.path.join(start, name), status, tuple(names[status.st_ino]), times=times)
        for name, status in found.items()
    }


def assert_same(
    actual: str | os.PathLike[str] | dict[bytes, Node],
    expected: str | os.PathLike[str] | dict[bytes, Node],
    *,
    times: bool = True,
) -> None:
    """Fail with what differs. `times` says whether modification times have to agree."""
    found = actual if isinstance(actual, dict) else describe(actual, times=times)
    wanted = expected if isinstance(expected, dict) else describe(expected, times=times)
    lines = [f"missing: {name!r}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"too much: {name!r}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name] != wanted[name]:
            lines += [
                f"{name!r}: {field.name} is {getattr(found[name], field.name)!r}, "
                f"should be {getattr(wanted[name], field.name)!r}"
                for field in fields(Node)
                if getattr(found[name], field.name) != getattr(wanted[name], field.name)
            ]
    assert not lines, f"{len(lines)} differences:\n" + "\n".join(lines[:_SHOWN_DIFFERENCES])


def assert_times_agree(on_mount: Path, on_disk: Path, started_ns: int, ended_ns: int) -> None:
    """Times that the edit kept are equal on both sides; times that it made lie within the edit."""
    # The kernel's clock for files ticks every few milliseconds.
    earliest_ns = started_ns - 20_000_000
    for name, node in describe(on_disk).items():
        seen_ns = os.lstat(os.fsencode(on_mount) + b"/" + name).st_mtime_ns
        if node.mtime_ns < earliest_ns:
            assert seen_ns == node.mtime_ns, name
        else:
            assert earliest_ns <= seen_ns <= ended_ns, name


def _node(path: bytes, status: os.stat_result, names: tuple[bytes, ...], *, times: bool) -> Node:
    is_file = stat.S_ISREG(status.st_mode)
    is_link = stat.S_ISLNK(status.st_mode)
    return Node(
        mode=stat.filemode(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        links=status.st_nlink,
        mtime_ns=status.st_mtime_ns if times else 0,
        size_bytes=status.st_size if is_file or is_link else None,
        sha256=_sha256(path) if is_file else None,
        target=os.readlink(path) if is_link else None,
        xattrs=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        names=names,
    )


def _sha256(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
