"""A disk that loses or changes one object costs that image and nothing else."""

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pictures
import pytest
from programs import run
from rows import change_rows
from support import Mount
from trees import assert_same, describe

from pixstorefs.keys.secrets import secret_from_keyfile

NAME = "Größe — damaged.jpg"
SEGMENT_SIZE_BYTES = 1 << 17


def flip(path: Path, offset: int) -> None:
    """Change one bit; a negative offset counts from the end."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def swap(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


# How an object can be hurt; a keyword for the ids of the tests.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "a byte of the content": lambda path: flip(path, 5000),
    "last byte of the content": lambda path: flip(path, -17),
    "last tag": lambda path: flip(path, -1),
    "cut by one byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "all zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
}


def objects(mount: Mount) -> set[Path]:
    return {path for path in (mount.store / "objects").rglob("*") if path.is_file()}


def copy_album(mount: Mount) -> None:
    """Many images that are not to be damaged."""
    pictures.make_album(mount.directory / "album")
    subprocess.run(["cp", "-a", mount.directory / "album", mount.mountpoint / "album"], check=True)


def assert_album_is_whole(mount: Mount) -> None:
    assert_same(mount.mountpoint / "album", mount.directory / "album")


def save(mount: Mount, name: str, content: bytes) -> Path:
    """Write an image and return its object."""
    before = objects(mount)
    (mount.mountpoint / name).write_bytes(content)
    [added] = objects(mount) - before
    return added


@pytest.fixture
def victim(mounted: Mount) -> Path:
    """The object of the one image that will be damaged, in an unmounted store with many others."""
    copy_album(mounted)
    stored = save(mounted, NAME, pictures.jpeg(8, (500, 400)))
    mounted.unmount()
    return stored


def assert_eio(action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno == errno.EIO


def test_only_the_damaged_images_are_lost(mounted: Mount) -> None:
    """One image for each kind of damage, among others."""
    copy_album(mounted)
    stored = {
        name: save(mounted, f"{name}.jpg", pictures.jpeg(number, (500, 400)))
        for number, name in enumerate(DAMAGES)
    }
    mounted.unmount()
    for name, damage in DAMAGES.items():
        damage(stored[name])
    mounted.mount()
    for number, name in enumerate(DAMAGES):
        path = mounted.mountpoint / f"{name}.jpg"
        label = f"inode {path.stat().st_ino} "
        mounted.expect_log(label)
        assert_eio(path.read_bytes)
        complaints = [line for line in mounted.log_text().splitlines() if label in line]
        assert complaints, "no line in the log tells of the image"
        assert " ERROR " in complaints[0]
        assert "damaged" in complaints[0]
        # What is known without the object is still told.
        assert path.stat().st_size == len(pictures.jpeg(number, (500, 400)))
    assert_album_is_whole(mounted)
    copied = mounted.directory / "copied"
    result = subprocess.run(
        ["cp", "-a", mounted.mountpoint, copied], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("Input/output error") == len(DAMAGES)
    assert_same(copied / "album", mounted.directory / "album")


@pytest.mark.parametrize("damage", ["a byte of the content", "missing"])
def test_a_damaged_image_can_be_moved_changed_and_deleted(mounted: Mount, victim: Path, damage: str) -> None:
    DAMAGES[damage](victim)
    mounted.mount()
    path, moved = mounted.mountpoint / NAME, mounted.mountpoint / "moved.jpg"
    mounted.expect_log(f"inode {path.stat().st_ino} ")
    link = mounted.mountpoint / "link of moved.jpg"

    path.rename(moved)
    moved.chmod(0o600)
    os.utime(moved, ns=(1, 2))
    os.setxattr(moved, "user.note", b"restore me")
    os.link(moved, link)
    assert_eio(link.read_bytes)
    # A change of a part needs the rest, which is lost; the change is refused and the image as bad as before.
    assert_eio(lambda: patch(moved))
    link.unlink()
    mounted.remount()
    assert_eio(moved.read_bytes)
    assert os.getxattr(moved, "user.note") == b"restore me"

    # A new content heals it.
    moved.write_bytes(b"restored")
    assert moved.read_bytes() == b"restored"
    mounted.remount()
    assert moved.read_bytes() == b"restored"
    moved.unlink()
    mounted.remount()
    assert not moved.exists()
    assert_album_is_whole(mounted)


def patch(path: Path) -> None:
    """Change one byte and wait until it is stored; which of the calls fails is the kernel's business."""
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x")
        os.fsync(file.fileno())


@pytest.mark.parametrize("damage", ["last tag", "missing"])
def test_deleting_and_replacing_a_damaged_image(mounted: Mount, victim: Path, damage: str) -> None:
    DAMAGES[damage](victim)
    mounted.mount()
    mounted.expect_log("was damaged before")
    path, other = mounted.mountpoint / NAME, mounted.mountpoint / "other.jpg"
    other.write_bytes(b"other")
    other.rename(path)
    assert path.read_bytes() == b"other"
    path.unlink()
    mounted.unmount()
    assert victim not in objects(mounted)
    mounted.mount()
    assert [entry.name for entry in mounted.mountpoint.iterdir()] == ["album"]


def test_deleting_a_damaged_image_that_is_open(mounted: Mount, victim: Path) -> None:
    DAMAGES["missing"](victim)
    mounted.mount()
    mounted.expect_log("damaged")
    with open(mounted.mountpoint / NAME, "rb") as file:
        (mounted.mountpoint / NAME).unlink()
        assert_eio(file.read)
    assert not (mounted.mountpoint / NAME).exists()
    run("ls", "-la", mounted.mountpoint)


