"""A folder of a store, held by its descriptor: what lies below is reached through it, never by path again.

So a store that is renamed, or whose disk is unmounted and replaced by another one, stays the store that was
opened. And whoever can write to the store leads nobody out of it: no symbolic link is followed, openat2(2)
refuses to leave the folder, and what is neither a file nor a folder is opened without waiting and refused.
Checking a path before it is used was rejected: between the two somebody can put a link there.
"""

import contextlib
import ctypes
import errno
import functools
import os
import shlex
import stat
import struct

from pixstorefs.disk.files import write_fully
from pixstorefs.errors import CorruptStore

# openat2(2) has this number on every architecture; struct open_how is flags, mode, resolve.
_SYS_OPENAT2 = 437
_HOW = struct.Struct("=QQQ")
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
# A kernel before 5.6, and a sandbox (seccomp) that does not know the call.
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM)

# What open(2) answers where a link, a socket, a folder or a device lies in the place of a file or folder.
_ODD = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR, errno.ENOTDIR, errno.EXDEV)
_ALWAYS = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_libc.syscall.restype = ctypes.c_long


class OddFile(CorruptStore):
    """A link, a pipe, a folder or the like lies where the store keeps a file: it was left untouched."""


class Folder:
    """One folder, open until `close`, or until nobody refers to it any more. `path` is for messages.

    Names are relative, and may lie in folders below: `objects/0/17`. Every method raises OSError as the
    calls it is named for, and OddFile if something else lies in the place of a file or folder.
    """

    def __init__(self, fd: int, path: str) -> None:
        """Take over a descriptor."""
        self.fd = fd
        self.path = path

    @classmethod
    def at(cls, path: str) -> "Folder":
        """Open a folder by a path, which people give and which may lead through links. Raises OSError."""
        return cls(os.open(path, _FOLDER), path)

    def close(self) -> None:
        """Give the descriptor back. The second time: nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def reachable_path(self) -> str | None:
        """A path that leads here at this moment, None if there is none: its disk was unmounted lazily.

        For SQLite, which takes no descriptor. What lies at `path` may be another folder by now.
        """
        own = os.fstat(self.fd)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), own):
                return self.path
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{self.fd}")
            if os.path.samestat(os.stat(path), own):
                return path
        return None

    # Files

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        """Open a regular file; returns its descriptor and what fstat(2) tells. With O_CREAT its mode is 0600.

        Never waits: a pipe is opened without its other end, and refused.
        """
        try:
            fd = self._open(name, flags, "file")
        except BlockingIOError:
            fd = self._open_leased(name, flags)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise self.odd(name, "file", status)
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def open_own(self, name: str, flags: int) -> int:
        """Open a regular file that is written in place; refuse one that is somebody else's, too.

        A second name of it may lie anywhere. The owner of the folder counts as we do, if root opens a store.
        """
        fd, status = self.open_file(name, flags)
        try:
            self._refuse_foreign(name, status)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def require_own(self, name: str) -> None:
        """Refuse what `open_own` would, if there is anything, without opening it.

        For files of SQLite: closing a second descriptor of one takes its locks away (fcntl(2)).
        """
        status = self.status(name)
        if status is not None:
            if not stat.S_ISREG(status.st_mode):
                raise self.odd(name, "file", status)
            self._refuse_foreign(name, status)

    def _refuse_foreign(self, name: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            why = "has another name elsewhere"
        elif status.st_uid not in (os.geteuid(), os.fstat(self.fd).st_uid):
            why = "belongs to another user"
        else:
            return
        place = shlex.quote(self._place(name))
        raise OddFile(
            f"{self._place(name)} {why}, and writing to it would change what is not the store's. Nothing was "
            f"changed. Make it a file of its own: cp {place} {place}.own && mv {place}.own {place}"
        )

    def create(self, name: str) -> int:
        """A new, empty file; its descriptor, for reading and writing. Raises FileExistsError."""
        return self._open(name, _CREATE, "file")

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The front of a file."""
        fd, _ = self.open_file(name)
        with open(fd, "rb", buffering=0) as file:
            return file.read(limit_bytes) or b""

    def replace(self, name: str, content: bytes, *, temporary: str | None = None) -> None:
        """Replace a small file durably: a crash leaves the old content or the new. Mode 0600.

        Temporary file (`<name>.new` unless told otherwise), fsync, rename, fsync of the folder. The temporary
        file is always a new one: what lies there may be another name of a file elsewhere.
        """
        temporary = temporary or name + ".new"
        self.unlink_if_there(temporary)
        fd = self.create(temporary)
        try:
            try:
                write_fully(fd, memoryview(content), lambda: None)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.rename(temporary, name)
        except BaseException:
            self.unlink_if_there(temporary)
            raise
        self.sync()

    # Names

    def folder(self, name: str) -> "Folder":
        """Open a folder below."""
        return Folder(self._open(name, _FOLDER, "folder"), self._place(name))

    def made_folder(self, name: str) -> "Folder":
        """Open a folder directly below, which is made (mode 0700) if it is missing."""
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        return self.folder(name)

    def names(self) -> list[str]:
        """What lies in the folder, in no order."""
        return os.listdir(self.fd)

    def status(self, name: str) -> os.stat_result | None:
        """What lstat(2) tells of a name, None if there is nothing or a part of its path is no folder."""
        try:
            if "/" not in name:
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            fd = open_beneath(self.fd, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in _ODD:
                raise
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def file_status(self, name: str) -> os.stat_result | None:
        """The same of a regular file, None if it is anything else."""
        status = self.status(name)
        return status if status is not None and stat.S_ISREG(status.st_mode) else None

    def rename(self, name: str, new_name: str, target: "Folder | None" = None) -> None:
        """Give what lies directly below another name, or one in another folder."""
        os.rename(name, new_name, src_dir_fd=self.fd, dst_dir_fd=(target or self).fd)

    def unlink(self, name: str) -> None:
        """Remove a name directly below that is no folder."""
        os.unlink(name, dir_fd=self.fd)

    def unlink_if_there(self, name: str) -> None:
        """The same, if there is one."""
        try:
            self.unlink(name)
        except FileNotFoundError:
            pass

    # Durability

    def sync(self) -> None:
        """Make the names in the folder durable (fsync(2))."""
        os.fsync(self.fd)

    def sync_all(self) -> None:
        """syncfs(2), which os lacks; since Linux 5.8 it reports write errors of the whole file system."""
        if _libc.syncfs(self.fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self.path)

    def _open_leased(self, name: str, flags: int) -> int:
        """Wait for a lease of another program on a file (Samba, fcntl(2)), which O_NONBLOCK does not.

        The descriptor of the first open holds what was found to be a file: no pipe can take its place.
        """
        found = open_beneath(self.fd, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                raise self.odd(name, "file", status)
            return os.open(f"/proc/self/fd/{found}", flags & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC)
        finally:
            os.close(found)

    def _open(self, name: str, flags: int, wanted: str) -> int:
        try:
            return open_beneath(self.fd, name, flags | _ALWAYS)
        except OSError as error:
            if error.errno not in _ODD or self.fd < 0:
                raise
        raise self.odd(name, wanted, self.status(name))

    def odd(self, name: str, wanted: str, status: os.stat_result | None) -> OddFile:
        """The error to raise where something else lies in the place of a `wanted` file or folder."""
        place = self._place(name)
        if status is None:  # the name leads through something that is no folder
            place, what = os.path.dirname(place), "no folder"
        else:
            what = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind") + f" and no {wanted}"
        return OddFile(
            f"{place} is {what}. pixstorefs follows no links inside a store, and nothing was changed. Put "
            "the right one back, or remove it"
        )

    def _place(self, name: str) -> str:
        return os.path.join(self.path, name)


def open_beneath(fd: int, name: str, flags: int) -> int:
    """Open what lies below a folder, whatever links lie there, for O_CREAT with mode 0600. Raises OSError."""
    if "/" not in name:  # O_NOFOLLOW is enough
        return os.open(name, flags, 0o600, dir_fd=fd)
    while True:
        opened: int = _libc.syscall(_SYS_OPENAT2, fd, os.fsencode(name), _how(flags), _HOW.size)
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number in _NO_OPENAT2:
            return open_step_by_step(fd, name, flags)
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), name)


def open_step_by_step(fd: int, name: str, flags: int) -> int:
    """The same where there is no openat2(2): a call for each folder on the way."""
    *folders, last = name.split("/")
    above = fd
    try:
        for folder in folders:
            below = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            if above != fd:
                os.close(above)
            above = below
        return os.open(last, flags, 0o600, dir_fd=above)
    finally:
        if above != fd:
            os.close(above)


@functools.cache
def _how(flags: int) -> bytes:
    return _HOW.pack(flags, 0o600 if flags & os.O_CREAT else 0, _RESOLVE)
