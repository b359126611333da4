"""The index: names, attributes, versions and keys as rows. Every change of a row goes through its methods."""

import os
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import apsw

from pixstorefs.errors import CorruptImage, CorruptStore, NewerFormat
from pixstorefs.index.database import Database, connect, translated
from pixstorefs.index.schema import APPLICATION_ID, FORMAT, SCHEMA
from pixstorefs.records import Entry, Inode, Runs, Version

ROOT_INO = 1
FIRST_COOKIE = 3

_INODE = (
    "ino, mode, uid, gid, nlink, size_bytes, stored_size_bytes, rdev, "
    "atime_ns, mtime_ns, ctime_ns, image_id, version_id"
)
_INODE_OF = ", ".join(f"inode.{column}" for column in _INODE.split(", "))
_VERSION = (
    "version_id, ino, token, key, iv, tag, size_bytes, stored_size_bytes, mtime_ns, runs, format, retired_by"
)
_RUN = struct.Struct(">QQ")


@dataclass(slots=True)
class State:
    """The row `state`: see schema."""

    next_ino: int
    next_cookie: int
    next_version_id: int
    next_token: int
    durable_token: int
    object_floor: int
    clean: bool


class Index(Database):
    """One open index. Not thread-safe: the store's lock is held around every call but `sync_log`."""

    def __init__(
        self, path: str, key: bytes, store_id: bytes, *, read_only: bool = False, copy_of: str | None = None
    ) -> None:
        """Open an existing index. `copy_of`: as `connect` takes it.

        Raises CorruptStore (damaged, or of another store), NewerFormat, OSError.
        """
        super().__init__(path, key, read_only=read_only, copy_of=copy_of)
        self.store_id = store_id
        try:
            with translated(self.path):
                self._verify(store_id)
                # Most stores have none, and the kernel asks for several of every file that is made or listed.
                self.has_xattrs = self.one("SELECT 1 FROM xattr LIMIT 1") is not None
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(path: str, key: bytes, store_id: bytes, root: Inode) -> None:
        """Make a new index holding the root directory only, synced."""
        # SQLite would make it readable for all, and gives its log the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        db = connect(path, key, new=True)
        with closing(db), translated(path, db):
            db.execute("PRAGMA synchronous=FULL").fetchall()
            with db:
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={FORMAT}")
                db.execute(SCHEMA)
                state = (1, store_id, ROOT_INO + 1, FIRST_COOKIE, 1, 1, 0, 1, 1)
                db.execute("INSERT INTO state VALUES (?,?,?,?,?,?,?,?,?)", state)
                _insert_inode(db.execute, root, root.ctime_ns, None)
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    # Numbers and the state row

    def state(self) -> State:
        """The state row as it is on disk."""
        row = self.one(
            "SELECT next_ino, next_cookie, next_version_id, next_token, durable_token, object_floor, clean "
            "FROM state"
        )
        if row is None:
            raise CorruptStore(f"{self.path} has no state row")
        state = State(*row)
        state.clean = bool(state.clean)
        return state

    def put_state(self, state: State) -> None:
        """Replace the state row (inside a transaction)."""
        self.execute(
            "UPDATE state SET next_ino=?, next_cookie=?, next_version_id=?, next_token=?, durable_token=?, "
            "object_floor=?, clean=?",
            (
                state.next_ino,
                state.next_cookie,
                state.next_version_id,
                state.next_token,
                state.durable_token,
                state.object_floor,
                int(state.clean),
            ),
        )

    # Inodes

    def inode(self, ino: int) -> Inode | None:
        """The inode with this number."""
        row = self.one(f"SELECT {_INODE} FROM inode WHERE ino=?", ino)
        return Inode(*row) if row else None

    def created_ns(self, ino: int) -> int:
        """When the inode was made."""
        row = self.one("SELECT created_ns FROM inode WHERE ino=?", ino)
        return int(row[0]) if row else 0

    def link_target(self, ino: int) -> bytes | None:
        """Where a symlink points, None for everything else."""
        row = self.one("SELECT target FROM inode WHERE ino=?", ino)
        return row[0] if row else None

    def insert_inode(self, inode: Inode, created_ns: int, target: bytes | None = None) -> None:
        """Add an inode."""
        _insert_inode(self.execute, inode, created_ns, target)

    def update_inode(self, inode: Inode) -> None:
        """Replace all columns of an inode that can change."""
        self.execute(
            "UPDATE inode SET mode=?, uid=?, gid=?, nlink=?, size_bytes=?, stored_size_bytes=?, "
            "atime_ns=?, mtime_ns=?, ctime_ns=?, version_id=? WHERE ino=?",
            (
                inode.mode,
                inode.uid,
                inode.gid,
                inode.nlink,
                inode.size_bytes,
                inode.stored_size_bytes,
                inode.atime_ns,
                inode.mtime_ns,
                inode.ctime_ns,
                inode.version_id,
                inode.ino,
            ),
        )

    def touch_directory(self, ino: int, now_ns: int, links: int = 0) -> None:
        """Entries of a directory changed: its mtime and ctime, and its link count by `links`."""
        self.execute(
            "UPDATE inode SET mtime_ns=?, ctime_ns=?, nlink=nlink+? WHERE ino=?", (now_ns, now_ns, links, ino)
        )

    def touch_inode(self, ino: int, now_ns: int) -> None:
        """Set the ctime of an inode."""
        self.execute("UPDATE inode SET ctime_ns=? WHERE ino=?", (now_ns, ino))

    def delete_inode(self, ino: int) -> None:
        """Remove an inode and its extended attributes."""
        self.execute("DELETE FROM inode WHERE ino=?", (ino,))
        if self.has_xattrs:
            self.execute("DELETE FROM xattr WHERE ino=?", (ino,))

    # Entries

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode that `name` in directory `parent` names."""
        row = self.one(
            f"SELECT {_INODE_OF} FROM entry JOIN inode USING (ino) WHERE parent=? AND name=?", parent, name
        )
        return Inode(*row) if row else None

    def entry(self, parent: int, name: bytes) -> tuple[Entry, int] | None:
        """The entry itself and the inode number it names."""
        row = self.one("SELECT cookie, ino, linked FROM entry WHERE parent=? AND name=?", parent, name)
        return (Entry(row[0], parent, name, bool(row[2])), row[1]) if row else None

    def named(self, parent: int, name: bytes) -> tuple[Entry, Inode] | None:
        """Both at once: an entry and its inode."""
        row = self.one(
            f"SELECT cookie, linked, {_INODE_OF} FROM entry JOIN inode USING (ino) WHERE parent=? AND name=?",
            parent,
            name,
        )
        return (Entry(row[0], parent, name, bool(row[1])), Inode(*row[2:])) if row else None

    def entries(self, parent: int, after_cookie: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Up to `limit` entries behind `after_cookie`, in cookie order: (cookie, name, inode)."""
        rows = self.execute(
            f"SELECT cookie, name, {_INODE_OF} FROM entry CROSS JOIN inode USING (ino) "
            "WHERE parent=? AND cookie>? ORDER BY cookie LIMIT ?",
            (parent, after_cookie, limit),
        )
        return [(row[0], row[1], Inode(*row[2:])) for row in rows]

    def names(self, ino: int) -> list[Entry]:
        """All entries that name an inode."""
        rows = self.execute(
            "SELECT cookie, parent, name, linked FROM entry WHERE ino=?1 AND linked=1 UNION ALL "
            "SELECT cookie, parent, name, linked FROM entry WHERE ino=?1 AND linked=0 AND (parent, cookie)="
            "(SELECT home_parent, home_cookie FROM inode WHERE ino=?1)",
            (ino,),
        )
        return [Entry(cookie, parent, name, bool(linked)) for cookie, parent, name, linked in rows]

    def insert_entry(self, entry: Entry, ino: int) -> None:
        """Add a name."""
        self.execute(
            "INSERT INTO entry (parent, cookie, name, ino, linked) VALUES (?,?,?,?,?)",
            (entry.parent, entry.cookie, entry.name, ino, int(entry.linked)),
        )
        if not entry.linked:
            self._set_home(entry, ino)

    def move_entry(self, old: Entry, new: Entry, ino: int) -> None:
        """Give a name another place, another directory or another spelling. The new one must be free."""
        self.execute(
            "UPDATE entry SET parent=?, cookie=?, name=? WHERE parent=? AND cookie=?",
            (new.parent, new.cookie, new.name, old.parent, old.cookie),
        )
        if not new.linked and (new.parent, new.cookie) != (old.parent, old.cookie):
            self._set_home(new, ino)

    def _set_home(self, entry: Entry, ino: int) -> None:
        self.execute(
            "UPDATE inode SET home_parent=?, home_cookie=? WHERE ino=?", (entry.parent, entry.cookie, ino)
        )

    def mark_linked(self, ino: int) -> None:
        """The inode gets a second name: from now on its names are found by the index of linked ones."""
        self.execute(
            "UPDATE entry SET linked=1 WHERE (parent, cookie)="
            "(SELECT home_parent, home_cookie FROM inode WHERE ino=?1) AND ino=?1",
            (ino,),
        )

    def delete_entry(self, parent: int, name: bytes) -> None:
        """Remove a name."""
        self.execute("DELETE FROM entry WHERE parent=? AND name=?", (parent, name))

    # Versions

    def version(self, version_id: int) -> Version | None:
        """A version that can be opened: its key is there and was not destroyed."""
        row = self.one(
            f"SELECT {_VERSION} FROM version WHERE version_id=? AND length(key)=32 AND length(iv)=12",
            version_id,
        )
        return _version(row) if row else None

    def insert_version(self, version: Version) -> None:
        """Add a version."""
        self.execute(
            f"INSERT INTO version ({_VERSION}) VALUES (?,?,?,?,?,?,?,?,?,?,?,NULL)",
            (
                version.version_id,
                version.ino,
                version.token,
                version.key,
                version.iv,
                version.tag,
                version.size_bytes,
                version.stored_size_bytes,
                version.mtime_ns,
                b"".join(_RUN.pack(*run) for run in version.runs),
                version.format,
            ),
        )

    def retire_version(self, version_id: int, token: int) -> None:
        """A save replaced this version: its key stays until the next barrier, to fall back to."""
        self.execute("UPDATE version SET retired_by=? WHERE version_id=?", (token, version_id))

    def destroy_version(self, version_id: int, token: int) -> None:
        """The image was deleted: the key of its version goes now, the object at the next barrier."""
        self.execute("UPDATE version SET key=NULL, retired_by=? WHERE version_id=?", (token, version_id))

    def destroy_retired(self, ino: int) -> None:
        """The same for the versions of an image that were retired since the last barrier."""
        self.execute("UPDATE version SET key=NULL WHERE retired_by IS NOT NULL AND ino=?", (ino,))

    def retired(self, up_to_token: int) -> list[int]:
        """Ids of versions that were retired by a token not above `up_to_token`."""
        rows = self.execute(
            "SELECT version_id FROM version INDEXED BY version_retired WHERE retired_by<=?", (up_to_token,)
        )
        return [row[0] for row in rows]

    def forget_retired(self, up_to_token: int) -> None:
        """Their objects are gone: so are the rows."""
        self.execute("DELETE FROM version INDEXED BY version_retired WHERE retired_by<=?", (up_to_token,))

    def saved_after(self, token: int, object_floor: int) -> list[Version]:
        """Current versions saved after the barrier that recorded `token` and `object_floor`, newest first.

        A version saved later was not saved then, so its id is not below the floor: no index by token needed.
        """
        rows = self.execute(
            f"SELECT {_VERSION} FROM version WHERE version_id>=? AND token>? AND retired_by IS NULL "
            "ORDER BY token DESC",
            (object_floor, token),
        )
        return [_version(row) for row in rows]

    def fallbacks(self, ino: int) -> list[Version]:
        """Retired versions of an image that can still be opened, newest first."""
        rows = self.execute(
            f"SELECT {_VERSION} FROM version WHERE retired_by IS NOT NULL AND ino=? AND key IS NOT NULL "
            "ORDER BY token DESC",
            (ino,),
        )
        return [_version(row) for row in rows]

    def reinstate_version(self, version: Version, inode: Inode) -> None:
        """A version that was retired, or lost its place, is the current one of an image."""
        self.execute("UPDATE version SET retired_by=NULL WHERE version_id=?", (version.version_id,))
        inode.version_id = version.version_id
        inode.size_bytes = version.size_bytes
        inode.stored_size_bytes = version.stored_size_bytes
        inode.mtime_ns = version.mtime_ns
        self.update_inode(inode)

    def known_objects(self, from_version_id: int) -> set[int]:
        """Ids of versions, retired ones too, that are not below `from_version_id`."""
        return {
            row[0]
            for row in self.execute("SELECT version_id FROM version WHERE version_id>=?", (from_version_id,))
        }

    def number_of_images(self) -> int:
        """How many images have a name. Looks at every inode."""
        row = self.one("SELECT count(*) FROM inode WHERE image_id IS NOT NULL AND nlink > 0")
        return int(row[0]) if row else 0

    # Displaced images

    def insert_displaced(self, token: int, parent: int, name: bytes, old_ino: int, new_ino: int) -> None:
        """A name went from one file to another."""
        self.execute("INSERT INTO displaced VALUES (?,?,?,?,?)", (token, parent, name, old_ino, new_ino))

    def displaced(self, up_to_token: int) -> list[tuple[int, int]]:
        """Files that lost a name until `up_to_token`: (token, inode number)."""
        rows = self.execute("SELECT token, old_ino FROM displaced WHERE token<=?", (up_to_token,))
        return [(row[0], row[1]) for row in rows]

    def displaced_by(self, new_ino: int) -> list[tuple[int, bytes, int]]:
        """Names a file took from others, the newest first: (directory, name, inode number of the other)."""
        rows = self.execute(
            "SELECT parent, name, old_ino FROM displaced WHERE new_ino=? ORDER BY token DESC", (new_ino,)
        )
        return [(row[0], row[1], row[2]) for row in rows]

    def forget_displaced(self, up_to_token: int) -> None:
        """They are settled."""
        self.execute("DELETE FROM displaced WHERE token<=?", (up_to_token,))

    # Extended attributes

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """The value of one extended attribute."""
        if not self.has_xattrs:
            return None
        row = self.one("SELECT value FROM xattr WHERE ino=? AND name=?", ino, name)
        return row[0] if row else None

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """All extended attributes of an inode."""
        if not self.has_xattrs:
            return {}
        return dict(self.execute("SELECT name, value FROM xattr WHERE ino=?", (ino,)))

    def xattr_names(self, ino: int) -> list[bytes]:
        """Names of all extended attributes of an inode."""
        return [row[0] for row in self.execute("SELECT name FROM xattr WHERE ino=?", (ino,))]

    def put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set one extended attribute."""
        self.has_xattrs = True
        self.execute("INSERT OR REPLACE INTO xattr VALUES (?,?,?)", (ino, name, value))

    def delete_xattr(self, ino: int, name: bytes) -> None:
        """Remove one extended attribute."""
        self.execute("DELETE FROM xattr WHERE ino=? AND name=?", (ino, name))

    def _verify(self, store_id: bytes) -> None:
        application_id = self.pragma("application_id")
        version = self.pragma("user_version")
        if application_id != APPLICATION_ID:
            raise CorruptStore(f"{self.path} is not an index of pixstorefs")
        if not isinstance(version, int) or version > FORMAT:
            raise NewerFormat(
                f"{self.path} has format {version}, this pixstorefs knows {FORMAT}: install a newer one"
            )
        # The page each table begins with, at the cost of one read: wider checks would grow with the store.
        for table in ("inode", "entry", "version", "displaced", "xattr"):
            self.one(f"SELECT * FROM {table} LIMIT 1")
        row = self.one("SELECT store_id FROM state")
        if row is None or row[0] != store_id:
            raise CorruptStore(f"{self.path} belongs to another store: put the right index.db back")


def _insert_inode(
    execute: Callable[..., object], inode: Inode, created_ns: int, target: bytes | None
) -> None:
    execute(
        f"INSERT INTO inode ({_INODE}, created_ns, target) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            inode.ino,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.size_bytes,
            inode.stored_size_bytes,
            inode.rdev,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            inode.image_id,
            inode.version_id,
            created_ns,
            target,
        ),
    )


def _version(row: tuple[Any, ...]) -> Version:
    columns = list(row)
    columns[9] = unpacked_runs(columns[9])
    return Version(*columns[:-1])


def unpacked_runs(packed: bytes) -> Runs:
    """The runs of a version from how its row has them. Raises CorruptImage."""
    if len(packed) % _RUN.size:
        raise CorruptImage("the index has lost what is stored of an image: restore it from a backup")
    return tuple((first, count) for first, count in _RUN.iter_unpack(packed))
