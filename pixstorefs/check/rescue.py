"""Reading a store whose index cannot be used: the index is restored beside the store, which stays as it is.

What `pixstorefs check --repair` would make of the index is made in a private folder of its own, and opened
for reading only. So whoever wants his images off a failing disk, or wants to look before he repairs, gets
what there is. The pages of that index are as encrypted as every other's; once it is open its file is removed.
"""

import logging
from collections.abc import Callable

from pixstorefs.check.restore import build_index, scratch_folder
from pixstorefs.errors import CorruptStore
from pixstorefs.keys.secrets import Secret
from pixstorefs.printable import ReportLine
from pixstorefs.store.opening import unlock
from pixstorefs.store.store import Store
from pixstorefs.trust.header import read_header

log = logging.getLogger(__name__)


def open_for_reading(path: str, secret: Secret, open_store: Callable[[], Store]) -> Store:
    """What `open_store` opens for reading; where the index cannot be used, with a restored one.

    Raises what `open_store` does; CorruptStore where nothing can be restored either.
    """
    try:
        return open_store()
    except CorruptStore as error:
        try:
            return _with_restored_index(path, secret, str(error))
        except CorruptStore as second:
            log.info("no index can be restored either: %s", second)
            raise error from None


def _with_restored_index(path: str, secret: Secret, reason: str) -> Store:
    header = read_header(path)
    _, key = unlock(path, header, secret)
    with scratch_folder(path) as folder:
        built = build_index(path, key, header.store_id, folder)
        store = Store(
            path,
            header.store_id,
            key,
            ownership=None,
            padding=header.padding,
            read_only=True,
            restored_index=built.path,
        )
    store.report += [
        ReportLine(reason),
        ReportLine("it is shown with an index that was restored beside it"),
        *built.restored.lines(),
    ]
    return store