def test_two_objects_swapped(mounted: Mount) -> None:
    """Each is whole in itself, but neither belongs where it lies now."""
    names = ["one.jpg", "two.jpg"]
    for name in names:
        (mounted.mountpoint / name).write_bytes(name.encode() * 1000)
    mounted.unmount()
    swap(*objects(mounted))
    mounted.mount()
    for name in names:
        mounted.expect_log(f"inode {(mounted.mountpoint / name).stat().st_ino} ")
        assert_eio((mounted.mountpoint / name).read_bytes)


def test_an_old_version_put_back(mounted: Mount) -> None:
    """Somebody who may write the store plays an earlier object into the place of the present one."""
    path = mounted.mountpoint / "photo.jpg"
    path.write_bytes(b"old" * 1000)
    mounted.unmount()
    [old] = objects(mounted)
    kept = old.read_bytes()
    mounted.mount()
    path.write_bytes(b"new" * 1000)
    mounted.unmount()
    [new] = objects(mounted)
    new.write_bytes(kept)
    mounted.mount()
    mounted.expect_log(f"inode {path.stat().st_ino} ")
    assert_eio(path.read_bytes)


def test_undamaged_segments_stay_readable(mounted: Mount) -> None:
    """What matches its tag is given out: most of a large scan can be saved from a bad sector."""
    content = os.urandom(20 * SEGMENT_SIZE_BYTES)
    path = mounted.mountpoint / "scan.tiff"
    path.write_bytes(content)
    mounted.unmount()
    [stored] = objects(mounted)
    flip(stored, 10 * SEGMENT_SIZE_BYTES)
    mounted.mount()
    mounted.expect_log(f"inode {path.stat().st_ino} ")
    damaged = []
    with open(path, "rb", buffering=0) as file:
        for segment in range(20):
            try:
                assert (
                    os.pread(file.fileno(), 1 << 17, segment << 17)
                    == content[segment << 17 : segment + 1 << 17]
                )
            except OSError as error:
                damaged.append((segment, error.errno))
    assert damaged == [(9, errno.EIO)]


def test_damage_behind_a_running_mount(mounted: Mount) -> None:
    """The object is lost while it is mounted: found out at the next open that needs the disk."""
    mounted.mountpoint.joinpath("tree").mkdir()
    path = mounted.mountpoint / "tree" / "photo.jpg"
    path.write_bytes(pictures.jpeg(1))
    mounted.remount()
    [stored] = objects(mounted)
    stored.unlink()
    mounted.expect_log(f"inode {path.stat().st_ino} ")
    assert_eio(path.read_bytes)
    (mounted.mountpoint / "tree" / "next.jpg").write_bytes(b"next")
    path.unlink()
    mounted.remount()
    assert set(describe(mounted.mountpoint)) == {b"", b"tree", b"tree/next.jpg"}


def lose_row(mount: Mount, stored: Path) -> None:
    """The row with the key of an object goes."""
    [keyfile] = (Path(mount.env["XDG_DATA_HOME"]) / "pixstorefs" / "keyfiles").iterdir()
    secret = secret_from_keyfile(keyfile)
    change_rows(mount.store, secret, f"DELETE FROM version WHERE version_id={stored.name}")


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


# What can become of an image that still has to be removable. The last column: is the object gone afterwards?
LOSSES: dict[str, tuple[Callable[[Mount, Path], None], bool]] = {
    "a byte": (lambda _mount, path: flip(path, 5000), True),
    "cut to nothing": (lambda _mount, path: os.truncate(path, 0), True),
    "missing": (lambda _mount, path: path.unlink(), True),
    "the row with its key": (lose_row, False),
    "a directory": (lambda _mount, path: become_directory(path), False),
    "a link to nowhere": (lambda _mount, path: become_link(path), True),
}


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_damaged_can_be_removed(mounted: Mount, loss: str, is_open: bool) -> None:
    """unlink, rmdir, renames of and over images of which anything was lost; and fsync goes on."""
    damage, object_goes = LOSSES[loss]
    folder = mounted.mountpoint / "folder"
    folder.mkdir()
    names = ("unlinked", "moved", "replaced", "exchanged", "emptied")
    stored = {name: save(mounted, f"folder/{name}", os.urandom(200_000)) for name in names}
    (folder / "good").write_bytes(b"good")
    mounted.unmount()
    for path in stored.values():
        damage(mounted, path)
    mounted.mount()
    mounted.expect_log("damaged")
    mounted.expect_log("has lost the key")
    mounted.expect_log("cannot be removed")
    mounted.expect_log("Too many levels of symbolic links")
    held = [open(folder / name, "rb") for name in names] if is_open else []  # noqa: SIM115

    (folder / "unlinked").unlink()
    (folder / "moved").rename(folder / "elsewhere")
    (folder / "new").write_bytes(b"new")
    (folder / "new").rename(folder / "replaced")
    exchange(folder / "exchanged", folder / "good")
    assert (folder / "exchanged").read_bytes() == b"good"
    (folder / "emptied").write_bytes(b"healed")
    for name in ("replaced", "emptied"):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    for file in held:
        file.close()
    assert (folder / "replaced").read_bytes() == b"new"
    assert (folder / "emptied").read_bytes() == b"healed"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    descriptor = os.open(mounted.mountpoint, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    mounted.remount()
    assert list(mounted.mountpoint.iterdir()) == []
    left = [path for path in stored.values() if os.path.lexists(path)]
    assert left == [] if object_goes else set(left) == set(stored.values())


def exchange(path: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, for which Python has no call."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, rename_exchange = -100, 2
    if libc.renameat2(at_fdcwd, os.fsencode(path), at_fdcwd, os.fsencode(other), rename_exchange) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")
