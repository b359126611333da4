"""Open files: handles, reading, writing, and saving what was written."""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Generator
from dataclasses import replace

from pixstorefs.errors import CorruptImage
from pixstorefs.fs.attributes import clear_set_id
from pixstorefs.fs.direct_io import DirectHandles
from pixstorefs.fs.open_image import OpenImage, PendingName, ReadBuffer
from pixstorefs.fs.pending import PendingNames
from pixstorefs.objects.layout import Content
from pixstorefs.objects.reader import ObjectReader
from pixstorefs.records import Inode
from pixstorefs.store.draft import Draft
from pixstorefs.store.store import Store
from pixstorefs.store.tree import NewName

log = logging.getLogger(__name__)

CAPABILITY = b"security.capability"


class Files:
    """All open images of a mount, by inode number and by handle."""

    def __init__(self, store: Store, pending: PendingNames) -> None:
        self._store = store
        self._pending = pending
        self._buffer = ReadBuffer()
        self._images: dict[int, OpenImage] = {}
        self._handles: dict[int, OpenImage] = {}
        self._next_handle = 1
        self._direct = DirectHandles()
        # Inodes without a name that the kernel still knows, for stat(2) through what is open.
        self._gone: dict[int, Inode] = {}
        # Their extended attributes, which the index drops with the last name.
        self._gone_xattrs: dict[int, dict[bytes, bytes]] = {}
        # Their content, for a program that looked the name up before it went and opens the file after. The
        # key, which the index has destroyed, lives on here until the kernel lets go of the inode.
        self._gone_readers: dict[int, ObjectReader] = {}
        # How often a draft of an inode was given up after the kernel had cached it.
        self._generations: dict[int, int] = {}

    # Inodes

    def image(self, ino: int) -> OpenImage | None:
        """The open image with this inode number."""
        return self._images.get(ino)

    def inode(self, ino: int) -> Inode:
        """The inode as programs see it, size and links apart. Raises OSError ESTALE where there is none."""
        image = self._images.get(ino)
        if image is not None:
            return image.inode
        inode = self._gone.get(ino) or self._store.tree.inode(ino)
        if inode is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self.as_seen(inode)

    def as_seen(self, inode: Inode) -> Inode:
        """An inode of the index with what the mount knows better: open images, pending names in it."""
        image = self._images.get(inode.ino)
        if image is not None:
            return image.inode
        if stat.S_ISDIR(inode.mode):
            changed_ns = self._pending.changed_ns(inode.ino)
            if changed_ns is not None:
                return replace(inode, mtime_ns=changed_ns, ctime_ns=changed_ns)
        return inode

    @property
    def are_as_saved(self) -> bool:
        """Whether programs see of every inode just what the index has of it, and always did."""
        return not (self._images or self._gone or self._generations)

    def size_bytes(self, inode: Inode) -> int:
        """The size programs see."""
        image = self._images.get(inode.ino)
        return inode.size_bytes if image is None else image.size_bytes

    def links(self, inode: Inode) -> int:
        """The number of names programs see. In `inode.nlink` are those of the index, hidden ones too."""
        return inode.nlink - self._pending.hidden_of(inode.ino)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """The value of an extended attribute as programs see it."""
        unsaved = self.unsaved_xattrs(ino)
        return self._store.tree.xattr(ino, name) if unsaved is None else unsaved.get(name)

    def unsaved_xattrs(self, ino: int) -> dict[bytes, bytes] | None:
        """The extended attributes of an inode that the index does not have: pending, or without a name."""
        image = self._images.get(ino)
        if image is not None and image.pending is not None:
            return image.pending.xattrs
        return self._gone_xattrs.get(ino) if ino in self._gone else None

    def prepare_loss(self, inode: Inode) -> None:
        """An inode is about to lose a name, maybe its last: keep readable what is open, or about to be."""
        ino = inode.ino
        xattrs = self.unsaved_xattrs(ino)
        self._gone_xattrs[ino] = self._store.tree.xattrs(ino) if xattrs is None else xattrs
        image = self._images.get(ino)
        if image is not None:
            try:
                image.hold()
            except (CorruptImage, OSError) as error:
                log.warning("an open image is deleted and was damaged before: %s", error)
        self._gone_readers.pop(ino, None)
        if inode.version_id is not None:
            with contextlib.suppress(CorruptImage):  # nobody has it open, and nobody can read it
                self._gone_readers[ino] = self._store.open_object(inode)

    def lost_name(self, inode: Inode) -> None:
        """An inode lost a name in the index, or a pending file hides it; `inode` is how it is now."""
        known = self._known(inode.ino)
        if known is not None:
            known.nlink, known.ctime_ns = inode.nlink, inode.ctime_ns
        if self.links(inode) == 0:
            self._gone[inode.ino] = known or inode
            image = self._images.get(inode.ino)
            if image is not None:
                image.gone = True

    def _known(self, ino: int) -> Inode | None:
        """The inode that lives in memory, because it is open or has no name."""
        image = self._images.get(ino)
        return image.inode if image is not None else self._gone.get(ino)

    def forget(self, ino: int) -> None:
        """The kernel has let go of an inode."""
        self._direct.forget(ino)
        if ino not in self._images:
            self._drop_gone(ino)

    def _drop_gone(self, ino: int) -> None:
        self._gone.pop(ino, None)
        self._gone_xattrs.pop(ino, None)
        self._gone_readers.pop(ino, None)

    # Handles

    def create(self, inode: Inode, pending: PendingName) -> tuple[int, OpenImage]:
        """A handle of a new, pending file."""
        image = OpenImage(self._store, self._buffer, inode, pending)
        self._images[inode.ino] = image
        return self._new_handle(image), image

    def may_keep_pages(self, ino: int, handle: int, flags: int) -> bool:
        """Whether the kernel may keep the pages it has of a file, for a handle opened with these flags."""
        if flags & os.O_DIRECT and flags & os.O_ACCMODE != os.O_RDONLY:
            self._direct.note_open(ino, handle)
        return self._direct.may_keep_pages(ino)

    def open(self, ino: int, flags: int, *, keeps_set_id: bool = True) -> int:
        """A handle of an existing file. O_TRUNC starts an empty draft; the saved image stays until the save.

        `keeps_set_id`: see `truncate`. Raises OSError: EISDIR; ESTALE where it is gone, upon which the kernel
        looks the name up anew.
        """
        image = self._images.get(ino)
        if image is None:
            inode = self.inode(ino)
            if not stat.S_ISREG(inode.mode):
                raise OSError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL, "not a file")
            image = OpenImage(self._store, self._buffer, inode)
            if self.links(inode) == 0:
                self._keep_reading(image)
            self._images[ino] = image
        handle = self._new_handle(image)
        if flags & os.O_TRUNC:
            self.truncate(image, 0, keeps_set_id=keeps_set_id)
        return handle

    def _keep_reading(self, image: OpenImage) -> None:
        """Open an image whose last name went meanwhile, while its object is still there. Raises ESTALE."""
        reader = self._gone_readers.get(image.inode.ino)
        try:
            if reader is not None:
                reader.open()
        except CorruptImage:
            reader = None
        if reader is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        image.gone = True
        image.read_from(reader)

    def of_handle(self, handle: int) -> OpenImage:
        """The image behind a handle. Raises OSError EBADF."""
        try:
            return self._handles[handle]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def release(self, handle: int) -> OpenImage | None:
        """Close a handle; returns the image if it was the last one.

        A draft that is still there then (its save failed) is given up, with a line in the log.
        """
        image = self._handles.pop(handle)
        self._direct.note_release(image.inode.ino, handle)
        image.handles -= 1
        if image.handles:
            return None
        return image

    def close(self, image: OpenImage) -> bool:
        """Forget an image without handles; whether a draft was lost with it, and a name never saved."""
        lost = image.to_save
        if lost:
            self._generations[image.inode.ino] = self.generation(image.inode.ino) + 1
        hidden = set() if image.pending is None else image.pending.hides.copy()
        if image.pending is not None:
            self._pending.discard(image)
            image.pending = None
        image.close()
        if self._images.get(image.inode.ino) is image:
            del self._images[image.inode.ino]
        for parent, name in hidden:
            self._bring_back(parent, name)
        return lost

    def _bring_back(self, parent: int, name: bytes) -> None:
        """The saved file that a pending one had replaced has its name again, and is saved when written."""
        self._pending.uncover(parent, name)
        inode = self._store.tree.lookup(parent, name)
        if inode is None:
            return
        self._drop_gone(inode.ino)
        image = self._images.get(inode.ino)
        if image is not None:
            image.gone = False

    @property
    def has_handles(self) -> bool:
        """Whether any file is open."""
        return bool(self._handles)

    def generation(self, ino: int) -> int:
        """The generation of an inode. With another one the kernel takes it for another file."""
        return self._generations.get(ino, 0)

    def all_images(self) -> list[OpenImage]:
        """Every open image."""
        return list(self._images.values())

    def _new_handle(self, image: OpenImage) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = image
        image.handles += 1
        return handle

    # Content. Its times are the kernel's: with the write-back cache on it keeps them itself and sends what
    # changed before every flush. Ours would be some milliseconds later, and show only after a remount.

    def write(self, image: OpenImage, offset: int, data: bytes) -> bool:
        """Write into the draft; whether that dropped set-id bits, which the kernel does not know yet.

        After a failure the image is `failed`: it is never saved incomplete.
        """
        if image.failure is not None:
            raise OSError(image.failure, os.strerror(image.failure))
        draft = image.begin_draft()
        draft.write(offset, data)
        self._drop_capability(image)
        # Whoever writes: that root may keep the bits is lost on us, for pyfuse3 does not tell who it is.
        return clear_set_id(image.inode)

    def fail(self, image: OpenImage, number: int) -> None:
        """A write could not be done: what the kernel cached of it is lost, so the draft must not be saved."""
        image.failure = number

    def truncate(self, image: OpenImage, size_bytes: int, *, keeps_set_id: bool = False) -> None:
        """Change the length of the draft. `keeps_set_id`: by somebody who may keep the set-id bits, root."""
        if size_bytes == 0:
            image.begin_draft(empty=True)
        elif size_bytes != image.size_bytes or image.draft is not None:
            image.begin_draft().truncate(size_bytes)
        self._drop_capability(image)
        if not keeps_set_id:
            clear_set_id(image.inode)

    def _drop_capability(self, image: OpenImage) -> None:
        """What somebody writes is not what was trusted with privileges. The kernel leaves that to us."""
        if image.may_have_capability:
            unsaved = self.unsaved_xattrs(image.inode.ino)
            if unsaved is not None:
                unsaved.pop(CAPABILITY, None)
            elif self._store.tree.xattr(image.inode.ino, CAPABILITY) is not None:
                self._store.tree.delete_xattr(image.inode.ino, CAPABILITY, image.inode.ctime_ns)
            image.may_have_capability = False

    def save(self, image: OpenImage) -> Generator[None, None, None]:
        """Save the draft, if there is anything to save: seal the object, one transaction.

        A generator that pauses every few megabytes; the image must not be changed in between.
        Raises OSError or PixstoreError; the old version is then intact and the draft kept.
        """
        if not image.to_save:
            return
        if image.failure is not None:
            raise OSError(image.failure, os.strerror(image.failure))
        draft = image.begin_draft()
        content = yield from draft.seal()
        pending = image.pending
        if image.gone:  # its last name went while the save paused
            draft.resume(content)
            return
        if pending is None:
            self._store.save(image.inode, draft, content)
        else:
            self._save_name(image, draft, content, pending)
        image.drop_draft()
        image.forget_version()

    def _save_name(self, image: OpenImage, draft: Draft, content: Content, pending: PendingName) -> None:
        parent = pending.entry.parent
        changed_ns = self._pending.take_changed_ns(parent)
        new = NewName(pending.entry, pending.xattrs, changed_ns, sorted(pending.hides))
        try:
            self._store.save(image.inode, draft, content, new)
        except BaseException:
            if changed_ns is not None:
                self._pending.touch(parent, changed_ns)
            raise
        for left in new.left:
            ino = self._pending.uncover(*left)
            known = None if ino is None else self._known(ino)
            if known is not None:
                known.nlink -= 1
        self._pending.discard(image)
        image.pending = None
