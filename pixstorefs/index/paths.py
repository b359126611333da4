"""Paths of what the index holds, for messages and records."""

from pixstorefs.index.rows import Index


def path_of(index: Index, ino: int) -> str:
    """A path of an inode inside the mount, for messages and records; its number where it has no name."""
    parts: list[str] = []
    seen = {ino}
    entries = index.names(ino)
    while entries:
        parts.append(entries[0].name.decode("utf-8", "backslashreplace"))
        parent = entries[0].parent
        # A damaged index may hold a directory that is inside itself.
        entries = index.names(parent) if parent not in seen else []
        seen.add(parent)
    return "/".join(reversed(parts)) or f"inode {ino}"
