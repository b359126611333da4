"""The lock decides who owns a store; what is written into it is for messages only."""

import errno
import os

import pytest
from stores import Place

from pixstorefs.disk import lock_file


@pytest.fixture
def refusing_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which the lock file cannot be written."""

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock_file.os, "ftruncate", refuse)
    monkeypatch.setattr(lock_file.os, "pwrite", refuse)


@pytest.mark.usefixtures("refusing_disk")
def test_the_lock_is_what_counts(place: Place) -> None:
    """A lock file that cannot be written neither keeps a store closed nor keeps it locked afterwards."""
    place.path.mkdir()
    owner = lock_file.Ownership(str(place.path), None)
    with pytest.raises(lock_file.StoreInUse):
        lock_file.Ownership(str(place.path), None)
    owner.release()
    lock_file.Ownership(str(place.path), None).release()
