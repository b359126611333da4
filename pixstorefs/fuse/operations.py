"""The adapter between the kernel and the file system: decode, call, encode. No meaning lives here.

Every handler runs to its end without giving way, except where it waits for the disk (cold reads, fsync) or
pauses in a long save; a save marks its image so that nobody changes the content meanwhile. An exception that
leaves a pyfuse3 handler would end the mount, so every one becomes an errno: ours their own, anything
unexpected EIO with a line in the log.
"""

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.errors import NoSpace, PixstoreError
from pixstorefs.fs.acl import ACCESS, DEFAULT
from pixstorefs.fs.attributes import Changes
from pixstorefs.fs.files import Files
from pixstorefs.fs.metadata import Metadata
from pixstorefs.fs.namespace import NAME_LIMIT_BYTES, Namespace
from pixstorefs.fs.owners import Owners
from pixstorefs.fs.pending import PendingNames
from pixstorefs.fs.xattrs import MEASURED, Xattrs
from pixstorefs.fuse.event_loop import Turns
from pixstorefs.fuse.reading import Reading
from pixstorefs.fuse.replies import Answers
from pixstorefs.fuse.saving import Saving, make_kernel_ask_again
from pixstorefs.store.store import Store

log = logging.getLogger(__name__)

_LISTS = (ACCESS, DEFAULT)
_MAY_EXECUTE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH

P = ParamSpec("P")
R = TypeVar("R")


