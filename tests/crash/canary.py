"""A tree beside the store that nobody may touch, and the comparison that tells."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

# Name -> type and permissions, mtime, content. Links to its files are made for the tests: not the link count.
Look = dict[str, tuple[int, int, bytes]]


def build(folder: Path) -> None:
    """Make it: names that a store uses, too, so that a link leads to something that looks right."""
    for name in ("folder", "folder/0", "folder/objects", "folder/index-20200101T000000Z", "folder/salvage"):
        (folder / name).mkdir(parents=True)
    for name in ("notes.txt", "folder/a", "folder/5", "folder/0/7", "folder/objects/8", "folder/salvage/c"):
        (folder / name).write_text(f"{name}: nobody may touch this\n")
    for name in ("index-1.db", "index-2.db", "index.new", "store.json", "keys.json", "report.txt"):
        (folder / "folder" / name).write_text(f"{name} of somebody else\n")
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


def look(folder: Path) -> Look:
    """Everything that must stay as it is."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder.parent))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def differences(before: Look, after: Look) -> Iterator[str]:
    """What was made, removed or changed, in words."""
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            yield f"{path} is new"
        elif path not in after:
            yield f"{path} is gone"
        elif before[path] != after[path]:
            parts = zip(("mode", "mtime", "content"), before[path], after[path], strict=True)
            yield f"{path}: {', '.join(what for what, old, new in parts if old != new)} changed"
