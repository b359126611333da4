"""A folder held by its descriptor: nothing leads out of it, and nothing in it makes anybody wait."""

import fcntl
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pixstorefs.disk.folder import Folder, OddFile, open_beneath, open_step_by_step

OPENS = [open_beneath, open_step_by_step]
Open = Callable[[int, str, int], int]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder `store` with the file `below/file`, and beside it `outside/file`."""
    for name in ("store/below", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(name.encode())
    with closing(Folder.at(str(tmp_path / "store"))) as folder:
        yield folder


@pytest.mark.parametrize("opened", OPENS)
def test_what_lies_below(folder: Folder, opened: Open) -> None:
    """Files are opened and made through the folders on the way; what is missing is told as by open(2)."""
    fd = opened(folder.fd, "below/file", os.O_RDONLY)
    assert os.read(fd, 100) == b"store/below"
    os.close(fd)
    fd = opened(folder.fd, "below/new", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    os.close(fd)
    for name in ("below/missing", "missing/file"):
        with pytest.raises(FileNotFoundError):
            opened(folder.fd, name, os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        opened(folder.fd, "below/file/x", os.O_RDONLY)


@pytest.mark.parametrize("opened", OPENS)
def test_links_lead_nowhere(folder: Folder, opened: Open, tmp_path: Path) -> None:
    """A link is followed neither at the end of a name nor on the way, wherever it points."""
    for name, target in (("link", tmp_path / "outside"), ("relative", "below"), ("up", "../outside")):
        (tmp_path / "store" / name).symlink_to(target)
        with pytest.raises(OSError):
            opened(folder.fd, f"{name}/file", os.O_RDONLY)
    (tmp_path / "store/below/link").symlink_to("file")
    with pytest.raises(OSError):
        opened(folder.fd, "below/link", os.O_RDONLY | os.O_NOFOLLOW)


def test_no_descriptor_is_left(folder: Folder, tmp_path: Path) -> None:
    """Whatever is refused, everything that was opened on the way is closed."""
    (tmp_path / "store/below/link").symlink_to("file")
    os.mkfifo(tmp_path / "store/pipe")
    before = os.listdir("/proc/self/fd")
    for name in ("below/link/x", "below/missing", "missing/x", "below/file/x", "below/link", "pipe", "below"):
        with pytest.raises((OSError, OddFile)):
            folder.open_file(name)
        with pytest.raises(OSError):
            open_step_by_step(folder.fd, name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with pytest.raises(OddFile):
        folder.folder("pipe")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_is_no_file(folder: Folder, tmp_path: Path) -> None:
    """A link, a pipe, a socket, a device and a folder are refused at once; the message says which it is."""
    store = tmp_path / "store"
    (store / "link").symlink_to(tmp_path / "outside/file")
    os.mkfifo(store / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(store / "socket"))
    kinds = {"link": "symbolic link", "pipe": "pipe", "socket": "socket", "below": "a folder"}
    if os.geteuid() == 0:
        os.mknod(store / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        kinds["device"] = "device"
    for name, kind in kinds.items():
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):
            with pytest.raises(OddFile, match=kind):
                folder.open_file(name, flags)
        assert folder.file_status(name) is None
    assert (tmp_path / "outside/file").read_bytes() == b"outside"


def test_files_of_others_are_not_written(folder: Folder, tmp_path: Path) -> None:
    """A file with another name elsewhere, or of another user, is not opened to be written in place."""
    os.link(tmp_path / "outside/file", tmp_path / "store/linked")
    with pytest.raises(OddFile, match="another name"):
        folder.open_own("linked", os.O_RDWR | os.O_CREAT)
    if os.geteuid() == 0:
        os.chown(tmp_path / "store/below/file", 12345, 12345)
        with closing(folder.folder("below")) as below, pytest.raises(OddFile, match="another user"):
            below.open_own("file", os.O_RDWR)
        os.chown(tmp_path / "store/below", 12345, 12345)
        with closing(folder.folder("below")) as below:
            os.close(below.open_own("file", os.O_RDWR))


def test_replacing(folder: Folder, tmp_path: Path) -> None:
    """The new content is complete under the name; whatever the temporary file replaces is not written."""
    store = tmp_path / "store"
    os.link(tmp_path / "outside/file", store / "a.new")
    (store / "a").symlink_to(tmp_path / "outside/file")
    folder.replace("a", b"content")
    assert folder.read("a", 100) == b"content"
    assert not (store / "a").is_symlink()
    (store / "below/x.new").mkdir()
    with closing(folder.folder("below")) as below, pytest.raises(IsADirectoryError):
        below.replace("x", b"content")
    assert (tmp_path / "outside/file").read_bytes() == b"outside"
    assert sorted(os.listdir(store)) == ["a", "below"]


def test_a_folder_that_moves(folder: Folder, tmp_path: Path) -> None:
    """It stays the folder that was opened; its path is known as long as one leads there."""
    assert folder.reachable_path() == str(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    (tmp_path / "store").mkdir()
    assert folder.reachable_path() == str(tmp_path / "moved")
    folder.replace("a", b"content")
    assert (tmp_path / "moved/a").exists()
    for name in ("a", "below/file"):
        (tmp_path / "moved" / name).unlink()
    (tmp_path / "moved/below").rmdir()
    (tmp_path / "moved").rmdir()
    assert folder.reachable_path() is None


def test_a_leased_file_is_waited_for(folder: Folder, tmp_path: Path) -> None:
    """A program that has a lease on a file (Samba) gets the time to give it up."""
    path = tmp_path / "store/below/file"
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

        def give_up() -> None:
            while fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
                pass
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

        holder = threading.Thread(target=give_up)
        holder.start()
        assert folder.read("below/file", 100) == b"store/below"
        holder.join()
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)
