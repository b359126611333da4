"""What a program sees that opens an image in the very moment in which another one replaces it."""

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import replacing
from support import Mount

DURATION_S = 4.0
READERS = 3
# More names than one readdir reply takes, so that a listing is made of several.
NEIGHBOURS = 150


@pytest.mark.parametrize(
    "writers",
    [["replace"], ["replace-before-close"], ["replace", "replace-before-close"]],
    ids=["saved", "pending", "both"],
)
def test_replaced_image_is_always_there_and_whole(mounted: Mount, writers: list[str]) -> None:
    """By open, stat and readdir; with ENOENT, ESTALE or EIO a gallery would show a hole."""
    for number in range(NEIGHBOURS):
        (mounted.mountpoint / f"neighbour-{number:04}-with-a-long-name.jpg").touch()
    (mounted.mountpoint / replacing.NAME).write_bytes(replacing.content(0))
    end_s = time.monotonic() + DURATION_S
    programs = [
        subprocess.Popen(
            [sys.executable, replacing.__file__, role, mounted.mountpoint, str(end_s)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in [*writers, *["read"] * READERS]
    ]
    counts: Counter[str] = Counter()
    for program in programs:
        output, _ = program.communicate(timeout=60)
        assert program.returncode == 0
        counts.update(json.loads(output))

    print(dict(counts))
    assert counts.pop("replaced") > 50
    assert counts.pop("read") > 500
    assert counts == Counter()


def _look_up(path: Path) -> int:
    """What open(2) does first: the path is walked, the file not opened yet."""
    return os.open(path, os.O_PATH)


def _read_looked_up(descriptor: int) -> bytes:
    """What open(2) does then, and the content."""
    return Path(f"/proc/self/fd/{descriptor}").read_bytes()


@pytest.mark.parametrize("size_bytes", [0, 300_000])
@pytest.mark.parametrize("by", ["rename", "pending", "unlink"])
def test_file_that_loses_its_name_between_lookup_and_open_is_read_whole(
    mounted: Mount, by: str, size_bytes: int
) -> None:
    """As on any file system: what was looked up is what is opened."""
    image, other = mounted.mountpoint / "image.jpg", mounted.mountpoint / "other.jpg"
    old = os.urandom(size_bytes)
    image.write_bytes(old)
    other.write_bytes(b"new")
    mounted.remount()  # nothing is cached, and everything durable
    looked_up = _look_up(image)
    try:
        if by == "rename":
            other.rename(image)
        elif by == "pending":
            with open(mounted.mountpoint / "tmp", "wb") as file:
                os.rename(mounted.mountpoint / "tmp", image)
                file.write(b"new")
        else:
            image.unlink()
        assert _read_looked_up(looked_up) == old
    finally:
        os.close(looked_up)
    if by != "unlink":
        assert image.read_bytes() == b"new"


def test_file_whose_object_is_gone_is_looked_up_again(mounted: Mount) -> None:
    """Too late for the old content: ESTALE makes the kernel walk a path anew; never empty, no EIO."""
    image, other = mounted.mountpoint / "image.jpg", mounted.mountpoint / "other.jpg"
    image.write_bytes(os.urandom(1000))
    other.write_bytes(b"new")
    mounted.remount()
    looked_up = _look_up(image)
    try:
        other.rename(image)
        deadline = time.monotonic() + 30
        while len(list((mounted.store / "objects").glob("*/*"))) > 1:  # until the barrier came by itself
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(OSError) as failure:  # there is no path to walk behind a descriptor
            _read_looked_up(looked_up)
    finally:
        os.close(looked_up)
    assert failure.value.errno == errno.ESTALE
    assert image.read_bytes() == b"new"


def test_file_that_was_never_saved_and_lost_its_name_is_not_opened_empty(mounted: Mount) -> None:
    """Its content went with its last handle; whoever opens it then must not take it for empty."""
    image = mounted.mountpoint / "image.jpg"
    with open(image, "wb", buffering=0) as file:
        file.write(os.urandom(1000))
        looked_up = _look_up(image)
        image.unlink()
    try:
        time.sleep(0.2)  # the kernel tells of the last close after close(2) has returned
        with pytest.raises(OSError) as failure:
            _read_looked_up(looked_up)
    finally:
        os.close(looked_up)
    assert failure.value.errno == errno.ESTALE
