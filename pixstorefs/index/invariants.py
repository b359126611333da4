"""What must hold between the rows of an index, one function for each: it returns the rows that break it.

Every function is one statement, so that it sees one moment of an index in use; `schema` tells what the
columns mean. `integrity_problems` is SQLite's own part: it opens, and so authenticates, every page.
"""

from collections.abc import Callable

from pixstorefs.format import IV_SIZE_BYTES, KEY_SIZE_BYTES
from pixstorefs.index.findings import Reaction, Violation
from pixstorefs.index.rows import FIRST_COOKIE, ROOT_INO, Index
from pixstorefs.index.schema import IS_DIRECTORY, IS_FILE, IS_SYMLINK

TABLES = ("state", "inode", "entry", "version", "displaced", "xattr")


def integrity_problems(index: Index) -> list[str]:
    """What SQLite finds wrong with its own structures; raises CorruptStore where a page does not open.

    A table at a time, for a long read would keep the log of a mounted store from being emptied.
    """
    found: list[str] = []
    for table in TABLES:
        found += [str(row[0]) for row in index.execute(f"PRAGMA integrity_check({table})")]
    return [line for line in found if line != "ok"]


def root_directory(index: Index) -> list[Violation]:
    """Inode 1 is a directory and has no name."""
    if index.one(f"SELECT 1 FROM inode WHERE ino={ROOT_INO} AND {IS_DIRECTORY}") is None:
        return [Violation("no-root", "the root directory is missing", ROOT_INO)]
    rows = index.execute(f"SELECT parent, name FROM entry WHERE ino={ROOT_INO}")
    return [Violation("named-root", "a name stands for the root directory", ROOT_INO, *row) for row in rows]


def entries_name_inodes(index: Index) -> list[Violation]:
    """Every entry names an inode."""
    rows = index.execute(
        "SELECT entry.ino, parent, name FROM entry LEFT JOIN inode USING (ino) WHERE inode.ino IS NULL"
    )
    return [Violation("name-without-file", "the file of this name is lost", *row) for row in rows]


def entries_lie_in_directories(index: Index) -> list[Violation]:
    """The parent of every entry is a directory."""
    rows = index.execute(
        "SELECT entry.ino, entry.parent, name FROM entry LEFT JOIN inode ON inode.ino=entry.parent "
        f"WHERE inode.ino IS NULL OR NOT {IS_DIRECTORY}"
    )
    return [Violation("name-without-directory", "the directory of this name is lost", *row) for row in rows]


def names_are_valid(index: Index) -> list[Violation]:
    """Names have 1 to 255 bytes, no "/" and no NUL, and are neither "." nor ".."."""
    rows = index.execute(
        "SELECT ino, parent, name FROM entry WHERE length(name) NOT BETWEEN 1 AND 255 "
        "OR instr(name, x'2f') OR instr(name, x'00') OR name IN (x'2e', x'2e2e')"
    )
    return [Violation("bad-name", "no program can use this name", *row) for row in rows]


def files_have_names(index: Index) -> list[Violation]:
    """Every inode but the root has a name; a displaced image need not."""
    rows = index.execute(
        f"SELECT ino FROM inode WHERE ino<>{ROOT_INO} AND ino NOT IN (SELECT ino FROM entry) "
        "AND NOT (nlink=0 AND ino IN (SELECT old_ino FROM displaced))"
    )
    return [Violation("file-without-name", "the file has no name any more", row[0]) for row in rows]


def directories_have_one_name(index: Index) -> list[Violation]:
    """A directory is in one place only: its further names are returned."""
    rows = index.execute(
        "SELECT ino, parent, name FROM (SELECT entry.*, row_number() OVER "
        "(PARTITION BY ino ORDER BY (parent, cookie) = (home_parent, home_cookie) DESC, cookie) AS nth "
        f"FROM entry JOIN inode USING (ino) WHERE {IS_DIRECTORY}) WHERE nth > 1"
    )
    return [Violation("directory-named-twice", "it has another name already", *row) for row in rows]


