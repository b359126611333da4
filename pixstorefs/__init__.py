"""pixstorefs: a store of encrypted images, as a mounted directory and as a Python API.

    with pixstorefs.open_store("store", passphrase="...") as store:
        record = store.save_image(data, directory="2026/holidays")
        store.read_image(record.id)

What the API saves appears in the mount as `<directory>/<id>.<ext>`; what the mount saves is reachable by id.
One process owns a store at a time: the API cannot open one that is mounted, and says where it is.
"""

import os
from typing import TYPE_CHECKING

from pixstorefs.errors import (
    CorruptImage,
    CorruptStore,
    ImageNotFound,
    InvalidInput,
    NewerFormat,
    NoRights,
    NoSpace,
    NotAStore,
    PixstoreError,
    ReadOnlyStore,
    StoreClosed,
    StoreInUse,
    StoreNotWritable,
    WrongInstallation,
    WrongKey,
)
from pixstorefs.records import ImageRecord

if TYPE_CHECKING:
    from pixstorefs.api import ImageStore

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """What is imported only when it is asked for: `import pixstorefs` and the help stay fast."""
        if name == "ImageStore":
            from pixstorefs.api import ImageStore

            return ImageStore
        if name == "__version__":
            return _version()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def open_store(
    path: str | os.PathLike[str],
    *,
    passphrase: str | None = None,
    keyfile: str | os.PathLike[str] | None = None,
    create: bool = True,
    read_only: bool = False,
    padding: bool = True,
    break_lock: bool = False,
) -> "ImageStore":
    """Open a store, creating a missing one (unless `create` is false).

    With neither a passphrase nor a keyfile the store's default keyfile is used, made on first use in the
    user's data directory. `padding` counts only when the store is created. `break_lock`: the owner on
    another machine is gone, and what it had not written yet may be lost.

    Raises NotAStore, WrongKey, StoreInUse, StoreNotWritable, NoRights, NewerFormat, CorruptStore,
    InvalidInput, WrongInstallation, OSError.
    """
    from pixstorefs import api

    return api.open_images(
        path,
        passphrase=passphrase,
        keyfile=keyfile,
        create=create,
        read_only=read_only,
        padding=padding,
        break_lock=break_lock,
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pixstorefs")
    except PackageNotFoundError:  # run from a source tree
        return "(not installed)"


__all__ = [
    "CorruptImage",
    "CorruptStore",
    "ImageNotFound",
    "ImageRecord",
    "ImageStore",
    "InvalidInput",
    "NewerFormat",
    "NoRights",
    "NoSpace",
    "NotAStore",
    "PixstoreError",
    "ReadOnlyStore",
    "StoreClosed",
    "StoreInUse",
    "StoreNotWritable",
    "WrongInstallation",
    "WrongKey",
    "__version__",
    "open_store",
]
