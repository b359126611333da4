"""A snapshot to a file system that cannot hold it: the place is blamed, not the store."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from stores import Place, check_store, image, save_file, take_snapshot
from support import cannot_run, program

from pixstorefs.errors import SnapshotFailed, StoreNotWritable
from pixstorefs.objects import transfer

# Above what the index and its log take.
_LARGEST_FILE_SIZE_BYTES = 16 << 20


@pytest.fixture
def filled(place: Place) -> Place:
    """A closed store with a small image and one above the limit."""
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "small.jpg", lambda draft: draft.write(0, image(1000)))
        save_file(store, "panorama.tiff", lambda draft: draft.write(0, image(_LARGEST_FILE_SIZE_BYTES)))
    return place


@contextmanager
def _front_to_back_only(folder: Path) -> Iterator[Path]:
    """A file system that refuses writes in the middle of a file."""
    if shutil.which("rclone") is None or os.geteuid() != 0:
        cannot_run("needs rclone, and root to mount it")
    behind, mountpoint = folder / "behind", folder / "front"
    behind.mkdir()
    mountpoint.mkdir()
    words = [program("rclone"), "mount", "--vfs-cache-mode", "off", "--config", "/dev/null", "--daemon"]
    subprocess.run([*words, behind, mountpoint], check=True, capture_output=True)
    try:
        yield mountpoint
    finally:
        subprocess.run([program("umount"), mountpoint], check=True)


def test_a_place_that_cannot_be_written_at_random_is_blamed(filled: Place, tmp_path: Path) -> None:
    """Not with the class for a damaged store, and with what helps."""
    with _front_to_back_only(tmp_path) as place:
        with pytest.raises(SnapshotFailed, match="front to back") as failure:
            take_snapshot(filled, place / "taken")
        assert str(place / "taken") in str(failure.value)
    assert check_store(filled, filled.path) == []


def test_a_store_in_such_a_place_is_refused(tmp_path: Path) -> None:
    """It is not called damaged, nothing of it is left, and the message says what helps."""
    with _front_to_back_only(tmp_path) as mountpoint:
        place = Place(tmp_path)  # which has the keyfile, on a disk that takes one
        place.path = mountpoint / "store"
        with pytest.raises(StoreNotWritable, match="--vfs-cache-mode writes"):
            place.open()
        assert not place.path.exists() or os.listdir(place.path) == []


def test_an_image_that_is_too_large_for_the_place_is_named(
    filled: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can only be copied. A limit of the process stands for that of FAT32."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(transfer, "_link", refuse)
    monkeypatch.setattr(transfer, "_clone", refuse)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE_SIZE_BYTES, before[1]))
    try:
        with pytest.raises(SnapshotFailed, match=r"failed at panorama\.tiff: .* 4 GiB"):
            take_snapshot(filled, tmp_path / "taken")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert take_snapshot(filled, tmp_path / "taken").images == 2
