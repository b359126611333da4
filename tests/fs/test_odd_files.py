"""Links, pipes, folders and the like in the place of the files of a store: nothing hangs or leaves the store.

Every command meets each of them; beside the store lies what a link leads to, and is looked at afterwards.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Mount, watched

OK, IN_USE, NO_STORE, DAMAGED, NO_SPACE, LOST, SNAPSHOT_FAILED = 0, 3, 5, 8, 10, 12, 15
# Statuses that say what is the matter. 70, "this should not happen", is none of them.
CLEAR = {OK, 1, IN_USE, NO_STORE, DAMAGED, LOST, SNAPSHOT_FAILED}

# What a mount for writing answers if something else lies there. If it is 0, images can be saved and read.
FILES = {
    "store.json": OK,  # its copy is read
    "store.json.new": OK,
    "keys.json": OK,
    "keys.json.new": OK,
    "copies/store.json": OK,
    "copies/keys.json": OK,
    "copies/index-1.db": OK,
    "copies/index.new": OK,
    "lock": DAMAGED,
    "hold": OK,
    "reserve": OK,
    "journal": OK,
    "journal.new": OK,
    "snapshot.json": OK,
    "snapshot.json.new": OK,
    "index.db-wal": DAMAGED,
    "index.db-shm": DAMAGED,
    "objects/0/OBJECT": OK,
    "objects/object.new": OK,
}
FOLDERS = {
    "objects": DAMAGED,
    "objects/0": DAMAGED,
    "copies": OK,
    "lost+found": OK,
    "lost+found/objects": OK,
}
# Written in place, or under a name that another process may have given to something else before.
WRITTEN = (
    "index.db-wal",
    "index.db-shm",
    "lock",
    "hold",
    "reserve",
    "journal",
    "journal.new",
    "keys.json.new",
    "snapshot.json.new",
)


def _link(place: Path, canary: Path, *, folder: bool) -> None:
    place.symlink_to(canary if folder else canary / "file")


def _dangling(place: Path, canary: Path, *, folder: bool) -> None:
    place.symlink_to(canary / "missing")


def _pipe(place: Path, canary: Path, *, folder: bool) -> None:
    os.mkfifo(place)


def _wrong_kind(place: Path, canary: Path, *, folder: bool) -> None:
    if folder:
        place.write_bytes(b"a file")
    else:
        place.mkdir()
        (place / "file").write_bytes(b"in a folder")


def _socket(place: Path, canary: Path, *, folder: bool) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # the address of a socket has room for 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
    finally:
        os.chdir(here)


def _device(place: Path, canary: Path, *, folder: bool) -> None:
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _hard_link(place: Path, canary: Path, *, folder: bool) -> None:
    os.link(canary / "file", place)


Put = Callable[..., None]
PLACES = (*FILES, *FOLDERS)
# A link in every other place and a pipe in the rest, and the other way round in the long form.
CASES = [(place, (_link, _pipe)[number % 2]) for number, place in enumerate(PLACES)]
CASES += [(place, _hard_link) for place in WRITTEN]
MORE = (_wrong_kind, _dangling, _socket, _device)
MORE_CASES = [(place, (_pipe, _link)[number % 2]) for number, place in enumerate(PLACES)]
MORE_CASES += [(place, put) for put in MORE for place in PLACES]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A store with images in it and in its journal, whose daemon was killed; its first copy is taken."""
    directory = tmp_path_factory.mktemp("crashed")
    with watched(directory) as mount:
        mount.mount()
        for number in range(3):
            (mount.mountpoint / f"{number}.jpg").write_bytes(b"%d" % number * 150_000)
        mount.remount()
        with open(mount.mountpoint / "synced.jpg", "wb") as file:
            file.write(b"synced" * 10_000)
            file.flush()
            os.fsync(file.fileno())
        (mount.store / "lost+found" / "objects").mkdir(parents=True)
        mount.kill()
        yield mount


