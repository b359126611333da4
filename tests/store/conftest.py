"""Fixtures of the tests of the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import Place

from pixstorefs.api import ImageStore


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a store will be; nothing is there yet but the keyfile."""
    return Place(tmp_path)


@pytest.fixture
def images(place: Place) -> Iterator[ImageStore]:
    """An open, empty store."""
    with place.open() as store:
        yield store
