"""The daemon's memory does not grow with the images: large ones go through it in pieces."""

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import run
from support import Mount

LIMIT_BYTES = 200 << 20
_MIB = 1 << 20


def peak_bytes(mount: Mount) -> int:
    """The most memory that the daemon ever had."""
    status = Path(f"/proc/{mount.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def assert_little_memory(mount: Mount) -> None:
    peak = peak_bytes(mount)
    assert peak < LIMIT_BYTES, f"the daemon took {peak / _MIB:.0f} MiB"


@pytest.fixture
def roomy(mounted: Mount) -> Iterator[Mount]:
    """A mount whose large files do not stay on the disk when the test is over."""
    yield mounted
    for folder in (mounted.mountpoint, mounted.directory):
        for path in folder.glob("*.large"):
            path.unlink()
    mounted.unmount()


def make_large(path: Path, size_bytes: int) -> None:
    """A file without two equal blocks, that compresses not at all and is made quickly."""
    block = random.Random(1).randbytes(_MIB - 8)
    with open(path, "wb") as file:
        for number in range(size_bytes // _MIB):
            file.write(number.to_bytes(8, "big") + block)


def dd(source: Path, target: Path, *options: str) -> None:
    run("dd", f"if={source}", f"of={target}", "status=none", *options)


@pytest.mark.parametrize(
    "size_mib", [256, pytest.param(2048, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_writing_and_reading_front_to_back(roomy: Mount, size_mib: int) -> None:
    source, inside, back = (
        roomy.directory / "in.large",
        roomy.mountpoint / "in.large",
        roomy.directory / "out.large",
    )
    make_large(source, size_mib * _MIB)
    dd(source, inside, "bs=1M")
    assert_little_memory(roomy)
    roomy.remount()
    dd(inside, back, "bs=1M")
    assert_little_memory(roomy)
    run("cmp", back, source)


@pytest.mark.parametrize(
    "size_mib", [128, pytest.param(1024, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_overwriting_in_random_order(roomy: Mount, size_mib: int) -> None:
    """All of a saved image replaced piece by piece, the same on the disk."""
    on_disk, on_mount = roomy.directory / "disk.large", roomy.mountpoint / "mount.large"
    make_large(on_disk, size_mib * _MIB)
    dd(on_disk, on_mount, "bs=1M")
    source = random.Random(2)
    pieces = list(range(size_mib * 8))
    source.shuffle(pieces)
    files = [os.open(path, os.O_RDWR) for path in (on_disk, on_mount)]
    for piece in pieces:
        # Mostly whole segments, some that straddle two and some smaller than a page.
        offset, data = piece << 17, source.randbytes(1 << source.choice((17, 17, 17, 9)))
        offset += source.choice((0, 0, 0, 70_001)) if piece + 1 < len(pieces) else 0
        for file in files:
            os.pwrite(file, data, offset)
    for file in files:
        os.close(file)
    assert_little_memory(roomy)
    run("cmp", on_disk, on_mount)
    roomy.remount()
    run("cmp", on_disk, on_mount)
    assert_little_memory(roomy)


def test_many_large_files_open_at_once(roomy: Mount) -> None:
    """Drafts share one bound: twelve of them, each more than its share, written in turns and backwards."""
    source = random.Random(3)
    blocks = [source.randbytes(1 << 17) for _ in range(16)]
    paths = [roomy.mountpoint / f"{number}.large" for number in range(12)]
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    for segment in reversed(range(128)):
        for number, file in enumerate(files):
            os.pwrite(file, blocks[(segment + number) % 16], segment << 17)
    for file in files:
        os.close(file)
    assert_little_memory(roomy)
    roomy.remount()
    for number, path in enumerate(paths):
        assert path.read_bytes() == b"".join(blocks[(segment + number) % 16] for segment in range(128))
    assert_little_memory(roomy)


def test_a_huge_hole(roomy: Mount) -> None:
    """A terabyte of nothing with a few bytes in it costs neither memory nor room nor time."""
    path = roomy.mountpoint / "hole.large"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 39) + 12345)
        file.write(b"somewhere in the middle")
    roomy.remount()
    with open(path, "rb") as file:
        file.seek((1 << 39) + 12340)
        assert file.read(30) == bytes(5) + b"somewhere in the middle" + bytes(2)
        file.seek(-5, os.SEEK_END)
        assert file.read() == bytes(5)
    assert path.stat().st_blocks * 512 < _MIB
    assert_little_memory(roomy)
