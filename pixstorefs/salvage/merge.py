"""One index out of a copy and what could be read of the index itself.

Of two rows the newer one wins: the row that was read, unless it is known to be older than the copy's. A row
that only the copy has was deleted since, or lay on a page that is lost, or what was read is older than that.
Which of them is told by its witnesses: the object of a version, the index `entry_by_name` of an entry (it
holds the name a second time, on another page). Where they leave a doubt the row comes back: a deleted folder
that returns is a nuisance, a lost image is lost.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pixstorefs.errors import CorruptStore
from pixstorefs.format import sealed_size
from pixstorefs.imaging.formats import extension
from pixstorefs.index.paths import path_of
from pixstorefs.index.rows import ROOT_INO, Index, State
from pixstorefs.index.schema import IS_DIRECTORY, IS_FILE, is_type
from pixstorefs.salvage.cells import rows
from pixstorefs.salvage.pages import Pages, Salvage

# How many columns the rows have, which tells most of them apart; see schema.
_COLUMNS = {"inode": 17, "version": 12, "displaced": 5, "entry": 5, "xattr": 3, "name": 3, "linked": 3}


@dataclass(slots=True)
class Merged:
    """What became of the images: how many are back, and the paths of those that are not or are older."""

    images: int
    lost: list[str]
    older: list[str]


class Merge:
    """Brings an index, which holds what a copy held, up to date. Inside one transaction of it."""

    def __init__(
        self,
        index: Index,
        objects: Mapping[int, int],
        salvage: Salvage | None,
        *,
        newest_from_token: int | None,
    ) -> None:
        """`objects`: the size of every object on disk. `salvage`: what was read of the damaged index.

        But for its lost pages that is the newest state there was if its durable token is not below
        `newest_from_token`; None: nothing tells. Raises CorruptStore where all objects are missing.
        """
        self._index = index
        self._objects = objects
        self._run = index.execute
        self._old = index.state()
        self._read: State | None = None
        self._load(salvage)
        self._read_wins = self._newest_read_token() >= self._old.durable_token
        # One lost page cannot hold an entry and its witness.
        # Pages of which none is lost and that contradict each other are of different ages.
        explained = salvage is not None and (len(salvage.lost) == 1 or salvage.agrees)
        self._certain = explained and self._is_newest(newest_from_token)

    def merge(self) -> Merged:
        """Do it; the index is then whole, and is left as after an unclean stop, to be recovered."""
        self._merge_versions()
        self._merge_inodes()
        self._merge_entries()
        self._merge_the_rest()
        self._drop_deleted()
        self._attach_folders()
        self._count_links()
        older = sorted(path_of(self._index, row[0]) for row in self._run("SELECT ino FROM temp.older"))
        lost = sorted(self._without_inode() + self._drop_lost())
        self._attach_files()
        self._refuse_unexplained_loss()
        self._settle_versions()
        self._count_links()
        return Merged(self._index.number_of_images(), lost, older)

    def state(self) -> State:
        """The newer of the two state rows; the copy's where the other was on a lost page."""
        if self._read is None:
            return self._old
        state = replace(self._read if self._read_wins else self._old)
        for name in ("next_ino", "next_cookie", "next_version_id", "next_token"):
            setattr(state, name, max(getattr(self._read, name), getattr(self._old, name)))
        return state

    def highest(self) -> State:
        """The highest number of each kind that stands in any row, in a state row otherwise empty."""
        [row] = self._run(
            "SELECT max((SELECT max(ino) FROM inode), (SELECT coalesce(max(ino), 0) FROM entry), "
            "  (SELECT coalesce(max(ino), 0) FROM version)),"
            " (SELECT coalesce(max(cookie), 0) FROM entry),"
            " (SELECT coalesce(max(version_id), 0) FROM version),"
            " (SELECT max(coalesce(max(token), 0), coalesce(max(retired_by), 0)) FROM version)"
        )
        return State(row[0], row[1], row[2], row[3], durable_token=0, object_floor=0, clean=False)

    # Loading

    def _load(self, salvage: Salvage | None) -> None:
        for table in ("inode", "version", "entry", "xattr", "displaced"):
            self._run(f"CREATE TEMP TABLE read_{table} AS SELECT * FROM main.{table} LIMIT 0")
        self._run("CREATE TEMP TABLE read_name (parent, name, cookie, PRIMARY KEY (parent, cookie))")
        self._run("CREATE TEMP TABLE read_linked (ino, parent, cookie, PRIMARY KEY (parent, cookie))")
        if salvage is None:
            return
        for pages in filter(None, (salvage.older, salvage.newest)):
            self._load_rows(pages)
        self._run("CREATE INDEX temp.read_inode_ino ON read_inode (ino)")
        self._run("CREATE INDEX temp.read_version_id ON read_version (version_id)")
        self._run("CREATE INDEX temp.read_entry_id ON read_entry (parent, cookie)")
        if salvage.older is not None:
            self._drop_former_names()

    def _load_rows(self, pages: Pages) -> None:
        inserts = {
            table: f"INSERT OR IGNORE INTO read_{table} VALUES ({', '.join('?' * columns)})"
            for table, columns in _COLUMNS.items()
        }
        for of_table, row in rows(pages):
            kind = _table(of_table, row)
            if kind == "state":
                self._note_state(row)
            elif kind is not None:
                self._run(inserts[kind], row)

    def _note_state(self, row: tuple[Any, ...]) -> None:
        """Take the newest state row of this store: of another one no row counts."""
        if row[1] != self._index.store_id:
            return
        state = State(*row[2:])
        if self._read is None or state.durable_token >= self._read.durable_token:
            self._read = state

    def _is_newest(self, from_token: int | None) -> bool:
        if self._read is None or from_token is None:
            return False
        return self._read_wins and self._read.durable_token >= from_token

    def _newest_read_token(self) -> int:
        """The newest change that what was read tells of; that of its rows where its state row is lost."""
        if self._read is not None:
            return self._read.durable_token
        [(token,)] = self._run("SELECT coalesce(max(token), -1) FROM temp.read_version")
        return int(token)

    def _drop_former_names(self) -> None:
        """Drop names that stood on an older content of a page, and that their file has no more."""
        self._run(
            "DELETE FROM temp.read_entry WHERE linked=0 AND EXISTS (SELECT 1 FROM temp.read_inode i"
            " JOIN temp.read_entry home ON home.parent=i.home_parent AND home.cookie=i.home_cookie"
            " WHERE i.ino=read_entry.ino AND home.ino=i.ino"
            " AND (i.home_parent, i.home_cookie) <> (read_entry.parent, read_entry.cookie))"
        )

    # Merging

    def _merge_versions(self) -> None:
        wins = "REPLACE" if self._read_wins else "IGNORE"
        # A key that was destroyed is: the state in which it was there is the older one.
        self._run("CREATE TEMP TABLE deleted AS SELECT version_id FROM version WHERE key IS NULL")
        self._run(f"INSERT OR {wins} INTO version SELECT * FROM temp.read_version ORDER BY retired_by")
        self._run(
            "UPDATE version SET key=NULL WHERE version_id IN (SELECT version_id FROM temp.deleted"
            " UNION SELECT version_id FROM temp.read_version WHERE key IS NULL)"
        )
        self._require_objects()
        # Of each image the newest version that can be opened.
        self._run(
            "CREATE TEMP TABLE newest (ino INTEGER PRIMARY KEY, version_id, size_bytes, stored_size_bytes,"
            " mtime_ns, token)"
        )
        found: dict[int, tuple[Any, ...]] = {}
        usable = []
        for row in self._run(
            "SELECT ino, version_id, size_bytes, stored_size_bytes, mtime_ns, token FROM version "
            "WHERE key IS NOT NULL"
        ):
            if self._is_whole(row[1], row[3]):
                usable.append(row[1])
                if row[0] not in found or found[row[0]][-1] < row[-1]:
                    found[row[0]] = row
        self._run("CREATE TEMP TABLE usable (version_id INTEGER PRIMARY KEY)")
        for version_id in usable:
            self._run("INSERT INTO temp.usable VALUES (?)", (version_id,))
        for row in found.values():
            self._run("INSERT INTO temp.newest VALUES (?,?,?,?,?,?)", row)

    def _require_objects(self) -> None:
        """Without a single object every image would count as gone. They are somewhere else, more likely."""
        [(stored,)] = self._run(
            "SELECT count(*) FROM version WHERE key IS NOT NULL AND stored_size_bytes > 0"
        )
        if stored and not self._objects:
            raise CorruptStore(
                f"the index knows {stored} objects, and the folder of objects has none. Is its disk mounted? "
                "Put the objects back, then repair again. Nothing was changed"
            )

    def _merge_inodes(self) -> None:
        self._run(
            "CREATE TEMP TABLE known AS SELECT ino FROM inode WHERE image_id NOTNULL AND nlink > 0"
            " UNION SELECT ino FROM temp.read_inode WHERE image_id NOTNULL AND nlink > 0"
        )
        self._run("CREATE TEMP TABLE only_copied (ino INTEGER PRIMARY KEY)")
        self._run(
            "INSERT INTO temp.only_copied SELECT ino FROM inode"
            " WHERE ino NOT IN (SELECT ino FROM temp.read_inode)"
        )
        self._run(
            "INSERT OR REPLACE INTO inode SELECT * FROM temp.read_inode r WHERE NOT EXISTS"
            f" (SELECT 1 FROM inode c WHERE c.ino=r.ino AND {self._copy_is_newer()})"
            " ORDER BY version_id, ctime_ns"
        )
        # What is not there falls back to the newest version that is; what only the copy has goes forward.
        self._run("CREATE TEMP TABLE older (ino INTEGER PRIMARY KEY)")
        self._run(
            "INSERT INTO temp.older SELECT inode.ino FROM inode JOIN temp.newest USING (ino)"
            " WHERE image_id IS NOT NULL AND inode.version_id NOT IN (SELECT version_id FROM temp.usable)"
            " AND newest.version_id < inode.version_id"
        )
        self._run(
            "UPDATE inode SET (version_id, size_bytes, stored_size_bytes, mtime_ns) ="
            " (SELECT version_id, size_bytes, stored_size_bytes, mtime_ns FROM temp.newest n"
            "  WHERE n.ino=inode.ino)"
            " WHERE image_id IS NOT NULL AND ino IN (SELECT ino FROM temp.newest) AND"
            " (ino IN (SELECT ino FROM temp.only_copied) OR"
            "  version_id NOT IN (SELECT version_id FROM temp.usable))"
        )

    def _copy_is_newer(self) -> str:
        """The condition that the copy's row `c` of an inode is newer than the row `r` that was read.

        Versions of an image are numbered upward; the clock decides between rows that have the same one.
        """
        if self._certain:
            return "0"
        same = "c.version_id IS r.version_id"
        tie = "c.ctime_ns > r.ctime_ns" if self._read_wins else "c.ctime_ns >= r.ctime_ns"
        return f"(c.version_id > r.version_id OR ({same} AND {tie}))"

    def _merge_entries(self) -> None:
        self._run(
            "CREATE TEMP TABLE merged (parent, cookie, name, ino, linked,"
            " PRIMARY KEY (parent, cookie), UNIQUE (parent, name))"
        )
        self._run("CREATE INDEX temp.merged_ino ON merged (ino)")
        if not self._read_wins:
            self._run("INSERT OR IGNORE INTO temp.merged SELECT * FROM entry")
        self._run("INSERT OR IGNORE INTO temp.merged SELECT * FROM temp.read_entry ORDER BY cookie DESC")
        # An entry whose page is lost, out of its witness and the inode that remembers it.
        self._run("CREATE TEMP TABLE home AS SELECT home_parent, home_cookie, ino FROM inode")
        self._run("CREATE INDEX temp.home_entry ON home (home_parent, home_cookie)")
        for ino, linked in (
            ("SELECT l.ino FROM temp.read_linked l WHERE l.parent=n.parent AND l.cookie=n.cookie", 1),
            ("SELECT e.ino FROM entry e WHERE e.parent=n.parent AND e.cookie=n.cookie AND e.name=n.name", 0),
            ("SELECT max(h.ino) FROM temp.home h WHERE h.home_parent=n.parent AND h.home_cookie=n.cookie", 0),
        ):
            self._run(
                "INSERT OR IGNORE INTO temp.merged SELECT * FROM"
                f" (SELECT parent, cookie, name, ({ino}) AS ino, {linked} FROM temp.read_name n)"
                " WHERE ino IS NOT NULL"
            )
        if not self._certain:
            self._run(
                "INSERT OR IGNORE INTO temp.merged SELECT * FROM entry e WHERE"
                " (SELECT count(*) FROM temp.merged m WHERE m.ino=e.ino) <"
                f" (SELECT iif({IS_DIRECTORY} OR ino IN (SELECT ino FROM temp.only_copied),"
                "   max(1, e.linked * 65536), nlink) FROM inode WHERE inode.ino=e.ino)"
            )
        self._run("DELETE FROM entry")
        self._run(
            "INSERT INTO entry SELECT parent, cookie, name, ino, linked FROM temp.merged"
            " WHERE ino IN (SELECT ino FROM inode)"
            f" AND parent IN (SELECT ino FROM inode WHERE {IS_DIRECTORY})"
        )

    def _merge_the_rest(self) -> None:
        wins = "REPLACE" if self._read_wins else "IGNORE"
        self._run(f"INSERT OR {wins} INTO xattr SELECT * FROM temp.read_xattr")
        if self._read is not None and self._read_wins:
            self._run("DELETE FROM displaced")
        self._run(f"INSERT OR {wins} INTO displaced SELECT * FROM temp.read_displaced")

    # What is left over

    def _drop_deleted(self) -> None:
        """Files, folders and links that only the copy knew and that have no name any more.

        An image whose object is still there is no such: deleting it takes the object along.
        """
        kept = "" if self._certain else " AND NOT (image_id IS NOT NULL AND size_bytes > 0)"
        self._run(
            "DELETE FROM inode WHERE ino IN (SELECT ino FROM temp.only_copied) AND nlink > 0"
            f" AND ino <> {ROOT_INO} AND ino NOT IN (SELECT ino FROM entry)"
            f" AND ino NOT IN (SELECT parent FROM entry){kept}"
        )
        self._run("DELETE FROM inode WHERE nlink = 0 AND ino NOT IN (SELECT old_ino FROM displaced)")

    def _attach_folders(self) -> None:
        """Folders that are nowhere, or in each other, go into the root."""
        while found := self._run(
            "WITH RECURSIVE below(ino) AS "
            f"(SELECT {ROOT_INO} UNION SELECT entry.ino FROM entry JOIN below ON parent=below.ino) "
            f"SELECT ino FROM inode WHERE {IS_DIRECTORY}"
            " AND ino NOT IN (SELECT ino FROM below) "
            # The outermost first: what is in it is then somewhere.
            "ORDER BY ino IN (SELECT ino FROM entry), ino LIMIT 1"
        ):
            [(ino,)] = found
            self._run("DELETE FROM entry WHERE ino=?", (ino,))
            self._add_name(ROOT_INO, b"restored-folder-%d" % ino, ino)

    def _attach_files(self) -> None:
        """Files whose name is lost get one made of their image id."""
        for ino, image_id, image_format in self._run(
            "SELECT inode.ino, image_id, format FROM inode LEFT JOIN version USING (version_id)"
            " WHERE nlink > 0 AND inode.ino <> 1 AND inode.ino NOT IN (SELECT ino FROM entry)"
        ):
            stem = image_id.hex() if image_id else str(ino)
            suffix = f".{extension(image_format)}" if image_format else ""
            self._add_name(ROOT_INO, f"restored-{stem}{suffix}".encode(), ino)

    def _add_name(self, parent: int, name: bytes, ino: int) -> None:
        self._run(
            "INSERT OR IGNORE INTO entry SELECT ?,"
            " max((SELECT coalesce(max(cookie), 0) FROM entry), ?) + 1, ?, ?, 0",
            (parent, self.state().next_cookie, name, ino),
        )

    def _without_inode(self) -> list[str]:
        """Names whose file lay on a lost page and is in no copy."""
        return [
            f"{path_of(self._index, parent)}/{name.decode('utf-8', 'backslashreplace')}"
            if parent != ROOT_INO
            else name.decode("utf-8", "backslashreplace")
            for parent, name in self._run(
                "SELECT parent, name FROM temp.merged WHERE ino NOT IN (SELECT ino FROM inode)"
                " AND ino IN (SELECT ino FROM temp.read_entry)"
            )
        ]

    def _drop_lost(self) -> list[str]:
        """Images that have no version left; returns their paths."""
        found = self._run(
            f"SELECT ino, nlink FROM inode WHERE {IS_FILE}"
            " AND (version_id IS NULL OR version_id NOT IN (SELECT version_id FROM temp.usable))"
        )
        lost = [path_of(self._index, ino) for ino, nlink in found if nlink > 0]
        for ino, _ in found:
            self._run("DELETE FROM entry WHERE ino=?", (ino,))
            self._run("DELETE FROM inode WHERE ino=?", (ino,))
        for ino, _ in found:
            for parent, name, displaced_ino in self._index.displaced_by(ino):
                if self._index.inode(displaced_ino) and self._index.inode(parent):
                    self._add_name(parent, name, displaced_ino)
        return lost

    def _settle_versions(self) -> None:
        """A version that no image names is as good as replaced; one whose image is gone opens no more."""
        self._run("DELETE FROM version WHERE key IS NOT NULL AND ino NOT IN (SELECT ino FROM inode)")
        self._run("CREATE TEMP TABLE current (version_id INTEGER PRIMARY KEY)")
        self._run(
            "INSERT OR IGNORE INTO temp.current SELECT version_id FROM inode WHERE version_id IS NOT NULL"
        )
        self._run(
            "UPDATE version SET retired_by = token"
            " WHERE retired_by IS NULL AND version_id NOT IN (SELECT version_id FROM temp.current)"
        )
        self._run(
            "UPDATE version SET retired_by = NULL"
            " WHERE retired_by IS NOT NULL AND version_id IN (SELECT version_id FROM temp.current)"
        )
        self._run("DELETE FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)")

    def _refuse_unexplained_loss(self) -> None:
        """Stop where an image would go that has a key and a whole object, and nothing proves its deletion."""
        [(dropped,)] = self._run(
            "SELECT count(*) FROM temp.known WHERE ino IN (SELECT ino FROM temp.newest)"
            " AND ino NOT IN (SELECT ino FROM inode)"
        )
        if dropped and not self._certain:
            raise CorruptStore(
                f"{dropped} images would be lost by this repair, though their keys and objects are there. It "
                "stopped, and nothing was changed. Keep the store as it is, and a copy of it, and report this"
            )

    def _count_links(self) -> None:
        self._run("DROP TABLE IF EXISTS temp.names")
        self._run("CREATE TEMP TABLE names (ino INTEGER PRIMARY KEY, number, parent, cookie)")
        self._run("INSERT INTO temp.names SELECT ino, count(*), parent, cookie FROM entry GROUP BY ino")
        self._run("UPDATE entry SET linked=1 WHERE ino IN (SELECT ino FROM temp.names WHERE number > 1)")
        self._run(
            "UPDATE inode SET (nlink, home_parent, home_cookie) ="
            " (SELECT number, parent, cookie FROM temp.names WHERE names.ino=inode.ino)"
            f" WHERE NOT {IS_DIRECTORY} AND ino IN (SELECT ino FROM temp.names)"
        )
        self._run(
            "UPDATE inode SET (home_parent, home_cookie) ="
            " (SELECT parent, cookie FROM temp.names WHERE names.ino=inode.ino), nlink = 2 +"
            "  (SELECT count(*) FROM entry JOIN inode child USING (ino)"
            f"   WHERE parent=inode.ino AND {is_type(stat.S_IFDIR, 'child.mode')})"
            f" WHERE {IS_DIRECTORY}"
        )

    def _is_whole(self, version_id: int, stored_size_bytes: int) -> bool:
        return stored_size_bytes == 0 or self._objects.get(version_id) == sealed_size(stored_size_bytes)


def _table(of_table: bool, row: tuple[Any, ...]) -> str | None:
    """Which table or index a row is of; None for those that are not needed."""
    match of_table, len(row), [type(value) for value in row[:3]]:
        case True, 17, _:
            return "inode"
        case True, 12, _:
            return "version"
        case True, 9, _:
            return "state"
        case True, 5, [_, second, _] if second is int:
            return "displaced"
        case False, 5, _:
            return "entry"
        case False, 3, [_, second, third] if (second, third) == (bytes, bytes):
            return "xattr"
        case False, 3, [_, second, third] if (second, third) == (bytes, int):
            return "name"
        case False, 3, [first, second, third] if first is second is third is int:
            return "linked"
    return None
