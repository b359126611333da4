"""Many programs at once: nobody sees half of anything, and the end is what each of them did."""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import Mount
from trees import assert_same

WORKERS = 8
OPERATIONS = 150
DURATION_S = 3.0
_DIGEST_SIZE_BYTES = 32


def in_parallel(*work: Callable[[], None]) -> None:
    """Run all of it at once; raises what any of it raised. The calls we make give the interpreter free."""
    start = threading.Barrier(len(work))

    def run(one: Callable[[], None]) -> None:
        start.wait()
        one()

    with ThreadPoolExecutor(len(work)) as pool:
        for future in [pool.submit(run, one) for one in work]:
            future.result()


def worker(root: Path, number: int) -> None:
    """A fixed sequence of changes to files of this worker's own, in directories that all workers share."""
    source = random.Random(number)
    folders = [root / name for name in ("a", "b", "a/deep")]
    mine: list[Path] = []

    def new_path() -> Path:
        return source.choice(folders) / f"{number}-{source.randrange(10**6)}.jpg"

    for _ in range(OPERATIONS):
        action = source.choice(
            ("write",) * 4 + ("replace", "append", "patch", "rename", "over", "link", "delete")
        )
        content = source.randbytes(source.choice((0, 100, 5000, 140_000, 600_000)))
        if action == "write" or len(mine) < 3:
            path = new_path()
            path.write_bytes(content)
            if path not in mine:
                mine.append(path)
            continue
        path = source.choice(mine)
        if action == "replace":
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
        elif action == "append":
            with open(path, "ab") as file:
                file.write(content)
        elif action == "patch":
            with open(path, "r+b") as file:
                file.seek(source.randrange(200_000))
                file.write(content)
                file.truncate(source.randrange(300_000))
        elif action == "delete":
            path.unlink()
            mine.remove(path)
        else:
            target = source.choice(mine) if action == "over" else new_path()
            if target == path or (action == "link" and target in mine):
                continue
            if action == "link":
                os.link(path, target)
            else:
                path.replace(target)
                # Two names of one file: rename(2) then leaves both.
                if not path.exists():
                    mine.remove(path)
            if target not in mine:
                mine.append(target)


def test_eight_workers_do_what_they_do_on_the_disk(mounted: Mount) -> None:
    """Each worker's files depend on it alone, so one after the other on the disk gives the same tree."""
    on_disk, on_mount = mounted.directory / "album", mounted.mountpoint / "album"
    for root in (on_disk, on_mount):
        (root / "a" / "deep").mkdir(parents=True)
        (root / "b").mkdir()
    in_parallel(*[lambda number=number: worker(on_mount, number) for number in range(WORKERS)])
    for number in range(WORKERS):
        worker(on_disk, number)
    assert len(list(on_disk.rglob("*.jpg"))) > 100
    assert_same(on_mount, on_disk, times=False)
    mounted.remount()
    assert_same(on_mount, on_disk, times=False)


def signed(number: int, turn: int, size_bytes: int) -> bytes:
    """Content that shows whether it is whole, and which one it is."""
    body = number.to_bytes(4, "big") + turn.to_bytes(4, "big") + bytes([turn % 251]) * size_bytes
    return hashlib.sha256(body).digest() + body


def check_signed(content: bytes) -> tuple[int, int]:
    """Raises AssertionError where it is not one whole version; returns who wrote it and when."""
    digest, body = content[:_DIGEST_SIZE_BYTES], content[_DIGEST_SIZE_BYTES:]
    assert hashlib.sha256(body).digest() == digest, f"half a version: {len(content)} bytes"
    return int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")


