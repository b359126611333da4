"""A digest of what an index tells: the same for two indexes with the same rows, however their pages differ.

A mount writes `state` anew even where nothing is changed, and every page it writes gets another nonce. So the
bytes of the file do not tell whether somebody changed the tree; the rows do, without `state`.
"""

import hashlib

from pixstorefs.index.rows import Index

_ORDERED = (
    "inode ORDER BY ino",
    "entry ORDER BY parent, cookie",
    "version ORDER BY version_id",
    "displaced ORDER BY token",
    "xattr ORDER BY ino, name",
)


def digest_of(index: Index, key: bytes) -> str:
    """The digest, 64 hex digits. Keyed, for it is kept in the clear. Raises CorruptStore."""
    digest = hashlib.blake2b(key=key, digest_size=32, person=b"index digest")
    for table in _ORDERED:
        for row in index.each(f"SELECT * FROM {table}"):
            digest.update(repr(row).encode())
    return digest.hexdigest()
