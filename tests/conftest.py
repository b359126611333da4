"""Fixtures for every level: a home of the tests' own, and mounts that are real."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Mount, watched


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests a home of their own: whoever runs them keeps keyfiles, logs and settings in theirs.

    A shell that starts the tests in the background lets them ignore SIGINT, which their children inherit.
    """
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in [name for name in os.environ if name.startswith("XDG_")]:
            patch.delenv(name)
        patch.delenv("PIXSTOREFS_PASSPHRASE", raising=False)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


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
