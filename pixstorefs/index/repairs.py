"""What `check --repair` changes in the rows of an index. Each function runs inside its caller's transaction.

Each changes only rows that break an invariant (see `invariants`). Most return how many.
"""

import os
import stat
from collections.abc import Callable

from pixstorefs.index.rows import Index
from pixstorefs.index.schema import IS_DIRECTORY, IS_FILE, IS_SYMLINK, is_type
from pixstorefs.records import Entry, Version


def raise_numbers(index: Index) -> None:
    """Nothing that was used is handed out again. Has to happen before the store hands out anything."""
    index.execute(
        "UPDATE state SET next_ino=max(next_ino, 1 + ifnull((SELECT max(ino) FROM inode), 1)), "
        "next_cookie=max(next_cookie, 3, 1 + ifnull((SELECT max(cookie) FROM entry), 2)), "
        "next_version_id=max(next_version_id, object_floor, "
        "1 + ifnull((SELECT max(version_id) FROM version), 0)), "
        "next_token=max(next_token, 1 + durable_token, 1 + ifnull((SELECT max(token) FROM version), 0), "
        "1 + ifnull((SELECT max(retired_by) FROM version), 0), "
        "1 + ifnull((SELECT max(token) FROM displaced), 0))",
    )


def keep_current(index: Index) -> int:
    """What an inode names is not retired. Has to happen before a barrier unlinks its object."""
    return _changed(
        index,
        "UPDATE version SET retired_by=NULL WHERE retired_by IS NOT NULL AND key IS NOT NULL "
        "AND version_id IN (SELECT inode.version_id FROM inode WHERE inode.ino=version.ino)",
    )


def mend_types(index: Index) -> int:
    """What an inode has fits its kind."""
    changed = _changed(
        index,
        "UPDATE inode SET image_id=NULL, version_id=NULL "
        f"WHERE NOT {IS_FILE} AND (image_id IS NOT NULL OR version_id IS NOT NULL)",
    )
    changed += _changed(index, f"UPDATE inode SET target=NULL WHERE target IS NOT NULL AND NOT {IS_SYMLINK}")
    changed += _changed(index, f"UPDATE inode SET target=x'' WHERE target IS NULL AND {IS_SYMLINK}")
    changed += _changed(
        index, f"UPDATE inode SET size_bytes=length(target) WHERE {IS_SYMLINK} AND size_bytes<>length(target)"
    )
    changed += _changed(index, "UPDATE inode SET size_bytes=0 WHERE size_bytes<0")
    return changed


def give_image_ids(index: Index, random: Callable[[int], bytes] = os.urandom) -> list[int]:
    """Images without an id get one, though nothing opens under it; returns their inode numbers."""
    found = [ino for (ino,) in index.execute(f"SELECT ino FROM inode WHERE image_id IS NULL AND {IS_FILE}")]
    for ino in found:
        index.execute("UPDATE inode SET image_id=? WHERE ino=?", (ino.to_bytes(8, "big") + random(8), ino))
    return found


def take_sizes(index: Index) -> int:
    """Images have the sizes of their content."""
    return _changed(
        index,
        "UPDATE inode SET (size_bytes, stored_size_bytes)=(SELECT version.size_bytes, "
        "version.stored_size_bytes FROM version WHERE version.version_id=inode.version_id) "
        "WHERE EXISTS (SELECT 1 FROM version WHERE version.version_id=inode.version_id "
        "AND version.ino=inode.ino AND (version.size_bytes, version.stored_size_bytes) "
        "<> (inode.size_bytes, inode.stored_size_bytes))",
    )


def find_names(index: Index) -> int:
    """Every name is found from its inode."""
    return _changed(
        index,
        "UPDATE entry SET linked=1 WHERE linked=0 AND EXISTS (SELECT 1 FROM inode WHERE inode.ino=entry.ino "
        "AND (home_parent, home_cookie) IS NOT (entry.parent, entry.cookie))",
    )


def count_links(index: Index) -> int:
    """Files have as many links as names, directories 2 and their subdirectories."""
    changed = _changed(
        index,
        "UPDATE inode SET nlink=named.n FROM (SELECT ino, count(*) AS n FROM entry GROUP BY ino) AS named "
        f"WHERE named.ino=inode.ino AND NOT {IS_DIRECTORY} AND nlink<>named.n",
    )
    return changed + _changed(
        index,
        "UPDATE inode SET nlink=counted.n FROM (SELECT directory.ino, 2 + count(child.ino) AS n "
        "FROM inode AS directory LEFT JOIN entry ON entry.parent=directory.ino "
        "LEFT JOIN inode AS child ON child.ino=entry.ino "
        f"AND {is_type(stat.S_IFDIR, 'child.mode')} "
        f"WHERE {is_type(stat.S_IFDIR, 'directory.mode')} GROUP BY directory.ino) AS counted "
        f"WHERE counted.ino=inode.ino AND {IS_DIRECTORY} AND nlink<>counted.n",
    )


def drop_stray_xattrs(index: Index) -> int:
    """No attributes of files that are gone."""
    return _changed(index, "DELETE FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)")


def move_name(index: Index, parent: int, name: bytes, entry: Entry, ino: int, now_ns: int) -> None:
    """A name becomes another one, in another directory; link counts of directories are counted later."""
    index.delete_entry(parent, name)
    index.insert_entry(entry, ino)
    for directory in (parent, entry.parent):
        index.touch_directory(directory, now_ns)


def adopt_version(index: Index, version: Version, lost: Version | None, token: int) -> None:
    """A version that nobody names becomes the content of its image."""
    inode = index.inode(version.ino)
    assert inode is not None
    if lost is not None:
        index.retire_version(lost.version_id, token)
    index.reinstate_version(version, inode)


def forget_version(index: Index, version_id: int) -> None:
    """Drop the row of a version whose image is gone: without the image's id it cannot be opened."""
    index.execute("DELETE FROM version WHERE version_id=?", (version_id,))


def _changed(index: Index, sql: str, *bindings: object) -> int:
    index.execute(sql, bindings)
    row = index.one("SELECT changes()")
    assert row is not None
    return int(row[0])
