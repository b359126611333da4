"""Walking an index that may be in use: every question is one short read, and nothing is held in between."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pixstorefs.index.rows import Index, unpacked_runs
from pixstorefs.records import Version

PAGE_ROWS = 256
_LAST_TOKEN = (1 << 63) - 1

_COLUMNS = (
    "version.version_id, version.ino, token, key, iv, tag, version.size_bytes, version.stored_size_bytes, "
    "version.mtime_ns, runs, format, image_id"
)
# The content of what has a name. A version that is lost or of another image is an invariant's business.
_CURRENT = (
    f"SELECT {_COLUMNS} FROM version JOIN inode ON inode.ino=version.ino "
    "AND inode.version_id=version.version_id WHERE key IS NOT NULL AND length(key)=32 AND length(iv)=12 "
    "AND length(runs)%16=0 AND nlink>0 AND length(image_id)=16"
)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The current version of an image, and the image's id."""

    version: Version
    image_id: bytes


def current_after(index: Index, version_id: int) -> Iterator[StoredImage]:
    """The content of all images with a higher version id, in the order of the ids."""
    while True:
        rows = index.execute(
            f"{_CURRENT} AND version.version_id>? ORDER BY version.version_id LIMIT {PAGE_ROWS}",
            (version_id,),
        )
        yield from map(_stored, rows)
        if len(rows) < PAGE_ROWS:
            return
        version_id = rows[-1][0]


def current_of(index: Index, version_ids: list[int]) -> Iterator[StoredImage]:
    """The same for the given versions, as far as they are current."""
    for version_id in version_ids:
        yield from map(_stored, index.execute(f"{_CURRENT} AND version.version_id=?", (version_id,)))


def is_current(index: Index, version_id: int) -> bool:
    """Whether a version still is the content of an image."""
    return index.one(f"{_CURRENT} AND version.version_id=?", version_id) is not None


def any_version(index: Index, *, up_to_token: int = _LAST_TOKEN) -> bool:
    """Whether the index knows an object that was saved up to a token, of a retired version too."""
    # `runs` is empty where nothing is stored: such an image has no object.
    found = index.one("SELECT 1 FROM version WHERE stored_size_bytes > 0 AND token <= ? LIMIT 1", up_to_token)
    return found is not None


def total(index: Index) -> tuple[int, int]:
    """How many images there are, and how many bytes of content they store."""
    row = index.one("SELECT count(*), total(stored_size_bytes) FROM version WHERE retired_by IS NULL")
    assert row is not None
    return int(row[0]), int(row[1])


def content_below(index: Index, ino: int) -> tuple[list[int], set[int]]:
    """The files at or below an inode: version ids in ascending order, and inodes of images without any."""
    versions: set[int] = set()
    without: set[int] = set()
    seen, todo = {ino}, [ino]
    while todo:
        inode = index.inode(todo.pop())
        if inode is None:
            continue
        if stat.S_ISREG(inode.mode):
            if inode.version_id is not None and is_current(index, inode.version_id):
                versions.add(inode.version_id)
            else:
                without.add(inode.ino)
        elif stat.S_ISDIR(inode.mode):
            # A damaged index may hold a directory that is inside itself.
            below = [child.ino for child in _children(index, inode.ino)]
            todo += [child for child in below if child not in seen]
            seen.update(below)
    return sorted(versions), without


def object_floor(index: Index) -> int:
    """No object with a lower id may be without a row."""
    return index.state().object_floor


def rows_between(index: Index, first_version_id: int, behind_version_id: int) -> set[int]:
    """Ids of versions in a range, retired ones too."""
    return {
        row[0]
        for row in index.execute(
            "SELECT version_id FROM version WHERE version_id>=? AND version_id<?",
            (first_version_id, behind_version_id),
        )
    }


def _children(index: Index, parent: int) -> Iterator[Any]:
    cookie = 0
    while page := index.entries(parent, cookie, PAGE_ROWS):
        for _, _, inode in page:
            yield inode
        cookie = page[-1][0]


def _stored(row: tuple[Any, ...]) -> StoredImage:
    columns = list(row)
    columns[9] = unpacked_runs(columns[9])
    return StoredImage(Version(*columns[:-1]), columns[-1])
