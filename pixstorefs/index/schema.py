"""The schema of the index, in prose: read this first.

The index is one SQLite database whose every page is encrypted and authenticated (SQLite3 Multiple Ciphers,
AEGIS-256, raw key), so nothing in it is readable without the master key. Its `application_id` is "PXST",
its `user_version` the format number. All tables are STRICT. Times are integer nanoseconds since 1970 (may
be negative), sizes bytes, numbers that come from `state` are never used twice.

Indexes are few on purpose: a transaction writes every page it touches to the log, and a page costs more than
all the rest of a save (4 to 5 pages for a new file; 9.5 with an index for every question, measured).
"""

import stat

APPLICATION_ID = 0x50585354
FORMAT = 1

SCHEMA = """
-- One row. Numbers are handed out in blocks: a number at or above its `next_` may not have been used yet, a
-- number below it may have been. A clean close writes the exact values.
CREATE TABLE state (
    one              INTEGER PRIMARY KEY CHECK (one = 1),
    store_id         BLOB    NOT NULL,  -- 16 bytes, as in store.json: an index belongs to one store
    next_ino         INTEGER NOT NULL,  -- inode numbers; 1 is the root directory
    next_cookie      INTEGER NOT NULL,  -- directory cookies; 1 and 2 stand for "." and ".."
    next_version_id  INTEGER NOT NULL,  -- version ids, which are object names
    next_token       INTEGER NOT NULL,  -- tokens: one for every save and every delete, strictly increasing
    durable_token    INTEGER NOT NULL,  -- every save up to this token is behind a barrier: on stable storage
    object_floor     INTEGER NOT NULL,  -- every object on disk with a lower id has a row in `version`
    clean            INTEGER NOT NULL   -- 1: closed cleanly; 0: open, or died: recover
) STRICT;

-- One row for every file, directory, symlink and special file.
CREATE TABLE inode (
    ino               INTEGER PRIMARY KEY,  -- stable over remounts, never reused
    mode              INTEGER NOT NULL,     -- st_mode: type and permissions
    uid               INTEGER NOT NULL,
    gid               INTEGER NOT NULL,
    nlink             INTEGER NOT NULL,     -- files: entries that name it; directories: 2 + subdirectories
    size_bytes        INTEGER NOT NULL,     -- files: length; symlinks: length of the target; else 0
    stored_size_bytes INTEGER NOT NULL,     -- payload of the current object (st_blocks), 0 without one
    rdev              INTEGER NOT NULL,     -- device number of device files, else 0
    atime_ns          INTEGER NOT NULL,
    mtime_ns          INTEGER NOT NULL,
    ctime_ns          INTEGER NOT NULL,
    image_id          BLOB,                 -- regular files: 16 bytes, ino (big-endian u64) and 8 random ones
    version_id        INTEGER,              -- regular files: the current version; else NULL
    created_ns        INTEGER NOT NULL,
    target            BLOB,                 -- symlinks: where to; else NULL
    home_parent       INTEGER,              -- with home_cookie: the entry that names this inode; stale once
    home_cookie       INTEGER               -- it got a second name (entry.linked)
) STRICT;

-- One row for every name. The root has none. Clustered by directory, so that a listing reads neighbours.
CREATE TABLE entry (
    parent INTEGER NOT NULL,     -- inode of the directory
    cookie INTEGER NOT NULL,     -- position in readdir; unique in the store; kept while the name stays there
    name   BLOB    NOT NULL,     -- 1 to 255 bytes, any but "/" and NUL
    ino    INTEGER NOT NULL,
    linked INTEGER NOT NULL,     -- 1: a name of an inode that had several, found by entry_of_linked; else 0
    PRIMARY KEY (parent, cookie)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX entry_by_name ON entry (parent, name);
CREATE INDEX entry_of_linked ON entry (ino) WHERE linked = 1;

-- One row for every saved content whose object may still be on disk. `inode.version_id` names the current
-- one; the others are retired: they wait for the barrier after which their object may go.
CREATE TABLE version (
    version_id        INTEGER PRIMARY KEY,
    ino               INTEGER NOT NULL,
    token             INTEGER NOT NULL,  -- of the save that made it
    key               BLOB,              -- 32 bytes; NULL once the image was deleted: the object is noise
    iv                BLOB    NOT NULL,  -- 12 bytes
    tag               BLOB    NOT NULL,  -- of the object's last segment; empty without an object
    size_bytes        INTEGER NOT NULL,
    stored_size_bytes INTEGER NOT NULL,  -- plaintext in the object, padding included; 0: there is no object
    mtime_ns          INTEGER NOT NULL,  -- the image's when it was saved, for falling back to this version
    runs              BLOB    NOT NULL,  -- pairs (first segment, count), big-endian u64: what is stored
    format            TEXT,              -- image format by content, NULL: no image
    retired_by        INTEGER            -- token of the save or delete that replaced it; NULL: current
) STRICT;
CREATE INDEX version_retired ON version (ino, retired_by) WHERE retired_by IS NOT NULL;

-- One row for every name that went from a file to another one whose content may not be durable yet. Until the
-- barrier that makes it so, the file that lost its name keeps inode and key (its nlink may be 0).
CREATE TABLE displaced (
    token   INTEGER PRIMARY KEY,  -- of the change
    parent  INTEGER NOT NULL,     -- the name: directory
    name    BLOB    NOT NULL,
    old_ino INTEGER NOT NULL,     -- who had it
    new_ino INTEGER NOT NULL      -- who has it since
) STRICT;

-- Extended attributes, as setxattr(2) brought them.
CREATE TABLE xattr (
    ino   INTEGER NOT NULL,
    name  BLOB    NOT NULL,
    value BLOB    NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;
"""


def is_type(file_type: int, column: str = "mode") -> str:
    """The SQL condition that an inode is of a type (stat.S_IFDIR, ...)."""
    return f"(({column} & {stat.S_IFMT(0o777777)}) = {file_type})"


IS_DIRECTORY = is_type(stat.S_IFDIR)
IS_FILE = is_type(stat.S_IFREG)
IS_SYMLINK = is_type(stat.S_IFLNK)
