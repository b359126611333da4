"""What is locked stays in the page cache; what may not be locked is said so."""

import os
import resource
from pathlib import Path

from support import cannot_run

from pixstorefs.disk.page_lock import PageLock


def test_lock_that_is_not_allowed(tmp_path: Path) -> None:
    """Somebody without the right to it, and what is no file."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    lock = PageLock()
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with open(path, "rb") as file:
        if not lock.hold(file.fileno(), 100_000):
            cannot_run("no memory may be locked here (RLIMIT_MEMLOCK)")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, limits[1]))
        uid = os.geteuid()
        try:
            if uid == 0:
                os.seteuid(65534)
            assert not lock.hold(file.fileno(), 100_000)
        finally:
            os.seteuid(uid)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
        assert lock.hold(file.fileno(), 4096)
    assert not lock.hold(-1, 4096)
    lock.release()


def test_file_may_shrink(tmp_path: Path) -> None:
    """The index's log is truncated by SQLite, which knows nothing of the lock."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    lock = PageLock()
    with open(path, "r+b") as file:
        if not lock.hold(file.fileno(), 100_000):
            cannot_run("no memory may be locked here (RLIMIT_MEMLOCK)")
        os.truncate(path, 0)
        file.write(b"anew")
        file.flush()
        assert path.read_bytes() == b"anew"
        assert lock.hold(file.fileno(), 4)
    lock.release()
