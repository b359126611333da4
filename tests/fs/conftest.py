"""What several of these tests begin with."""

import os
from collections.abc import Iterator

import pytest
from sides import Sides
from support import Mount, watched


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """One mount, open to all users, for all cases of a module."""
    directory = tmp_path_factory.mktemp("sides")
    with watched(directory) as mount:
        yield Sides(mount, directory / "plain")


@pytest.fixture(scope="module")
def private_sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """The same with a mount of root's for nobody else, in which the kernel checks no modes."""
    directory = tmp_path_factory.mktemp("private_sides")
    with watched(directory) as mount:
        yield Sides(mount, directory / "plain", private=True)


@pytest.fixture
def album(mounted: Mount) -> Mount:
    """A mounted store with images in two folders."""
    for folder in ("2025", "2026/holidays"):
        (mounted.mountpoint / folder).mkdir(parents=True)
        for number in range(5):
            (mounted.mountpoint / folder / f"{number}.jpg").write_bytes(os.urandom(200_000))
    return mounted
