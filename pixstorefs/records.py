"""The records that travel between the index, the store and the file system: plain data, no behaviour."""

from dataclasses import dataclass

# (first segment, number of segments): ascending, not touching each other.
Runs = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Inode:
    """One inode: what stat(2) tells, and where its content is.

    For a regular file `image_id` is its stable 16-byte id and `version_id` its current version; both are
    None for everything else. `stored_size_bytes` is what the object holds (for st_blocks).
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    stored_size_bytes: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    image_id: bytes | None = None
    version_id: int | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """One saved content of an image, as the index keeps it."""

    version_id: int
    ino: int
    token: int
    key: bytes
    iv: bytes
    tag: bytes
    size_bytes: int
    stored_size_bytes: int
    mtime_ns: int
    runs: Runs
    format: str | None

    def __repr__(self) -> str:
        return f"Version(version_id={self.version_id}, ino={self.ino}, token={self.token})"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory. `cookie` orders the directory and never changes while the entry exists.

    `linked`: the inode has, or had, more names than this one.
    """

    cookie: int
    parent: int
    name: bytes
    linked: bool = False


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What the Python API tells of an image: times in nanoseconds since 1970, its path inside the mount."""

    id: str
    token: int
    format: str | None
    width: int | None
    height: int | None
    size_bytes: int
    created_ns: int
    modified_ns: int
    path: str
