"""Changes of a store's keys: each one replacement of keys.json, so a crash leaves the old keys or the new.

A change takes the store's lock, and so is refused while the store is mounted: every opening for writing makes
the copy of keys.json what it read itself (`header.put_back`), and one that had read the old keys would undo a
change made beside it. The index is not opened, for it has nothing to do with it: a store that has to recover,
or whose index is damaged, can still be given other keys.
"""

from collections.abc import Callable

from pixstorefs.disk.folder import OddFile
from pixstorefs.disk.lock_file import Ownership
from pixstorefs.errors import KeysNotWritten, PixstoreError, StoreNotWritable
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.keys.slots import without
from pixstorefs.store.opening import advice_where_copies_differ
from pixstorefs.trust.header import keys_json, read_header, replace_keys


class KeySlots:
    """The key slots of a store that nobody else uses meanwhile. Use it as a context manager."""

    def __init__(self, path: str) -> None:
        """Take the store's lock.

        Raises NotAStore, NewerFormat, CorruptStore, StoreInUse, KeysNotWritten, OSError.
        """
        self._path = path
        read_header(path)  # no lock is left in what is no store
        self._ownership = _own(path)
        self._folder = self._ownership.folder
        try:
            self._header = read_header(self._folder).raw
            self._keys_json = keys_json(self._folder)
        except BaseException:
            self._ownership.release()
            raise

    def __enter__(self) -> "KeySlots":
        return self

    def __exit__(self, *_: object) -> None:
        self._ownership.release()

    def kinds(self, *, without_label: str | None = None) -> frozenset[str]:
        """Which kinds of secret open the store, or would without one of its keys.

        Raises InvalidInput where that cannot be removed.
        """
        slots = self._keys_json
        if without_label is not None:
            slots = without(slots, without_label)
        return frozenset(keyring.slot_kinds(slots))

    def add(self, secret: Secret, make_new: Callable[[], Secret], label: str) -> None:
        """Let another secret open the store, too; `make_new` and what is raised: see `keyring.add`.

        Raises KeysNotWritten as well, as do the others.
        """
        with advice_where_copies_differ(self._path):
            slots = keyring.add(self._keys_json, secret, make_new, self._header, label=label)
        self._replace(slots)

    def remove(self, label: str, secret: Secret) -> None:
        """Let a key open the store no more; `secret` is that of another one. Raises as `keyring.remove`."""
        with advice_where_copies_differ(self._path):
            slots = keyring.remove(self._keys_json, label, secret, self._header)
        self._replace(slots)

    def change(self, secret: Secret, make_new: Callable[[], Secret]) -> str:
        """Let a new secret open the store instead of `secret`; returns the label of the key.

        Raises as `keyring.change`.
        """
        with advice_where_copies_differ(self._path):
            slots, label = keyring.change(self._keys_json, secret, make_new, self._header)
        self._replace(slots)
        return label

    def _replace(self, slots: bytes) -> None:
        try:
            replace_keys(self._folder, slots)
        except (OSError, OddFile) as error:
            raise KeysNotWritten(self._what_counts(slots, error)) from error
        self._keys_json = slots

    def _what_counts(self, wanted: bytes, error: OSError | OddFile) -> str:
        why = error.strerror if isinstance(error, OSError) else error
        refused = f"the disk refused a change of the keys ({why})"
        try:
            done = keys_json(self._folder) == wanted
        except (OSError, PixstoreError):
            done = True  # not known, which comes to the same
        if not done:
            return f"{refused}. The keys of the store {self._path} are as before"
        return (
            f"{refused} when it was all but done: the keys of the store {self._path} are the new ones, and "
            "after a power failure they may be the old ones. Keep all secrets until you have seen, after the "
            "next restart of this machine, which of them open it"
        )


def _own(path: str) -> Ownership:
    try:
        return Ownership(path, None)
    except (OSError, StoreNotWritable) as error:
        raise KeysNotWritten(f"the keys of the store {path} are as before: {error}") from None
