"""Fixtures for comparing a mount with a plain directory."""

from collections.abc import Iterator

import pytest
from sides import Sides
from support import watched


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """One mount, open to all users, for all cases of a module."""
    directory = tmp_path_factory.mktemp("sides")
    with watched(directory) as mount:
        yield Sides(mount, directory / "plain")
