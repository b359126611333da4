"""Fixtures of the tests of the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import SMALL_JOURNAL_SIZE_BYTES, Place

from pixstorefs.api import ImageStore
from pixstorefs.objects import journal


@pytest.fixture(autouse=True)
def _small_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """New stores get a small journal. That of the usual size is tested in tests/unit."""
    monkeypatch.setattr(journal, "JOURNAL_SIZE_BYTES", SMALL_JOURNAL_SIZE_BYTES)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a store will be; nothing is there yet but the keyfile."""
    return Place(tmp_path)


@pytest.fixture
def images(place: Place) -> Iterator[ImageStore]:
    """An open, empty store."""
    with place.open() as store:
        yield store
