"""Python's own shutil, tempfile and mmap, on which so many small programs rest: as on the disk."""

import filecmp
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import run
from support import Mount
from trees import assert_same, assert_times_agree, describe

Work = Callable[[Path], object]


def copytree(folder: Path) -> object:
    """Whole trees with links and times, into an existing one as well; what differs afterwards is nothing."""
    shutil.copytree(folder / "album", folder / "copied", symlinks=True)
    shutil.copytree(folder / "album", folder / "copied", symlinks=True, dirs_exist_ok=True)
    shutil.copytree(folder / "album", folder / "some", ignore=shutil.ignore_patterns("*.png", "*.jp*g"))
    names = sorted(os.listdir(folder / "album"))
    return filecmp.cmpfiles(folder / "album", folder / "copied", names, shallow=False)


def copy_and_move(folder: Path) -> object:
    """copy2 keeps times and xattrs, copy modes, copyfile nothing; move is a rename or a copy."""
    source = folder / "album" / "baseline.jpg"
    source.chmod(0o640)
    for function in (shutil.copy2, shutil.copy, shutil.copyfile):
        function(source, folder / function.__name__)
    shutil.move(source, folder / "moved.jpg")
    shutil.move(folder / "album", folder / "renamed")
    shutil.copystat(folder / "moved.jpg", folder / "copyfile")
    with pytest.raises(shutil.SameFileError):
        shutil.copy(folder / "moved.jpg", folder / "moved.jpg")
    shutil.rmtree(folder / "renamed")
    return sorted(os.listdir(folder)), os.listxattr(folder / "copy2")


def archives(folder: Path) -> object:
    """Archives made and unpacked in place."""
    made = []
    for kind in ("zip", "tar", "gztar"):
        archive = shutil.make_archive(str(folder / f"all-{kind}"), kind, folder, "album")
        shutil.unpack_archive(archive, folder / kind)
        made.append(os.path.basename(archive))
        os.unlink(archive)
    return made


def temporary_files(folder: Path) -> object:
    """Named and nameless scratch files; nothing is left of them."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with tempfile.NamedTemporaryFile(dir=scratch) as file:
            file.write(b"named")
            file.flush()
            said = Path(file.name).read_bytes()
        with tempfile.TemporaryFile(dir=scratch) as nameless:
            nameless.write(b"nameless" * 10_000)
            nameless.seek(4)
            return said, nameless.read(12), os.fstat(nameless.fileno()).st_nlink, os.listdir(scratch)


def mapped_files(folder: Path) -> object:
    """Shared and private maps, grown, flushed and seen by who reads the file."""
    path = folder / "album" / "windows.bmp"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        shared[100:104] = b"edit"
        seen = path.read_bytes()[100:104]
        shared.flush()
        shared.resize(len(shared) + 5000)
        shared[-4:] = b"tail"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
            private[0:2] = b"no"
            return seen, shared[0:2], shared.find(b"tail"), len(shared)


@pytest.mark.parametrize("work", [copytree, copy_and_move, archives, temporary_files, mapped_files])
def test_same_as_on_the_disk(shared: Mount, albums: tuple[Path, Path], work: Work) -> None:
    on_mount, on_disk = (album.parent for album in albums)
    started_ns = time.time_ns()
    wanted = work(on_disk)
    assert work(on_mount) == wanted
    ended_ns = time.time_ns()
    assert_same(on_mount, describe(on_disk, times=False), times=False)
    assert_times_agree(on_mount, on_disk, started_ns, ended_ns)
    seen = describe(on_mount)
    shared.remount()
    assert_same(on_mount, seen)


def test_room_that_is_told(shared: Mount, places: tuple[Path, Path]) -> None:
    """disk_usage and df tell of the disk below; du of a folder what its images take, and no more."""
    (places[0] / "photo.jpg").write_bytes(os.urandom(1_000_000))
    (places[0] / "empty.jpg").touch()
    with open(places[0] / "sparse.tiff", "wb") as file:
        file.truncate(50_000_000)
        file.write(b"begin")
    os.link(places[0] / "photo.jpg", places[0] / "linked.jpg")
    shared.remount()

    inside, below = shutil.disk_usage(places[0]), shutil.disk_usage(shared.store)
    assert inside.total == below.total
    assert 0 < inside.free <= inside.total - inside.used + 1
    assert int(run("df", "-B1", "--output=size", places[0]).split()[1]) == below.total
    apparent, allocated = (
        int(run("du", "-s", *option, places[0]).split()[0]) for option in (("-b",), ("-B1",))
    )
    assert apparent == 51_000_000
    # The object's padding is none of the file's, and holes take nothing.
    assert 1_000_000 <= allocated < 1_200_000
