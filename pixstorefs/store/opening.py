"""Opening a store: header, lock, key slots, index, recovery, in this order."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pixstorefs.errors import InvalidInput, WrongKey
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret, create_keyfile, default_keyfile_path, secret_from_keyfile
from pixstorefs.store.header import (
    INDEX_PURPOSE,
    Header,
    create_store,
    differing_copies,
    is_store,
    keys_json,
    put_back,
    read_header,
)
from pixstorefs.store.images import ImageStore
from pixstorefs.store.ownership import own
from pixstorefs.store.store import Store


def open_unlocked(
    path: str, secret: Secret, *, read_only: bool = False, mountpoint: str | None = None
) -> Store:
    """Open an existing store with a secret.

    Raises NotAStore, NewerFormat, CorruptStore, WrongKey, StoreInUse, OSError.
    """
    header = read_header(path)
    # The lock before the key slots: that somebody else has the store should not cost an argon2id to find out.
    ownership = own(path, mountpoint, read_only=read_only)
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
        store.report += _put_back(path, header.raw, slots)
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
    """Where a secret opens nothing, tell of a copy that it may open."""
    try:
        yield
    except WrongKey as error:
        differing = differing_copies(path)
        if not differing:
            raise
        raise WrongKey(
            f"{error} {' and '.join(differing)} of the store {path} differs from its copy in copies/: if "
            "this is the right secret, it is damaged, or a change of the keys was interrupted. Move it out "
            "of the store, and the copy is used."
        ) from None


def open_images(
    path: str,
    *,
    passphrase: str | None,
    keyfile: str | None,
    create: bool,
    read_only: bool,
    padding: bool,
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
        default = default_keyfile_path(store_id)
        return create_keyfile(default) if new else secret_from_keyfile(default)

    if create and not read_only and not is_store(path):
        create_store(path, lambda store_id: secret_for(store_id, new=True), padding=padding)
    secret = secret_for(read_header(path).store_id, new=False)
    return ImageStore(open_unlocked(path, secret, read_only=read_only))
