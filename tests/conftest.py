"""Fixtures for every level that mounts for real."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Mount, watched


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Mount]:
    """Names for a store and a mountpoint that do not exist yet. Whatever gets mounted is unmounted."""
    with watched(tmp_path) as mount:
        yield mount


@pytest.fixture
def mounted(unmounted: Mount) -> Mount:
    """A fresh store, mounted by the real command in the background."""
    unmounted.mount()
    return unmounted