def tree_has_no_cycles(index: Index) -> list[Violation]:
    """Every directory is reached from the root, or from one without a name, which is told elsewhere."""
    rows = index.execute(
        f"WITH RECURSIVE directory(ino) AS (SELECT ino FROM inode WHERE {IS_DIRECTORY}), "
        f"reached(ino) AS (SELECT {ROOT_INO} "
        "UNION SELECT ino FROM directory WHERE ino NOT IN (SELECT ino FROM entry) "
        "UNION SELECT entry.ino FROM reached JOIN entry ON parent=reached.ino "
        "JOIN directory ON directory.ino=entry.ino) "
        "SELECT ino FROM directory WHERE ino NOT IN (SELECT ino FROM reached) "
        # Below a parent that is no directory: told as such.
        "AND ino NOT IN (SELECT ino FROM entry WHERE parent NOT IN (SELECT ino FROM directory)) ORDER BY ino"
    )
    return [Violation("unreachable", "the directory is inside itself", row[0]) for row in rows]


def link_counts_are_right(index: Index) -> list[Violation]:
    """`nlink` of a file is how many names it has, of a directory 2 and its subdirectories."""
    rows = index.execute(
        f"WITH names(ino, n) AS (SELECT ino, count(*) FROM entry GROUP BY ino), "
        "subdirectories(ino, n) AS (SELECT parent, count(*) FROM entry JOIN inode USING (ino) "
        f"WHERE {IS_DIRECTORY} GROUP BY parent) "
        "SELECT ino, nlink, expected FROM (SELECT inode.ino, nlink, CASE "
        f"WHEN {IS_DIRECTORY} THEN 2 + ifnull(subdirectories.n, 0) ELSE names.n END AS expected FROM inode "
        "LEFT JOIN names USING (ino) LEFT JOIN subdirectories ON subdirectories.ino=inode.ino) "
        "WHERE nlink<>expected"
    )
    return [
        Violation("wrong-link-count", f"its link count is {nlink} instead of {expected}", ino)
        for ino, nlink, expected in rows
    ]


def names_can_be_found(index: Index) -> list[Violation]:
    """Every entry is found from its inode: as its home, or by the index of linked ones."""
    rows = index.execute(
        "SELECT entry.ino, parent, name FROM entry JOIN inode USING (ino) "
        "WHERE linked=0 AND (home_parent, home_cookie) IS NOT (parent, cookie)"
    )
    return [Violation("lost-home", "the file does not know this name of its own", *row) for row in rows]


def types_are_consistent(index: Index) -> list[Violation]:
    """Image ids and versions belong to regular files, targets to symlinks."""
    rows = index.execute(
        f"SELECT ino FROM inode WHERE {IS_FILE} <> (image_id IS NOT NULL) "
        f"OR (version_id IS NOT NULL AND NOT {IS_FILE}) OR {IS_SYMLINK} <> (target IS NOT NULL) "
        "OR (target IS NOT NULL AND size_bytes<>length(target)) OR size_bytes<0"
    )
    return [Violation("wrong-type", "what kind of file it is contradicts itself", row[0]) for row in rows]


def image_ids_are_right(index: Index) -> list[Violation]:
    """An image id has 16 bytes, the first 8 of them the inode's number."""
    rows = index.execute(
        "SELECT ino FROM inode WHERE image_id IS NOT NULL AND (length(image_id)<>16 "
        "OR hex(substr(image_id, 1, 8)) <> printf('%016X', ino))"
    )
    what = "its image id is another one's, so its content cannot be opened"
    return [Violation("wrong-image-id", what, row[0], reaction=Reaction.RESTORE) for row in rows]


def images_have_content(index: Index) -> list[Violation]:
    """Every image has a current version of its own, with a key."""
    rows = index.execute(
        "SELECT inode.ino, inode.version_id FROM inode LEFT JOIN version USING (version_id) "
        f"WHERE {IS_FILE} AND nlink>0 AND (version.ino IS NOT inode.ino OR version.key IS NULL)"
    )
    return [
        Violation(
            "no-key", "the key of its content is lost", ino, version_id=version_id, reaction=Reaction.RESTORE
        )
        for ino, version_id in rows
    ]


def sizes_agree(index: Index) -> list[Violation]:
    """Inode and current version have the same sizes."""
    rows = index.execute(
        "SELECT inode.ino, version_id FROM inode JOIN version USING (version_id) "
        "WHERE version.ino=inode.ino AND (inode.size_bytes, inode.stored_size_bytes) "
        "<> (version.size_bytes, version.stored_size_bytes)"
    )
    return [
        Violation("wrong-size", "its size is not that of its content", ino, version_id=version_id)
        for ino, version_id in rows
    ]


