"""The Python API: Pixstore's operations on images, atomic, by id."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType

from pixstorefs.check.rescue import open_for_reading
from pixstorefs.disk.files import FULL_ERRNOS
from pixstorefs.errors import ImageNotFound, InvalidInput, NoSpace, StoreClosed, StoreInUse, WrongKey
from pixstorefs.format import SEGMENT_SIZE_BYTES
from pixstorefs.imaging.formats import HEAD_SIZE_BYTES, extension, sniff
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Path, Secret, create_keyfile, default_keyfile_path, secret_from_keyfile
from pixstorefs.objects.sealing import Buffer, flat
from pixstorefs.records import Entry, ImageRecord, Inode
from pixstorefs.store.draft import Draft
from pixstorefs.store.measure import Measuring
from pixstorefs.store.opening import open_unlocked
from pixstorefs.store.store import Store
from pixstorefs.store.tree import NewName
from pixstorefs.trust.header import create_store, is_store, keys_json, read_header

_CHUNK_SIZE_BYTES = 1 << 20
_PAGE_ENTRIES = 512
_NAME_LIMIT_BYTES = 255


class ImageStore:
    """A store as a collection of images with ids. Use it as a context manager, or call `close`.

    Thread-safe. After a call returned, what it saved survives the end of the process; `sync` and `close`
    make it survive power loss. After `close` calls raise StoreClosed, in a child that was forked StoreInUse.
    """

    def __init__(self, store: Store, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._opened = store
        self._now_ns = now_ns
        self._closed = False
        self._drafts: set[Draft] = set()

    @property
    def _store(self) -> Store:
        """The store, for every use of it, so that no call forgets to ask. Raises StoreInUse, StoreClosed."""
        if self._closed or self._opened.forked:
            self._opened.require_not_forked()
            raise StoreClosed(f"the store {self._opened.path} is closed: open it again. Nothing was changed")
        return self._opened

    def __enter__(self) -> "ImageStore":
        _ = self._store
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Make everything durable and give the store free. The second time, and in a forked child: nothing.

        A call that is still reading its source raises StoreClosed, and leaves nothing behind. Raises OSError.
        """
        if self._closed or self._opened.forked:
            return
        with self._opened.lock:
            self._closed = True
            for draft in self._drafts:
                draft.close()
        self._opened.close()

    def sync(self) -> None:
        """Return when everything done so far survives power loss. Raises OSError, PixstoreError.

        What was replaced or deleted leaves the disk a second later; keys of what was deleted go at once.
        """
        self._store.make_durable()

    def save_image(self, data: Buffer, directory: str | None = None) -> ImageRecord:
        """Save a new image as `<directory>/<id>.<ext>`, making directories that are missing.

        Raises InvalidInput (no image, no buffer of bytes, a bad directory name), NoSpace, OSError.
        """
        return self._save_new(iter([data]), directory)

    def save_image_from_file(self, path: Path, directory: str | None = None) -> ImageRecord:
        """Like `save_image`, streaming the content of a file of any size."""
        self._store.require_writable()
        with open(path, "rb") as file:
            return self._save_new(iter(lambda: file.read(_CHUNK_SIZE_BYTES), b""), directory)

    def update_image(self, image_id: str, data: Buffer) -> ImageRecord:
        """Replace the content of an image: the old version stays until the new one is saved.

        Raises ImageNotFound, InvalidInput (no image, no buffer of bytes), NoSpace, OSError.
        """
        return self._update(image_id, iter([data]))

    def update_image_from_file(self, image_id: str, path: Path) -> ImageRecord:
        """Like `update_image`, streaming the content of a file."""
        self._store.require_writable()
        with open(path, "rb") as file:
            return self._update(image_id, iter(lambda: file.read(_CHUNK_SIZE_BYTES), b""))

    def delete_image(self, image_id: str) -> bool:
        """Delete an image under all its names; its key is destroyed. False where there is none."""
        with self._store.lock:
            inode = self._find(image_id)
            if inode is None:
                return False
            self._store.tree.remove_all(inode.ino, self._now_ns())
        return True

    def image_exists(self, image_id: str) -> bool:
        """Whether an image has this id."""
        return self._find(image_id) is not None

    def get_image_record(self, image_id: str) -> ImageRecord:
        """What is known of an image. Raises ImageNotFound, CorruptImage."""
        with self._store.lock:
            measured = self._look_at(self._existing(image_id))
        return measured()

    def read_image(self, image_id: str) -> bytes:
        """The whole content of an image. Raises ImageNotFound, CorruptImage, OSError."""
        return b"".join(self.read_image_chunks(image_id))

    def read_image_chunks(self, image_id: str) -> Iterator[bytes]:
        """The content of an image in chunks of 128 KiB, for images that should not fill the memory.

        All chunks are of the version that was current at the first one.
        """
        with self._store.lock:
            inode = self._existing(image_id)
            reader = self._store.open_object(inode)
            reader.open()
        buffer = memoryview(bytearray(SEGMENT_SIZE_BYTES))
        try:
            for start in range(0, inode.size_bytes, SEGMENT_SIZE_BYTES):
                with self._store.lock:
                    reader.read_segment(start // SEGMENT_SIZE_BYTES, buffer)
                yield bytes(buffer[: inode.size_bytes - start])
        finally:
            reader.close()

    def images(self, directory: str | None = None) -> Iterator[ImageRecord]:
        """Records of the images in one directory (not below it), in the order they came.

        Raises ImageNotFound where there is no such directory. Images saved meanwhile may be included.
        """
        ino = ROOT_INO
        for name in _directory_names(directory):
            found = self._store.tree.lookup(ino, name)
            if found is None or not stat.S_ISDIR(found.mode):
                raise ImageNotFound(f"there is no directory {directory!r} in the store")
            ino = found.ino
        cookie = 0
        while page := self._store.tree.entries(ino, cookie, _PAGE_ENTRIES):
            for _, _, inode in page:
                measured = self._look_at_image(inode.ino)
                if measured is not None:
                    yield measured()
            cookie = page[-1][0]

    # Whoever waited for the lock asks for the store once more behind it: a close may have come first.

    def _save_new(self, chunks: Iterator[Buffer], directory: str | None) -> ImageRecord:
        self._store.require_writable()
        names = _directory_names(directory)
        with self._store.lock:
            ino = self._store.numbers.ino()
            image_id = self._store.allocator.new_image_id(ino)
            draft = self._begin_draft(image_id)
        with self._ending(draft):
            image_format = self._fill(draft, chunks)
            with self._store.lock:
                store = self._store
                now_ns = self._now_ns()
                parent = self._make_directories(names, now_ns)
                name = f"{image_id.hex()}.{extension(image_format)}".encode()
                entry = Entry(store.numbers.cookie(), parent, name)
                inode = _new_file(ino, image_id, now_ns)
                store.save(inode, draft, draft.seal_at_once(), NewName(entry, {}, now_ns))
                measured = self._look_at(inode)
        return measured()

    def _update(self, image_id: str, chunks: Iterator[Buffer]) -> ImageRecord:
        self._store.require_writable()
        with self._store.lock:
            inode = self._existing(image_id)
            assert inode.image_id is not None
            draft = self._begin_draft(inode.image_id)
        with self._ending(draft):
            self._fill(draft, chunks)
            with self._store.lock:
                inode = self._existing(image_id)  # as it is by now
                inode.mtime_ns = inode.ctime_ns = self._now_ns()
                self._store.save(inode, draft, draft.seal_at_once())
                measured = self._look_at(inode)
        return measured()

    def _begin_draft(self, image_id: bytes) -> Draft:
        """An empty draft, which `close` drops, too (with the lock held)."""
        draft = Draft(self._store.allocator, image_id)
        self._drafts.add(draft)
        return draft

    @contextmanager
    def _ending(self, draft: Draft) -> Iterator[None]:
        """Drop a draft at the end."""
        try:
            yield
        except OSError as error:
            # A full disk is the one that callers of the API have to tell from the others.
            if error.errno not in FULL_ERRNOS:
                raise
            raise NoSpace(
                "the disk under the store is full: nothing was saved, and nothing is lost"
            ) from error
        finally:
            if not self._opened.forked:
                with self._opened.lock:
                    self._drafts.discard(draft)
                    draft.close()

    def _fill(self, draft: Draft, chunks: Iterator[Buffer]) -> str:
        """Write chunks to a draft; returns the format. The lock is free while the source is waited for."""
        image_format = None
        for chunk in chunks:
            # One view for both: what is saved is what was looked at.
            with flat(chunk) as view, self._store.lock:
                _ = self._store
                if draft.size_bytes < HEAD_SIZE_BYTES and view:
                    head = bytearray(draft.size_bytes)
                    draft.read_into(0, memoryview(head))
                    image_format = sniff(bytes(head) + bytes(view[:HEAD_SIZE_BYTES]))
                draft.write(draft.size_bytes, view)
        if image_format is None:
            raise InvalidInput("the data is no image of a known format; nothing was saved")
        return image_format

    def _make_directories(self, names: list[bytes], now_ns: int) -> int:
        ino = ROOT_INO
        for name in names:
            found = self._store.tree.lookup(ino, name)
            if found is None:
                found = _new_directory(self._store.numbers.ino(), now_ns)
                self._store.tree.add(found, ino, name)
            elif not stat.S_ISDIR(found.mode):
                raise InvalidInput(f"{os.fsdecode(name)!r} is a file in the store, not a directory")
            ino = found.ino
        return ino

    def _find(self, image_id: str) -> Inode | None:
        tree = self._store.tree
        try:
            raw = bytes.fromhex(image_id)
        except ValueError:
            return None
        return tree.inode_of_image(raw) if len(raw) == 16 else None

    def _existing(self, image_id: str) -> Inode:
        inode = self._find(image_id)
        if inode is None:
            raise ImageNotFound(f"no image has the id {image_id!r}")
        return inode

    def _look_at_image(self, ino: int) -> Callable[[], ImageRecord] | None:
        """The same for an inode as it is now; None where it is gone or holds no image."""
        with self._store.lock:
            inode = self._store.tree.inode(ino)
            if inode is None or inode.image_id is None or self._store.version(inode).format is None:
                return None
            return self._look_at(inode)

    def _look_at(self, inode: Inode) -> Callable[[], ImageRecord]:
        """Take the record of an image, with the lock held, but for its dimensions.

        What is returned completes it, without the lock: a header may take long to read.
        """
        assert inode.image_id is not None
        version = self._store.version(inode)
        record = partial(
            ImageRecord,
            id=inode.image_id.hex(),
            token=version.token,
            format=version.format,
            size_bytes=inode.size_bytes,
            created_ns=self._store.tree.created_ns(inode.ino),
            modified_ns=inode.mtime_ns,
            path=self._store.tree.path_of(inode.ino),
        )
        if version.format is None:
            return partial(record, width=None, height=None)
        return partial(self._measured, record, Measuring(self._store, inode, version.format))

    def _measured(self, record: Callable[..., ImageRecord], measuring: Measuring) -> ImageRecord:
        try:
            width, height = measuring.dimensions(self._exclusively) or (None, None)
        finally:
            measuring.close()
        return record(width=width, height=height)

    def _exclusively(self, work: Callable[[], None]) -> None:
        with self._opened.lock:
            work()


def _directory_names(directory: str | None) -> list[bytes]:
    """The checked names of a relative directory. Raises InvalidInput."""
    names = []
    for name in (directory or "").split("/") if directory else []:
        if name in ("", ".", ".."):
            raise InvalidInput(
                f"the directory {directory!r} is not allowed: give a relative path like '2026/holidays', "
                "without '.', '..' or empty parts"
            )
        if any(ord(character) < 32 or ord(character) == 127 for character in name):
            raise InvalidInput(f"the directory {directory!r} is not allowed: it has control characters")
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise InvalidInput(f"the directory {directory!r} is not allowed: it is not Unicode") from None
        if len(encoded) > _NAME_LIMIT_BYTES:
            raise InvalidInput(f"the directory {directory!r} is not allowed: a name has over 255 bytes")
        names.append(encoded)
    return names


def _new_file(ino: int, image_id: bytes, now_ns: int) -> Inode:
    mode = stat.S_IFREG | 0o644
    return Inode(ino, mode, os.getuid(), os.getgid(), 1, 0, 0, 0, now_ns, now_ns, now_ns, image_id)


def _new_directory(ino: int, now_ns: int) -> Inode:
    mode = stat.S_IFDIR | 0o755
    return Inode(ino, mode, os.getuid(), os.getgid(), 2, 0, 0, 0, now_ns, now_ns, now_ns)


def open_images(
    path: Path,
    *,
    passphrase: str | None,
    keyfile: Path | None,
    create: bool,
    read_only: bool,
    padding: bool,
    break_lock: bool,
) -> ImageStore:
    """`pixstorefs.open_store`: see there."""
    if passphrase is not None and keyfile is not None:
        raise InvalidInput("give a passphrase or a keyfile, not both: each opens the store alone")
    if passphrase == "":
        raise InvalidInput("an empty passphrase protects nothing: give one, or leave it out for a keyfile")
    path = os.path.abspath(path)

    def secret_for(store_id: bytes, *, new: bool) -> Secret:
        if passphrase is not None:
            return Secret("passphrase", passphrase.encode())
        if keyfile is not None:
            return secret_from_keyfile(keyfile)
        return create_keyfile(default_keyfile_path(store_id)) if new else _default_secret(path, store_id)

    if create and not read_only and not is_store(path):
        try:
            create_store(path, lambda store_id: secret_for(store_id, new=True), padding=padding)
        except StoreInUse:
            if not is_store(path):
                raise  # otherwise another process has made it, and may be done with it
    secret = secret_for(read_header(path).store_id, new=False)

    def open_store() -> Store:
        return open_unlocked(path, secret, read_only=read_only, break_lock=break_lock)

    return ImageStore(open_for_reading(path, secret, open_store) if read_only else open_store())


def _default_secret(path: str, store_id: bytes) -> Secret:
    """What opens a store where nothing was given. Raises WrongKey, and CorruptStore, NewerFormat."""
    kinds = keyring.slot_kinds(keys_json(path))
    if "keyfile" not in kinds:
        raise WrongKey(f"the store {path} opens with a passphrase, and none was given")
    try:
        return secret_from_keyfile(default_keyfile_path(store_id))
    except WrongKey as error:
        if "passphrase" not in kinds:
            raise
        raise WrongKey(f"{error} The store opens with a passphrase, too, and none was given.") from None
