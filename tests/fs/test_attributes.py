"""What stat and getfattr tell, and that it stays the same over remounts: backup tools decide by it."""

import errno
import os
import stat
import threading
from pathlib import Path

import pictures
import pytest
from support import Mount, cannot_run


def _look(path: Path) -> tuple[object, ...]:
    found = os.lstat(path)
    return (found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def test_inodes_and_times_are_stable_over_remounts(mounted: Mount) -> None:
    """Inode number, mode, links, size, mtime and ctime in nanoseconds are the same after another mount."""
    top = mounted.mountpoint
    (top / "album").mkdir()
    (top / "album" / "photo.jpg").write_bytes(pictures.jpeg(1))
    os.link(top / "album" / "photo.jpg", top / "second name.jpg")
    os.symlink("photo.jpg", top / "album" / "link")
    os.mkfifo(top / "pipe")
    os.utime(top / "album" / "photo.jpg", ns=(-1_000_000_001, 1_234_567_890_123_456_789))
    paths = [top, *sorted(top.rglob("*"))]
    before = {path: _look(path) for path in paths}
    order = os.listdir(top)

    mounted.remount()

    assert {path: _look(path) for path in paths} == before
    assert os.listdir(top) == order


def test_times_are_in_the_order_of_events(mounted: Mount) -> None:
    """The kernel stamps what is written, the daemon what is made: neither is ahead of the other.

    `find -newer` a stamp file, and make, would miss what was written at once after it.
    """
    events = []
    for number in range(100):
        path = mounted.mountpoint / f"{number}.jpg"
        path.touch()
        path.with_suffix(".folder").mkdir()
        path.with_suffix(".written").write_bytes(b"written")
        path.with_suffix(".stamp").open("wb").close()
        path.with_suffix(".later").write_bytes(b"later")
        events += [path.with_suffix(f".{name}") for name in ("jpg", "folder", "written", "stamp", "later")]
    times_ns = [path.stat().st_mtime_ns for path in events]
    assert times_ns == sorted(times_ns)


def test_a_header_that_takes_long_keeps_nobody_waiting(mounted: Mount) -> None:
    """While one program asks for a width, others have their requests answered; the width is then missing."""
    slow = mounted.mountpoint / "slow.png"
    slow.write_bytes(pictures.slow_png())
    told: list[int | None] = []

    def ask() -> None:
        try:
            os.getxattr(slow, "user.pixstore.width")
        except OSError as error:
            told.append(error.errno)

    asking = threading.Thread(target=ask)
    asking.start()
    answered = 0
    while asking.is_alive():
        assert not (mounted.mountpoint / f"{answered}.jpg").exists()  # a name the kernel has not cached
        answered += 1
    assert told == [errno.ENODATA]
    assert answered > 10


def test_images_tell_about_themselves(mounted: Mount) -> None:
    """Every regular file has an id and a token, images a format and a size; ids survive, tokens grow."""
    photo = mounted.mountpoint / "photo"
    photo.write_bytes(pictures.jpeg(1))
    notes = mounted.mountpoint / "notes.txt"
    notes.write_bytes(b"no image")
    told = {name: os.getxattr(photo, f"user.pixstore.{name}") for name in ("id", "token", "format")}

    assert len(bytes.fromhex(told["id"].decode())) == 16
    assert told["format"] == b"jpeg"
    assert int(os.getxattr(photo, "user.pixstore.width")) > 0
    assert int(os.getxattr(photo, "user.pixstore.height")) > 0
    assert int(os.getxattr(notes, "user.pixstore.token")) > int(told["token"])
    with pytest.raises(OSError) as missing:
        os.getxattr(notes, "user.pixstore.format")
    assert missing.value.errno == errno.ENODATA

    photo.write_bytes(pictures.jpeg(1))
    photo.rename(mounted.mountpoint / "renamed")
    renamed = mounted.mountpoint / "renamed"
    assert os.getxattr(renamed, "user.pixstore.id") == told["id"]
    assert int(os.getxattr(renamed, "user.pixstore.token")) > int(told["token"])
    assert os.listxattr(renamed) == []
    with pytest.raises(PermissionError):
        os.setxattr(renamed, "user.pixstore.id", b"mine")


def test_files_have_no_selinux_labels_until_one_gets_one(mounted: Mount) -> None:
    """Then `ls -l` asks once and not for every file; programs that have labels can keep them."""
    paths = [mounted.mountpoint / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        path.write_bytes(b"image")
    assert errno_of_label(paths[0]) == errno.EOPNOTSUPP
    with pytest.raises(OSError) as missing:
        os.removexattr(paths[0], "security.selinux")
    # Only who may set an attribute hears whether there is one.
    assert missing.value.errno == (errno.ENODATA if pictures.IS_ROOT else errno.EPERM)
    os.setxattr(paths[0], "user.any", b"value")
    assert [errno_of_label(path) for path in paths] == [errno.ENODATA] * 2
    if pictures.IS_ROOT:
        os.setxattr(paths[0], "security.selinux", b"label")
        assert os.getxattr(paths[0], "security.selinux") == b"label"
    mounted.remount()
    assert errno_of_label(paths[1]) == errno.ENODATA


def errno_of_label(path: Path) -> int | None:
    with pytest.raises(OSError) as failed:
        os.getxattr(path, "security.selinux")
    return failed.value.errno


def test_statfs_tells_the_truth(mounted: Mount) -> None:
    """df shows the disk under the store."""
    inside, below = os.statvfs(mounted.mountpoint), os.statvfs(mounted.store)
    assert (inside.f_frsize, inside.f_blocks, inside.f_namemax) == (below.f_frsize, below.f_blocks, 255)
    assert abs(inside.f_bavail - below.f_bavail) * inside.f_frsize < 1 << 30


def test_holes_take_no_space(mounted: Mount) -> None:
    """A file of 1 TiB with one byte in it closes at once, and stat and the disk say how little it holds."""
    sparse = mounted.mountpoint / "sparse"
    with open(sparse, "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    status = sparse.stat()
    assert status.st_size == 1 << 40
    assert status.st_blocks * 512 <= 1 << 18
    assert stat.S_ISREG(status.st_mode)
    objects = [path for path in (mounted.store / "objects").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in objects) < 1 << 19
    mounted.remount()
    with open(sparse, "rb") as file:
        file.seek((1 << 39) - 2)
        assert file.read(4) == b"\0\0x\0"


def test_writing_drops_privileges(mounted: Mount) -> None:
    """Set-id bits go when somebody writes, at once and for good."""
    program = mounted.mountpoint / "program"
    program.write_bytes(b"trusted")
    program.chmod(0o4755)
    mounted.remount()
    with open(program, "ab", buffering=0) as file:
        file.write(b"!")
        os.fsync(file.fileno())
        assert stat.S_IMODE(program.stat().st_mode) == 0o755
    mounted.remount()
    assert stat.S_IMODE(program.stat().st_mode) == 0o755


@pytest.mark.parametrize("saved", [True, False])
def test_writing_drops_capabilities(mounted: Mount, saved: bool) -> None:
    """So does security.capability, of a file that is saved and of one that never was."""
    if os.geteuid() != 0:
        cannot_run("only root can give capabilities")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    with open(mounted.mountpoint / "program", "wb", buffering=0) as file:
        file.write(b"trusted")
        if saved:
            os.fsync(file.fileno())
        os.setxattr(file.fileno(), "security.capability", capability)
        assert os.getxattr(file.fileno(), "security.capability") == capability
        file.write(b"!")
        os.fsync(file.fileno())
        assert os.listxattr(file.fileno()) == []
    mounted.remount()
    assert os.listxattr(mounted.mountpoint / "program") == []
