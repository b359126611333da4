"""--durable-close: what close acknowledged survives a power cut, without any fsync."""

import hashlib
import os

import pytest
from disks import LoopDisk
from support import Mount

IMAGES = 30


@pytest.mark.parametrize("durable", [True, False])
def test_close_is_durable(unmounted: Mount, durable: bool) -> None:
    """The power goes right after thirty saves: all are there with the option, and not all without it."""
    with LoopDisk(unmounted.directory, "ext4", size_mib=256).mounted(unmounted) as disk:
        unmounted.store = disk.path / "store"
        unmounted.mount(*(["--durable-close"] if durable else []))
        daemon = unmounted.pid
        unmounted.expect_log("recovery:")
        contents = {f"{number}.jpg": os.urandom(50_000) for number in range(IMAGES)}
        for name, content in contents.items():
            (unmounted.mountpoint / name).write_bytes(content)
        disk.cut_power()
        unmounted.kill(daemon)
        for path in unmounted.log_paths:
            path.unlink()  # a daemon whose disk is gone complains of everything
        disk.restart()
        unmounted.mount()
        found = {path.name: path.read_bytes() for path in unmounted.mountpoint.iterdir()}
        unmounted.unmount()

    assert all(_digest(found[name]) == _digest(contents[name]) for name in found)
    assert (len(found) == IMAGES) is durable


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
