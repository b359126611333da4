"""`snapshot.json`: what makes a directory a snapshot, of which store, and how far the last run got.

It is the first file of a new snapshot and the last one that a run writes, so an interrupted run is told from
a finished one. It also tells whether who mounted the snapshot changed it since: see `index.digest`.
"""

import json
import os
from dataclasses import dataclass

from pixstorefs.disk.folder import Folder
from pixstorefs.errors import CorruptStore

RECORD_FILE = "snapshot.json"
_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """`digests`: of the index in place; while one replaces another, of both; none before the first."""

    store_id: bytes
    digests: tuple[str, ...] = ()
    finished: bool = False


def read_record(folder: Folder) -> SnapshotRecord | None:
    """The record of a snapshot, None where there is none. Raises CorruptStore, OddFile, OSError."""
    try:
        fields = json.loads(folder.read(RECORD_FILE, _LIMIT_BYTES))
        digests = tuple(map(str, fields["digests"]))
        return SnapshotRecord(bytes.fromhex(fields["store_id"]), digests, fields["finished"] is True)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptStore(
            f"{os.path.join(folder.path, RECORD_FILE)} is damaged, so nobody can tell what the snapshot "
            "holds. Nothing was changed; "
            "take the snapshot in another place, and remove this one when that is done"
        ) from None


def write_record(folder: Folder, record: SnapshotRecord) -> None:
    """Replace the record, durably. Raises OSError."""
    fields = {
        "store_id": record.store_id.hex(),
        "digests": list(record.digests),
        "finished": record.finished,
    }
    folder.replace(RECORD_FILE, json.dumps(fields, indent=1).encode() + b"\n")


def is_unfinished(folder: Folder) -> bool:
    """Whether a run that was to make or renew the snapshot in a folder has not come to its end."""
    try:
        record = read_record(folder)
    except (CorruptStore, OSError):
        return False
    return record is not None and not record.finished
