"""Where this user had a store: a missing one is then on a disk that is absent, rather than to be made.

One small file for each path in the state directory, beside the logs, which name the same paths. A default
keyfile would not do for a record: it is called by the id of its store and tells no path.
"""

import hashlib
import os


def remember(path: str) -> None:
    """Note that there is a store at this real path. Where the home cannot be written nothing is noted."""
    record = _record(path)
    if os.path.exists(record):
        return
    try:
        os.makedirs(os.path.dirname(record), mode=0o700, exist_ok=True)
        with open(record, "wb") as file:
            file.write(os.fsencode(path) + b"\n")
    except OSError:
        pass


def had(path: str) -> bool:
    """Whether this user ever made or mounted a store at this real path."""
    return os.path.exists(_record(path))


def _record(path: str) -> str:
    from pixstorefs.daemon import logs

    return os.path.join(logs.directory(), "stores", hashlib.sha256(os.fsencode(path)).hexdigest()[:32])