class Crowd:
    """Three replace, two read, two move, one lists, for some seconds, all in the same two directories."""

    def __init__(self, mount: Mount) -> None:
        self.here, self.there = mount.mountpoint / "here", mount.mountpoint / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.deadline = time.monotonic() + DURATION_S
        self.last_turn: dict[int, int] = {}
        self.reads = 0
        self.moves = 0
        self.listings = 0
        for number in range(4):
            (self.here / f"moving-{number}.jpg").write_bytes(signed(100 + number, 0, 50_000))
        for number in range(3):
            (self.here / f"{number}.jpg").write_bytes(signed(number, 0, 10))

    def replace(self, number: int) -> None:
        """Save over one name again and again, as careful programs do."""
        turn = 0
        sizes = random.Random(number)
        while time.monotonic() < self.deadline:
            turn += 1
            temporary = self.here / f".{number}.tmp"
            temporary.write_bytes(signed(number, turn, sizes.choice((1, 4000, 130_000, 400_000))))
            temporary.replace(self.here / f"{number}.jpg")
        self.last_turn[number] = turn

    def read(self) -> None:
        """Every version that is opened by its name is whole, and they only go forward."""
        seen: dict[int, int] = {}
        while time.monotonic() < self.deadline:
            for number in range(3):
                writer, turn = check_signed((self.here / f"{number}.jpg").read_bytes())
                assert writer == number
                assert turn >= seen.get(number, 0)
                seen[number] = turn
                self.reads += 1
        assert len(seen) == 3

    def move(self, numbers: tuple[int, ...]) -> None:
        """Back and forth between two directories."""
        sides = (self.here, self.there)
        while time.monotonic() < self.deadline:
            for number in numbers:
                name = f"moving-{number}.jpg"
                (sides[0] / name).rename(sides[1] / name)
                assert check_signed((sides[1] / name).read_bytes()) == (100 + number, 0)
                self.moves += 1
            sides = (sides[1], sides[0])

    def list(self) -> None:
        """What is replaced in place is always listed, and once. What comes and goes may be missed or not."""
        while time.monotonic() < self.deadline:
            names = os.listdir(self.here)
            assert [names.count(f"{number}.jpg") for number in range(3)] == [1, 1, 1]
            self.listings += 1


def test_readers_see_whole_versions(mounted: Mount) -> None:
    crowd = Crowd(mounted)
    in_parallel(
        *[lambda number=number: crowd.replace(number) for number in range(3)],
        crowd.read,
        crowd.read,
        lambda: crowd.move((0, 1)),
        lambda: crowd.move((2, 3)),
        crowd.list,
    )
    assert min(crowd.reads, crowd.moves, crowd.listings, *crowd.last_turn.values()) > 5, vars(crowd)
    mounted.remount()
    for number in range(3):
        content = (crowd.here / f"{number}.jpg").read_bytes()
        assert check_signed(content) == (number, crowd.last_turn[number])
    moved = [path for folder in (crowd.here, crowd.there) for path in folder.glob("moving-*")]
    assert sorted(path.name for path in moved) == [f"moving-{number}.jpg" for number in range(4)]
    for path in moved:
        assert check_signed(path.read_bytes())[1] == 0
    assert not list(crowd.here.glob(".*.tmp"))


@pytest.mark.parametrize("size_bytes", [3000, 500_000])
def test_writers_of_one_file_do_not_mix_versions(mounted: Mount, size_bytes: int) -> None:
    """Eight programs write their own part of one open file; every part arrives."""
    path = mounted.mountpoint / "shared.tiff"
    path.write_bytes(bytes(WORKERS * size_bytes))

    def fill(number: int) -> None:
        with open(path, "r+b", buffering=0) as file:
            for offset in range(0, size_bytes, 1000):
                file.seek(number * size_bytes + offset)
                file.write(bytes([65 + number]) * 1000)

    in_parallel(*[lambda number=number: fill(number) for number in range(WORKERS)])
    expected = b"".join(bytes([65 + number]) * size_bytes for number in range(WORKERS))
    assert path.read_bytes() == expected
    mounted.remount()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("replaced", ["first.jpg", "last.jpg"])
def test_a_name_replaced_during_a_listing_is_listed_once(mounted: Mount, replaced: str) -> None:
    """It keeps its place: neither does it come again behind the reader, nor move to where he has been."""
    others = [f"{number:04}{'x' * 100}.jpg" for number in range(2000)]
    for name in ("early.tmp", "first.jpg", *others, "last.jpg", "late.tmp"):
        (mounted.mountpoint / name).touch()
    with os.scandir(mounted.mountpoint) as entries:
        names = [next(entries).name]
        for temporary in ("early.tmp", "late.tmp"):
            (mounted.mountpoint / temporary).replace(mounted.mountpoint / replaced)
        names += [entry.name for entry in entries]
    assert names.count(replaced) == 1
    assert sorted(set(names) - {"early.tmp", "late.tmp"}) == sorted([*others, "first.jpg", "last.jpg"])
