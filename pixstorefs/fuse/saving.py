"""The waiting part of the adapter: saves that pause, retries on a full disk, drafts that are given up."""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

import pyfuse3
import trio

from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.errors import PixstoreError
from pixstorefs.fs.files import Files
from pixstorefs.fs.open_image import OpenImage
from pixstorefs.fuse.event_loop import Turns
from pixstorefs.store.store import Store

log = logging.getLogger(__name__)

R = TypeVar("R")


class Saving:
    """Saves open images without keeping the event loop from others."""

    def __init__(self, store: Store, files: Files, turns: Turns, *, log_names: bool) -> None:
        self._store = store
        self._files = files
        self._turns = turns
        self._log_names = log_names

    def save_all(self) -> None:
        """Save every draft that is left, after the kernel has gone, and close the images."""
        for image in self._files.all_images():
            try:
                for _ in self._files.save(image):
                    pass
            except (OSError, PixstoreError) as error:
                self._log_lost(image, error)
            self._files.close(image)

    async def release(self, handle: int) -> None:
        """Close a handle; with the last one save what mmap wrote after the last flush, if anything."""
        image = self._files.release(handle)
        if image is None:
            return
        try:
            await self.save(image)
        except (OSError, PixstoreError) as error:
            self._log_lost(image, error)
        if image.handles:
            return  # opened again while the save paused
        names = self._names_of(image) if image.to_save else set()
        if self._files.close(image):
            # From a thread: it may wait for requests of ours.
            await self._turns.in_thread(_make_kernel_forget, image.inode.ino, names)

    def _names_of(self, image: OpenImage) -> set[tuple[int, bytes]]:
        """Names, (directory, name), that show something else when the image is given up."""
        pending = image.pending
        if pending is not None:
            return {(pending.entry.parent, pending.entry.name), *pending.hides}
        return {(entry.parent, entry.name) for entry in self._store.tree.names(image.inode.ino)}

    def _log_lost(self, image: OpenImage, error: OSError | PixstoreError) -> None:
        rest = "It was new" if image.pending is not None else "The version before it is intact"
        log.error("%s was not saved: %s. %s", self.label(image), error, rest)

    async def save(self, image: OpenImage) -> None:
        """Save what there is to save. Raises OSError, PixstoreError; the draft is then kept."""
        await self.settled(image)
        steps = self._files.save(image)
        done = trio.Event()
        try:
            for _ in steps:
                image.saving = done
                with self._turns.needed():
                    await trio.lowlevel.checkpoint()
        finally:
            image.saving = None
            done.set()

    async def settled(self, image: OpenImage) -> None:
        """Wait until no save of this image is between two steps."""
        while image.saving is not None:
            assert isinstance(image.saving, trio.Event)
            await image.saving.wait()

    async def set_size(self, ino: int, size_bytes: int, handle: int | None, *, keeps_set_id: bool) -> None:
        """truncate(2) where `handle` is None, else ftruncate(2). `keeps_set_id`: see `Files.truncate`."""
        image = self._files.image(ino)
        opened = None
        if image is None:
            opened = self._files.open(ino, 0)
            image = self._files.of_handle(opened)
        await self.settled(image)
        was_dirty = image.dirty
        try:
            await self.with_room(lambda: self._files.truncate(image, size_bytes, keeps_set_id=keeps_set_id))
            if handle is None and not was_dirty:
                # truncate(2): there is no close that could save it.
                await self.save(image)
        finally:
            if opened is not None:
                await self.release(opened)

    async def with_room(self, change: Callable[[], R]) -> R:
        """Do a change; on a full disk give retired objects back first and try once more."""
        try:
            return change()
        except (OSError, PixstoreError) as error:
            if error.errno not in FULL_ERRNOS:
                raise
        await self._turns.in_thread(self._store.make_room)
        return change()

    def label(self, image: OpenImage) -> str:
        """What log lines call an image: by its number, unless names are wanted. A log is not encrypted."""
        if not self._log_names:
            return f"inode {image.inode.ino}"
        if image.pending is not None:
            return image.pending.entry.name.decode("utf-8", "backslashreplace")
        return self._store.tree.path_of(image.inode.ino)


def make_kernel_ask_again(ino: int) -> None:
    """The kernel caches attributes of an inode that it does not know to have changed. Never blocks."""
    try:
        pyfuse3.invalidate_inode(ino, attr_only=True)
    except OSError as error:
        _complain(ino, error)


def _make_kernel_forget(ino: int, names: set[tuple[int, bytes]]) -> None:
    """The kernel still caches a draft that was given up: make it ask again.

    Dropping pages and attributes is not enough: with the write-back cache the kernel trusts its own size of
    a file over ours. So the names go, too, and the next look finds another generation of the inode.
    """
    try:
        pyfuse3.invalidate_inode(ino)
    except OSError as error:
        _complain(ino, error)
    for parent, name in names:
        try:
            pyfuse3.invalidate_entry(parent, name)
        except OSError as error:
            _complain(ino, error)


def _complain(ino: int, error: OSError) -> None:
    if error.errno != errno.ENOENT:  # the kernel has forgotten it already
        log.warning("the kernel's cache of inode %d could not be dropped: %s", ino, error)
