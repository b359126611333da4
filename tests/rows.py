"""Changing rows of an index behind the back of its store: damage as a mistake of ours would leave it."""

import os
from contextlib import closing

import apsw

from pixstorefs.disk.folder import Folder
from pixstorefs.index import database as index_database
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.trust.barrier_record import remove_record
from pixstorefs.trust.header import INDEX_PURPOSE, keys_json, read_header


def change_rows(store: str | os.PathLike[str], secret: Secret, *statements: str) -> None:
    """Run statements in the index of a store that nobody has open; each has to change something."""
    path = os.fspath(store)
    header = read_header(path)
    master_key = keyring.unlock(keys_json(path), secret, header.raw)
    key = keyring.derive(master_key, header.store_id, INDEX_PURPOSE)
    db = index_database.connect(os.path.join(path, "index.db"), key)
    try:
        for statement in statements:
            db.execute(statement).fetchall()
            assert db.changes(), f"the test changes nothing: {statement}"
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        db.close()
    # A mistake of ours would have written down what it left.
    with closing(Folder.at(path)) as folder:
        remove_record(folder)