def _answered(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn every error of a handler into its errno."""

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(_number(error)) from None
        except NoSpace as error:
            raise FUSEError(
                error.errno
            ) from None  # the program is told, a line for each of its writes is not
        except PixstoreError as error:
            log.warning("%s: %s", handler.__name__, error)
            raise FUSEError(error.errno) from None
        except Exception:
            log.exception("unexpected error in %s; the mount goes on", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return answer


def _number(error: OSError | PixstoreError) -> int:
    """The errno to answer. A quota that is used up is a full disk.

    Of what the write-back cache meets Linux keeps ENOSPC alone; everything else becomes EIO
    (mapping_set_error in include/linux/pagemap.h).
    """
    return errno.ENOSPC if error.errno in FULL_ERRNOS else error.errno or errno.EIO


class Operations(pyfuse3.Operations):
    """The handlers of one mount.

    `kernel_checks`: whether the kernel enforces modes and access control lists. If not, it is root alone who
    comes here, and may do everything but execute what nobody may. `log_names`: whether the log names images.
    """

    supports_dot_lookup = False
    enable_writeback_cache = True

    def __init__(
        self,
        store: Store,
        turns: Turns,
        owners: Owners,
        *,
        read_only: bool,
        kernel_checks: bool,
        durable_close: bool = False,
        log_names: bool = False,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__()
        self._store = store
        self._owners = owners
        # Lists go with the modes that are stored; where others are shown, those decide alone.
        self.enable_acl = kernel_checks and owners.umask is None
        self._read_only = read_only
        self._kernel_checks = kernel_checks
        self._durable_close = durable_close
        pending = PendingNames()
        self._files = Files(store, pending)
        self._answers = Answers(self._files, owners)
        self._turns = turns
        self._saving = Saving(store, self._files, turns, log_names=log_names)
        self._reading = Reading(store, turns)
        self._names = Namespace(store, self._files, pending, now_ns)
        self._metadata = Metadata(store, self._files, pending, now_ns)
        self._xattrs = Xattrs(store, self._files, self._metadata, now_ns)

    def close(self) -> None:
        """Save every draft that is left, after the kernel has gone."""
        self._reading.close()
        self._saving.save_all()

    def write_directory_times(self) -> None:
        """Write down the times of directories that no save took along, after `close`."""
        if not self._read_only:
            self._metadata.write_directory_times()

    def has_open_files(self) -> bool:
        """Whether any program has a file open, in whatever mount namespace it lives."""
        return self._files.has_handles

    # Names

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        inode = self._names.lookup(parent_inode, name)
        if inode is None:
            return self._answers.missing()
        return self._answers.entry(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, _ in inode_list:
            self._files.forget(ino)

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        # The directory is its own handle: readdir resumes by cookie and keeps nothing.
        return inode

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for cookie, name, inode in self._names.list(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._answers.listed(inode), cookie):
                break

    async def releasedir(self, fh: int) -> None:
        pass

    @_answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        owner = self._owner(ctx)
        return self._answers.entry(self._names.make(parent_inode, name, mode, *owner, ctx.umask))

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            return self._answers.entry(
                self._names.make(parent_inode, name, mode, *self._owner(ctx), ctx.umask, rdev=rdev)
            )
        handle, image = self._names.create(parent_inode, name, mode, *self._owner(ctx), ctx.umask)
        try:
            await self._saving.save(image)
            return self._answers.entry(image.inode)
        finally:
            await self._saving.release(handle)

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._answers.entry(
            self._names.make(parent_inode, name, mode, *self._owner(ctx), ctx.umask, target=target)
        )

    @_answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._names.read_link(inode)

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        image = self._files.image(inode)
        if image is not None and image.pending is not None:
            # A second name makes a pending file an ordinary one: it is saved with what it has.
            await self._saving.save(image)
        return self._answers.entry(self._names.link(inode, new_parent_inode, new_name))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._saving.with_room(lambda: self._names.unlink(parent_inode, name))

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._saving.with_room(lambda: self._names.rmdir(parent_inode, name))

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & pyfuse3.RENAME_EXCHANGE:
            for parent, name in ((parent_inode_old, name_old), (parent_inode_new, name_new)):
                image = self._names.pending_of(parent, name)
                if image is not None:
                    await self._saving.save(image)
        await self._saving.with_room(
            lambda: self._names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
        )

    # Attributes

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._answers.entry(self._files.inode(inode))

    @_answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if fields.update_size:
            await self._saving.set_size(inode, attr.st_size, fh, keeps_set_id=ctx.uid == 0)
        asked = _changes(attr, fields)
        found = self._files.inode(inode)
        if asked == Changes():
            return self._answers.entry(found)
        changes = self._owners.changes_into(found, asked)
        return self._answers.entry(
            await self._saving.with_room(lambda: self._metadata.change(inode, changes))
        )

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        measured = name in MEASURED
        value = await self._measured(inode, name) if measured else self._xattrs.get(inode, name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return self._owners.acl_out(value) if name in _LISTS else value

    async def _measured(self, ino: int, name: bytes) -> bytes | None:
        """Width or height. A header may be made to take long, so it is parsed in a thread."""
        measuring = self._xattrs.to_measure(ino)
        if measuring is None:
            return None
        try:
            # What it reads is opened here: the event loop is the only one that seals and opens.
            size = await self._turns.in_thread(measuring.dimensions, trio.from_thread.run_sync)
        finally:
            measuring.close()
        return str(size[MEASURED[name]]).encode() if size else None

    @_answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._xattrs.names(inode)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name in _LISTS:
            value = self._owners.acl_into(value)
        of_group = self._is_of_group(inode, ctx)
        await self._saving.with_room(lambda: self._xattrs.put(inode, name, value, of_group=of_group))
        if name == ACCESS and not self.enable_acl:
            make_kernel_ask_again(inode)  # for the mode: it does not know that lists have to do with it

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._saving.with_room(lambda: self._xattrs.remove(inode, name))

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        below = os.statvfs(self._store.folder.fd)
        stats = StatvfsData()
        for field in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
        ):
            setattr(stats, field, getattr(below, field))
        # What is reserved for deleting is allocated, and so not free; while it is lent out it seems so.
        lent = -(-self._store.reserve_missing_bytes // below.f_frsize)
        stats.f_bfree = max(0, stats.f_bfree - lent)
        stats.f_bavail = max(0, stats.f_bavail - lent)
        stats.f_namemax = NAME_LIMIT_BYTES
        return stats

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        if self._kernel_checks or not mode & os.X_OK:
            return True  # the kernel has decided already, or it is root who asks
        found = self._owners.mode(self._files.inode(inode).mode)
        return not stat.S_ISREG(found) or bool(found & _MAY_EXECUTE)

    # Content

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, image = self._names.create(parent_inode, name, mode, *self._owner(ctx), ctx.umask)
        self._turns.when_idle(image.prepare)
        keep = self._files.may_keep_pages(image.inode.ino, handle, flags)
        return FileInfo(fh=handle, keep_cache=keep), self._answers.entry(image.inode)

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        image = self._files.image(inode)
        if image is not None and flags & os.O_TRUNC:
            await self._saving.settled(image)
        # ESTALE, where the file was replaced since the kernel looked at its name, makes it look again.
        handle = self._files.open(inode, flags, keeps_set_id=ctx.uid == 0)
        if flags & os.O_TRUNC:
            self._turns.when_idle(self._files.of_handle(handle).prepare)
        return FileInfo(fh=handle, keep_cache=self._files.may_keep_pages(inode, handle, flags))

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        image = self._files.of_handle(fh)
        try:
            # pyfuse3 takes any buffer, and takes it before the next request is read.
            return await self._reading.read(image, off, size)  # type: ignore[return-value]
        except (PixstoreError, OSError) as error:
            log.error("%s cannot be read: %s", self._saving.label(image), error)
            raise FUSEError(_number(error)) from None

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        image = self._files.of_handle(fh)
        await self._saving.settled(image)
        try:
            dropped = await self._saving.with_room(lambda: self._files.write(image, off, buf))
        except (OSError, PixstoreError) as error:
            if getattr(error, "errno", None) != errno.EFBIG:
                self._files.fail(image, _number(error))
            raise
        if dropped:
            make_kernel_ask_again(image.inode.ino)
        return len(buf)

    @_answered
    async def flush(self, fh: int) -> None:
        image = self._files.of_handle(fh)
        if image.dirty:
            await self._saving.save(image)
            if self._durable_close:
                await self._turns.in_thread(self._store.make_durable)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        image = self._files.of_handle(fh)
        if image.dirty:
            await self._saving.save(image)
        await self._turns.in_thread(self._store.make_durable)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._turns.in_thread(self._store.make_durable)

    @_answered
    async def release(self, fh: int) -> None:
        await self._saving.release(fh)

    def _owner(self, ctx: RequestContext) -> tuple[int, int]:
        """Whose something new is, user and group, as they are stored."""
        return self._owners.users.into(ctx.uid), self._owners.groups.into(ctx.gid)

    def _is_of_group(self, ino: int, ctx: RequestContext) -> bool:
        """Whether who asks belongs to the group of an inode, or may do without."""
        gid = self._owners.groups.out(self._files.inode(ino).gid)
        if ctx.uid == 0 or ctx.gid == gid:
            return True
        try:
            return gid in pyfuse3.get_sup_groups(ctx.pid)
        except (OSError, RuntimeError):
            return False  # it has ended, or lives in another PID namespace: less, not more


def _changes(attr: EntryAttributes, fields: SetattrFields) -> Changes:
    return Changes(
        mode=attr.st_mode if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
    )