@pytest.fixture
def mount(crashed: Mount, tmp_path: Path) -> Iterator[Mount]:
    """A copy of the store, opened by the same keyfile, and a place for a link to lead to."""
    with watched(tmp_path) as mount:
        shutil.copytree(
            crashed.directory, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mount")
        )
        shutil.rmtree(tmp_path / "xdg-state")
        (tmp_path / "canary" / "0").mkdir(parents=True)
        for name in ("file", "500", "0/500", "0/1", "keys.json", "store.json", "index-1.db"):
            (tmp_path / "canary" / name).write_bytes(b"somebody else's " + name.encode())
        yield mount
        lock = mount.store / "lock"
        if stat.S_ISFIFO(lock.lstat().st_mode):
            lock.unlink()  # whoever ends what is mounted would read it


def _canary(mount: Mount) -> dict[str, tuple[int, int, str]]:
    found = {}
    for path in sorted((mount.directory / "canary").rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    found["."] = ((mount.directory / "canary").stat().st_mode, 0, "")
    return found


def _put(mount: Mount, place: str, put: Put) -> None:
    path = mount.store / place.replace("OBJECT", "1")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    put(path, mount.directory / "canary", folder=place in FOLDERS)


def _clear(mount: Mount, *words: str | Path) -> int:
    """Run a command, which has to end, and by itself; returns its status."""
    result = mount.run(*words)
    assert "should not happen" not in result.stderr, (words, result.stderr)
    assert "Traceback" not in result.stderr
    assert result.returncode in CLEAR, (words, result.returncode, result.stderr)
    assert result.returncode in (OK, 1) or result.stderr or result.stdout
    return result.returncode


def _use(mount: Mount) -> None:
    """Save and read through the mount, and unmount it; the store is as good as before."""
    (mount.mountpoint / "new.jpg").write_bytes(b"new" * 100_000)
    (mount.mountpoint / "2.jpg").unlink()
    with open(mount.mountpoint / "new.jpg", "rb+") as file:
        os.fsync(file.fileno())
    assert (mount.mountpoint / "1.jpg").read_bytes() == b"1" * 150_000
    mount.unmount()
    mount.run("mount", "--read-only", mount.store, mount.mountpoint)
    assert (mount.mountpoint / "new.jpg").read_bytes() == b"new" * 100_000
    mount.unmount()


def _met_by_all_commands(mount: Mount, place: str, put: Put) -> None:
    mount.expect_log("")
    _put(mount, place, put)
    before = _canary(mount)
    _clear(mount, "key", "list", mount.store)
    _clear(mount, "check", mount.store)
    _clear(mount, "snapshot", mount.store, mount.directory / "taken")
    if _clear(mount, "mount", "--read-only", mount.store, mount.mountpoint) == OK:
        _clear(mount, "status", mount.mountpoint)
        assert len(os.listdir(mount.mountpoint)) in (3, 4)
        mount.unmount()
    _clear(mount, "check", "--repair", mount.store)
    assert _canary(mount) == before


def _met_by_a_mount(mount: Mount, place: str, put: Put) -> None:
    mount.expect_log("")
    _put(mount, place, put)
    before = _canary(mount)
    status = _clear(mount, "mount", mount.store, mount.mountpoint)
    expected = (FILES | FOLDERS)[place]
    assert status == expected
    if status == OK:
        _use(mount)
    assert _canary(mount) == before


@pytest.mark.parametrize(("place", "put"), CASES)
def test_a_mount(mount: Mount, place: str, put: Put) -> None:
    """It does without what it does not need, and refuses to go on without the rest, in one sentence."""
    _met_by_a_mount(mount, place, put)


@pytest.mark.parametrize(("place", "put"), CASES)
def test_the_other_commands(mount: Mount, place: str, put: Put) -> None:
    """Each comes to its end, says what is the matter, and leaves alone what lies outside."""
    _met_by_all_commands(mount, place, put)


@pytest.mark.long
@pytest.mark.parametrize(("place", "put"), MORE_CASES)
def test_everything_else(mount: Mount, place: str, put: Put) -> None:
    """The same for a folder instead of a file, sockets, devices and links that lead nowhere."""
    if put is _device and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    store = mount.directory / "kept"
    shutil.copytree(mount.store, store, symlinks=True)
    _met_by_all_commands(mount, place, put)
    shutil.rmtree(mount.store)
    store.rename(mount.store)
    _met_by_a_mount(mount, place, put)


@pytest.mark.parametrize(
    "note",
    [
        b'{"pid": 1e400, "mountpoint": null}',
        b'{"pid": Infinity, "mountpoint": null}',
        b'{"pid": 1234567890123456789012345678901234567890, "mountpoint": "/mnt"}',
        b"[" * 60_000,
        b'{"pid": ' + b"9" * 60_000,
        b"\xff\xfe",
        b"null",
    ],
)
def test_what_a_lock_file_says(mount: Mount, note: bytes) -> None:
    """Whatever stands in a lock file that is held, it is in use, and one that is free is taken."""
    lock = mount.store / "lock"
    lock.write_bytes(note)
    with open(lock, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for words in (("mount", mount.store, mount.mountpoint), ("check", "--repair", mount.store)):
            assert _clear(mount, *words) == IN_USE
    mount.mount()
    mount.unmount()


def test_enormous_files(mount: Mount) -> None:
    """Sparse files of a terabyte in the place of small ones are read to their limit, and no further."""
    mount.expect_log("")
    for name in ("lock", "journal", "reserve", "hold", "snapshot.json", "store.json", "copies/keys.json"):
        with open(mount.store / name, "ab") as file:
            file.truncate(1 << 40)
    assert _clear(mount, "mount", mount.store, mount.mountpoint) == OK
    _clear(mount, "status", mount.mountpoint)
    _use(mount)
    assert _clear(mount, "check", mount.store) == OK


@pytest.mark.parametrize(
    "name",
    [
        "objects/500",
        "objects/0500/1",
        "objects/9223372036854775808/1",
        "objects/4611686018427387904",
        "objects/0/9223372036854775806",
        "objects/0/9223372036854775808",
        "objects/0/" + "9" * 100,
        "objects/0/01",
        "objects/0/٣",
        "objects/²/1",
    ],
)
def test_names_that_are_no_numbers(mount: Mount, name: str) -> None:
    """What has no name of an object is none: every command goes on, and it stays where it is."""
    stranger = mount.store / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_bytes(b"a stranger")
    assert _clear(mount, "check", mount.store) in (OK, 1)
    assert _clear(mount, "mount", mount.store, mount.mountpoint) == OK
    _use(mount)
    assert _clear(mount, "check", "--repair", mount.store) == OK
    assert _clear(mount, "snapshot", mount.store, mount.directory / "taken") == OK
    assert stranger.read_bytes() == b"a stranger"


def test_a_pipe_in_place_of_one_object(mount: Mount) -> None:
    """Its image cannot be read; all others can, the mount can be ended, and the check names the image."""
    mount.expect_log("cannot be read")
    mount.mount()
    mount.unmount()
    objects = {path.name: path for path in (mount.store / "objects").glob("*/*")}
    objects["1"].unlink()
    os.mkfifo(objects["1"])
    mount.mount()
    with pytest.raises(OSError, match="Input/output error"):
        (mount.mountpoint / "0.jpg").read_bytes()
    assert (mount.mountpoint / "1.jpg").read_bytes() == b"1" * 150_000
    (mount.mountpoint / "0.jpg").write_bytes(b"again")
    assert (mount.mountpoint / "0.jpg").read_bytes() == b"again"
    mount.signal(signal.SIGTERM)


def test_the_disk_of_the_objects_is_not_there(mount: Mount) -> None:
    """A mount for writing is refused and changes nothing; one for reading shows the names."""
    mount.expect_log("cannot be read")
    mount.mount()
    mount.unmount()
    objects = mount.store / "objects"
    objects.rename(mount.directory / "elsewhere")
    refused = mount.run("mount", mount.store, mount.mountpoint)
    assert refused.returncode == DAMAGED
    assert "not mounted" in refused.stderr
    assert not objects.exists()
    mount.mount("--read-only")
    assert "0.jpg" in os.listdir(mount.mountpoint)
    with pytest.raises(OSError, match="Input/output error"):
        (mount.mountpoint / "0.jpg").read_bytes()
    mount.unmount()
    (mount.directory / "elsewhere").rename(objects)
    mount.mount()
    assert (mount.mountpoint / "0.jpg").read_bytes() == b"0" * 150_000
    mount.unmount()
