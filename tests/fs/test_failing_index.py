"""An index that cannot be written any more: the mount becomes read-only and says so, and nothing hangs."""

import errno
import os

import pytest
from disks import LoopDisk
from support import Mount, wait_until_gone


def test_mount_becomes_read_only_when_its_index_fails(unmounted: Mount) -> None:
    """The disk refuses writes: all changes fail, with EROFS from the second on; reading goes on."""
    with LoopDisk(unmounted.directory, "ext4", size_mib=64).mounted(unmounted) as disk:
        unmounted.store = disk.path / "store"
        unmounted.mount()
        pid = unmounted.pid
        image = unmounted.mountpoint / "image.jpg"
        image.write_bytes(b"saved")
        unsynced = os.open(image, os.O_RDONLY)
        os.fsync(unsynced)
        os.close(unsynced)
        for expected in ("Nothing more is written", "could not be made durable", "could not be saved"):
            unmounted.expect_log(expected)
        unmounted.expect_log("mkdir: ")

        disk.refuse_writes()

        errors = []
        for number in range(3):
            with pytest.raises(OSError) as failure:
                (unmounted.mountpoint / f"directory-{number}").mkdir()
            errors.append(failure.value.errno)
        assert errors == [errno.EIO, errno.EROFS, errno.EROFS]
        assert image.read_bytes() == b"saved"
        assert sorted(os.listdir(unmounted.mountpoint)) == ["image.jpg"]
        assert unmounted.log_text().count("Nothing more is written") == 1

        assert unmounted.run("umount", unmounted.mountpoint).returncode == 1
        wait_until_gone(pid)
        disk.restart()
        unmounted.mount()
        assert image.read_bytes() == b"saved"
        (unmounted.mountpoint / "directory").mkdir()
        unmounted.unmount()


def test_fsync_that_failed_fails_again(unmounted: Mount) -> None:
    """What could not be made durable is told by every fsync from then on, not only by the first."""
    with LoopDisk(unmounted.directory, "ext4", size_mib=64).mounted(unmounted) as disk:
        unmounted.store = disk.path / "store"
        unmounted.mount()
        pid = unmounted.pid
        for expected in (
            "Nothing more is written",
            "could not be made durable",
            "could not be saved",
            "was not saved",
        ):
            unmounted.expect_log(expected)
        descriptor = os.open(unmounted.mountpoint / "image.jpg", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, b"x" * 300_000)

        disk.refuse_writes()

        for _ in range(3):
            with pytest.raises(OSError, match=r"Input/output|Read-only"):
                os.fsync(descriptor)
        os.close(descriptor)  # asks for nothing that the disk would have to do
        assert unmounted.run("umount", unmounted.mountpoint).returncode == 1
        wait_until_gone(pid)
        disk.restart()
        unmounted.mount()
        assert os.listdir(unmounted.mountpoint) == []
        unmounted.unmount()
