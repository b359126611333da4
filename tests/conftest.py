"""Fixtures for every level that mounts for real."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Mount


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[Mount]:
    """Names for a store and a mountpoint that do not exist yet. Whatever gets mounted is unmounted.

    A warning or error in the log that the test did not declare by `expect_log` fails it.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this machine has no usable /dev/fuse")
    mount = Mount(tmp_path)
    try:
        yield mount
    finally:
        mount.close()
    complaints = mount.complaints()
    assert not complaints, "the daemon complained:\n" + "\n".join(complaints)


@pytest.fixture
def mounted(unmounted: Mount) -> Mount:
    """A fresh store, mounted by the real command in the background."""
    unmounted.mount()
    return unmounted
