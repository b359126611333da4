"""The lock decides who owns a store; what is written into it is for messages only."""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest
from stores import Place

from pixstorefs.disk import lock_file
from pixstorefs.disk.folder import Folder
from pixstorefs.disk.hold import held, unless_held
from pixstorefs.trust.header import create_store, require_nobody_makes

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


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


@contextlib.contextmanager
def living_child() -> Iterator[None]:
    """A child, forked now, that does nothing until the block ends."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    try:
        yield
    finally:
        os.close(write)
        assert os.waitpid(pid, 0)[1] == 0


def test_lock_ends_with_its_owner(place: Place) -> None:
    """A child that was forked while a store was locked neither keeps nor ends the lock."""
    place.path.mkdir()
    owner = lock_file.Ownership(str(place.path), None)
    with living_child(), pytest.raises(lock_file.StoreInUse):
        lock_file.Ownership(str(place.path), None)
    with pytest.raises(lock_file.StoreInUse):
        lock_file.Ownership(str(place.path), None)
    with living_child():
        owner.release()
        lock_file.Ownership(str(place.path), None).release()


def test_holds_end_with_their_owner(place: Place) -> None:
    """The same of a snapshot's hold, and of the owner who unlinks or empties its log."""
    place.path.mkdir()
    with contextlib.closing(Folder.at(str(place.path))) as folder:
        for hold in (unless_held, held):
            with contextlib.ExitStack() as children:
                with hold(folder, "hold"):
                    children.enter_context(living_child())
                with unless_held(folder, "hold") as free:
                    assert free


def test_claim_on_a_directory_ends_with_its_owner(place: Place) -> None:
    """The same of the directory that becomes a store."""
    with contextlib.ExitStack() as children:

        def refuse(store_id: bytes) -> NoReturn:
            children.enter_context(living_child())
            raise InterruptedError

        with pytest.raises(InterruptedError):
            create_store(str(place.path), refuse)
        require_nobody_makes(str(place.path))