def current_versions_are_kept(index: Index) -> list[Violation]:
    """What an inode names is not retired: the next barrier would unlink its object."""
    rows = index.execute(
        "SELECT inode.ino, version_id FROM inode JOIN version USING (version_id) "
        "WHERE retired_by IS NOT NULL AND version.ino=inode.ino AND key IS NOT NULL"
    )
    return [
        Violation("current-retired", "its content is marked as replaced", ino, version_id=version_id)
        for ino, version_id in rows
    ]


def versions_are_known(index: Index) -> list[Violation]:
    """A version that is not retired is the current one of its inode: so no image has two, no stranger any."""
    rows = index.execute(
        "SELECT version.ino, version.version_id FROM version LEFT JOIN inode USING (ino) "
        "WHERE retired_by IS NULL AND version.version_id IS NOT inode.version_id"
    )
    return [
        Violation("stray-version", "a version is current that no image has", ino, version_id=version_id)
        for ino, version_id in rows
    ]


def versions_are_well_formed(index: Index) -> list[Violation]:
    """Keys, IVs and tags have their length; versions are retired after they were made."""
    rows = index.execute(
        f"SELECT ino, version_id, retired_by IS NULL FROM version WHERE length(key)<>{KEY_SIZE_BYTES} "
        f"OR length(iv)<>{IV_SIZE_BYTES} OR length(tag)<>CASE stored_size_bytes WHEN 0 THEN 0 ELSE 16 END "
        "OR retired_by<token OR (key IS NULL AND retired_by IS NULL) OR size_bytes<0 "
        "OR stored_size_bytes<0 OR length(runs)%16<>0 OR (runs=x'')<>(stored_size_bytes=0)"
    )
    what = "what is known of its content contradicts itself, so it cannot be opened"
    return [
        Violation(
            "bad-version",
            what,
            ino,
            version_id=version_id,
            reaction=Reaction.RESTORE if current else Reaction.MEND,
        )
        for ino, version_id, current in rows
    ]


def displaced_are_recent(index: Index) -> list[Violation]:
    """After a clean stop nothing is displaced any more."""
    rows = index.execute("SELECT old_ino FROM displaced JOIN state WHERE clean=1")
    return [Violation("displaced", "it was replaced, and that was never finished", row[0]) for row in rows]


def numbers_are_unused(index: Index) -> list[Violation]:
    """No number at or above its bound in `state` was used, and what the last barrier noted was."""
    rows = index.execute(
        "SELECT 'inode number', next_ino, (SELECT max(ino) FROM inode) AS used FROM state "
        "WHERE used>=next_ino "
        "UNION ALL SELECT 'cookie', next_cookie, (SELECT max(cookie) FROM entry) AS used FROM state "
        f"WHERE used>=next_cookie OR next_cookie<{FIRST_COOKIE} "
        "UNION ALL SELECT 'version id', next_version_id, "
        "max(ifnull((SELECT max(version_id) FROM version), 0), object_floor - 1) AS used "
        "FROM state WHERE used>=next_version_id "
        "UNION ALL SELECT 'token', next_token, max(ifnull((SELECT max(token) FROM version), 0), "
        "ifnull((SELECT max(retired_by) FROM version), 0), ifnull((SELECT max(token) FROM displaced), 0), "
        "durable_token) AS used FROM state WHERE used>=next_token"
    )
    return [
        Violation("used-number", f"the next {what} would be {bound}, and {used} is used already")
        for what, bound, used in rows
    ]


def xattrs_belong_to_inodes(index: Index) -> list[Violation]:
    """Every extended attribute is of an inode that there is."""
    rows = index.execute("SELECT DISTINCT ino FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)")
    return [Violation("stray-xattr", "attributes are left of a file that is gone", row[0]) for row in rows]


INVARIANTS: tuple[Callable[[Index], list[Violation]], ...] = (
    root_directory,
    entries_name_inodes,
    entries_lie_in_directories,
    names_are_valid,
    files_have_names,
    directories_have_one_name,
    tree_has_no_cycles,
    link_counts_are_right,
    names_can_be_found,
    types_are_consistent,
    image_ids_are_right,
    images_have_content,
    sizes_agree,
    current_versions_are_kept,
    versions_are_known,
    versions_are_well_formed,
    displaced_are_recent,
    numbers_are_unused,
    xattrs_belong_to_inodes,
)
