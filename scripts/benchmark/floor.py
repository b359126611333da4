"""`floor`: the least that a file system on pyfuse3 can do. Files are bytearrays; nothing is encrypted.

It is mounted as pixstorefs is (write-back cache, long timeouts, readdirplus), so what it costs is the price
of FUSE and of the event loop, and what pixstorefs costs beyond it is its own. It answers flush and opendir
although it need not: a file system that saves at close has to, and the kernel stops asking one that does not.
"""

import bisect
import errno
import os
import stat
import sys
import time

import pyfuse3
import trio

TIMEOUT = 3600.0
BLOCK = 4096


class Node:
    """One inode. Directories know their entries by name and by cookie, so that a listing can resume."""

    def __init__(self, ino: int, mode: int, ctx: pyfuse3.RequestContext | None) -> None:
        now = time.time_ns()
        self.ino = ino
        self.data = bytearray()
        self.target = b""
        self.names: dict[bytes, tuple[int, Node]] = {}
        self.cookies: dict[int, bytes] = {}
        self.next_cookie = 1
        self.parent: Node = self
        self.attr = attr = pyfuse3.EntryAttributes()
        attr.st_ino, attr.st_mode = ino, mode
        attr.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attr.st_uid, attr.st_gid = (ctx.uid, ctx.gid) if ctx else (os.getuid(), os.getgid())
        attr.st_blksize = BLOCK
        attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = now
        attr.entry_timeout = attr.attr_timeout = TIMEOUT

    def add(self, name: bytes, node: "Node") -> None:
        self.names[name] = (self.next_cookie, node)
        self.cookies[self.next_cookie] = name
        self.next_cookie += 1
        node.parent = self

    def take(self, name: bytes) -> "Node":
        cookie, node = self.names.pop(name)
        del self.cookies[cookie]
        return node

    def resized(self) -> None:
        self.attr.st_size = len(self.data)
        self.attr.st_blocks = -(-len(self.data) // 512)


class Floor(pyfuse3.Operations):
    """The handlers a benchmark needs. Extended attributes stay ENOSYS: the kernel stops asking for them."""

    enable_writeback_cache = True
    enable_acl = False

    def __init__(self) -> None:
        super().__init__()
        self.nodes = {pyfuse3.ROOT_INODE: Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, None)}
        self.lookups: dict[int, int] = {}
        self.next_ino = pyfuse3.ROOT_INODE + 1
        self.absent = pyfuse3.EntryAttributes()
        self.absent.st_ino = 0
        self.absent.entry_timeout = TIMEOUT

    def known(self, node: Node) -> pyfuse3.EntryAttributes:
        self.lookups[node.ino] = self.lookups.get(node.ino, 0) + 1
        return node.attr

    def new(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> Node:
        folder = self.nodes[parent]
        if name in folder.names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = Node(self.next_ino, mode & ~ctx.umask if not stat.S_ISLNK(mode) else mode, ctx)
        self.next_ino += 1
        self.nodes[node.ino] = node
        folder.add(name, node)
        return node

    def drop(self, node: Node) -> None:
        node.attr.st_nlink = 0
        if not self.lookups.get(node.ino):
            self.nodes.pop(node.ino, None)

    async def lookup(self, parent_inode, name, ctx):
        folder = self.nodes[parent_inode]
        if name == b".":
            return self.known(folder)
        if name == b"..":
            return self.known(folder.parent)
        found = folder.names.get(name)
        return self.known(found[1]) if found else self.absent

    async def forget(self, inode_list):
        for ino, count in inode_list:
            self.lookups[ino] = self.lookups.get(ino, 0) - count
            if self.lookups[ino] <= 0:
                del self.lookups[ino]
                if ino in self.nodes and self.nodes[ino].attr.st_nlink == 0:
                    del self.nodes[ino]

    async def getattr(self, inode, ctx=None):
        return self.nodes[inode].attr

    async def setattr(self, inode, attr, fields, fh, ctx):
        node = self.nodes[inode]
        if fields.update_size:
            missing = attr.st_size - len(node.data)
            if missing > 0:
                node.data.extend(bytes(missing))
            else:
                del node.data[attr.st_size :]
            node.resized()
        for name in ("mode", "uid", "gid"):
            if getattr(fields, f"update_{name}"):
                setattr(node.attr, f"st_{name}", getattr(attr, f"st_{name}"))
        for name in ("atime", "mtime", "ctime"):
            if getattr(fields, f"update_{name}"):
                setattr(node.attr, f"st_{name}_ns", getattr(attr, f"st_{name}_ns"))
        return node.attr

    async def mkdir(self, parent_inode, name, mode, ctx):
        return self.known(self.new(parent_inode, name, mode | stat.S_IFDIR, ctx))

    async def symlink(self, parent_inode, name, target, ctx):
        node = self.new(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target, node.attr.st_size = target, len(target)
        return self.known(node)

    async def readlink(self, inode, ctx):
        return self.nodes[inode].target

    async def unlink(self, parent_inode, name, ctx):
        self.drop(self.nodes[parent_inode].take(name))

    async def rmdir(self, parent_inode, name, ctx):
        folder = self.nodes[parent_inode]
        if folder.names[name][1].names:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        self.drop(folder.take(name))

    async def rename(self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx):
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        new = self.nodes[parent_inode_new]
        node = self.nodes[parent_inode_old].take(name_old)
        if name_new in new.names:
            self.drop(new.take(name_new))
        new.add(name_new, node)

    async def create(self, parent_inode, name, mode, flags, ctx):
        node = self.new(parent_inode, name, mode | stat.S_IFREG, ctx)
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True), self.known(node)

    async def open(self, inode, flags, ctx):
        if flags & os.O_TRUNC:
            self.nodes[inode].data.clear()
            self.nodes[inode].resized()
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh, off, size):
        return memoryview(self.nodes[fh].data)[off : off + size]

    async def write(self, fh, off, buf):
        node = self.nodes[fh]
        if off > len(node.data):
            node.data.extend(bytes(off - len(node.data)))
        node.data[off : off + len(buf)] = buf
        node.resized()
        return len(buf)

    async def flush(self, fh):
        return None

    async def release(self, fh):
        return None

    async def fsync(self, fh, datasync):
        return None

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        folder = self.nodes[fh]
        cookies = list(folder.cookies)
        for cookie in cookies[bisect.bisect_right(cookies, start_id) :]:
            name = folder.cookies[cookie]
            node = folder.names[name][1]
            if not pyfuse3.readdir_reply(token, name, node.attr, cookie):
                break
            self.known(node)

    async def releasedir(self, fh):
        return None

    async def statfs(self, ctx):
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 28
        data.f_files = data.f_ffree = data.f_favail = 1 << 28
        data.f_namemax = 255
        return data


def main() -> None:
    options = set(pyfuse3.default_options) | {"fsname=floor"}
    pyfuse3.init(Floor(), sys.argv[1], options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
