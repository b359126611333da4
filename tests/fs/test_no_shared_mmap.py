"""A store on a file system that maps no file for writing: it is one like any other."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Mount, cannot_run


@pytest.fixture
def unmappable(unmounted: Mount) -> Iterator[Mount]:
    """The store will lie on a mergerfs that answers every read and write itself (cache.files=off)."""
    if os.geteuid() != 0:
        cannot_run("mounting a mergerfs for the test needs root")
    if not shutil.which("mergerfs"):
        cannot_run("mergerfs is missing")
    branch, disk = unmounted.directory / "branch", unmounted.directory / "disk"
    branch.mkdir()
    disk.mkdir()
    subprocess.run(["mergerfs", "-o", "cache.files=off", branch, disk], check=True)
    try:
        unmounted.store = disk / "store"
        yield unmounted
        unmounted.close()
    finally:
        unmounted.close()
        subprocess.run(["umount", disk], check=True)


def test_store_on_it(unmappable: Mount) -> None:
    """Saved, killed, recovered, checked beside the mount, and taken as a snapshot: everything is there."""
    content = {f"{number}.jpg": os.urandom(50_000) for number in range(5)}
    unmappable.mount()
    for name, data in content.items():
        (unmappable.mountpoint / name).write_bytes(data)
    unmappable.kill()
    unmappable.mount()
    assert _read(unmappable.mountpoint) == content
    checked = unmappable.run("check", unmappable.store)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    taken = unmappable.directory / "taken"
    result = unmappable.run("snapshot", unmappable.store, taken)
    assert result.returncode == 0, result.stderr
    unmappable.unmount()
    checked = unmappable.run("check", taken)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _read(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
