"""Opening a store: header, lock, key slots, index, recovery, in this order."""

from collections.abc import Iterator
from contextlib import contextmanager

from pixstorefs.disk.lock_file import own
from pixstorefs.errors import CorruptStore, WrongKey
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.printable import ReportLine
from pixstorefs.store.store import Store
from pixstorefs.trust.header import (
    INDEX_PURPOSE,
    Header,
    differing_copies,
    keys_json,
    put_back,
    read_header,
)


def open_unlocked(
    path: str,
    secret: Secret,
    *,
    read_only: bool = False,
    mountpoint: str | None = None,
    break_lock: bool = False,
) -> Store:
    """Open an existing store with a secret.

    `break_lock`: a person says that the owner on another machine is gone.
    Raises NotAStore, NewerFormat, CorruptStore, WrongKey, StoreInUse, OSError.
    """
    header = read_header(path)
    # The lock before the key slots: that somebody else has the store should not cost an argon2id to find out.
    ownership = own(path, mountpoint, read_only=read_only, break_lock=break_lock)
    try:
        slots, index_key = unlock(path, header, secret)
    except BaseException:
        if ownership is not None:
            ownership.release()
        raise
    store = Store(
        path, header.store_id, index_key, ownership=ownership, padding=header.padding, read_only=read_only
    )
    if not read_only:
        store.report += map(ReportLine, _put_back(path, header.raw, slots))
    return store


def unlock(path: str, header: Header, secret: Secret) -> tuple[bytes, bytes]:
    """The key slots of a store and the key of its index. Changes nothing.

    Raises NewerFormat, CorruptStore, WrongKey, OSError.
    """
    slots = keys_json(path)
    with advice_where_copies_differ(path):
        master_key = keyring.unlock(slots, secret, header.raw)
    return slots, keyring.derive(master_key, header.store_id, INDEX_PURPOSE)


def _put_back(path: str, header: bytes, slots: bytes) -> list[str]:
    try:
        return put_back(path, header, slots)
    except OSError as error:
        return [f"store.json and keys.json could not be made whole from their copies: {error}"]


@contextmanager
def advice_where_copies_differ(path: str) -> Iterator[None]:
    """Where a secret opens nothing, or fits a damaged slot, tell of a copy that it may open."""
    try:
        yield
    except (WrongKey, CorruptStore) as error:
        differing = differing_copies(path)
        if not differing:
            raise
        raise type(error)(
            f"{error} {' and '.join(differing)} of the store {path} differs from its copy in copies/: if "
            "this is the right secret, it is damaged, or a change of the keys was interrupted. Move it out "
            "of the store, and the copy is used."
        ) from None
