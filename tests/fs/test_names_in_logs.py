"""A log lies on the disk in the clear: images have numbers there, unless their names are wanted."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from stores import objects_of, save_file
from support import Mount, program

from pixstorefs.keys.secrets import secret_from_keyfile
from pixstorefs.store.opening import open_unlocked

FOLDER, DAMAGED, FAILED, RECOVERED = "geheim-7Q", "vertraulich-8R.jpg", "privat-9S.jpg", "verborgen-5T.jpg"
PROGRAM = "diskret-6U"  # a process is named by the first 15 bytes
NAMES = (FOLDER, DAMAGED, FAILED, RECOVERED, PROGRAM)
# Above the log of the index, and below the image that cannot be saved.
_LARGEST_FILE_SIZE_BYTES = 16 << 20

Trouble = Callable[[Mount, str], int]


def _read_a_damaged_image(mount: Mount, option: str) -> int:
    path = mount.mountpoint / FOLDER / DAMAGED
    path.parent.mkdir()
    path.write_bytes(os.urandom(10_000))
    ino = path.stat().st_ino
    mount.unmount()
    [stored] = objects_of(mount.store).values()
    stored.write_bytes(stored.read_bytes()[:5000] + bytes(stored.stat().st_size - 5000))
    mount.mount(*option.split())
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    return ino


def _fail_to_save(mount: Mount, _option: str) -> int:
    """A limit of the daemon's own stands for a file system that takes no larger files."""
    (mount.mountpoint / FOLDER).mkdir()
    _, most = resource.prlimit(mount.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(mount.pid, resource.RLIMIT_FSIZE, (_LARGEST_FILE_SIZE_BYTES, most))
    descriptor = os.open(mount.mountpoint / FOLDER / FAILED, os.O_WRONLY | os.O_CREAT, 0o600)
    ino = os.fstat(descriptor).st_ino
    with pytest.raises(OSError, match=r"Input/output error|File too large"):
        _write_too_much(descriptor)
    return ino


def _write_too_much(descriptor: int) -> None:
    try:
        for _ in range(_LARGEST_FILE_SIZE_BYTES // (1 << 20) + 8):
            os.write(descriptor, os.urandom(1 << 20))
    finally:
        os.close(descriptor)


def _lose_power(mount: Mount) -> int:
    """The store as a power loss leaves it: an image was closed, and its content not yet on the disk."""
    mount.unmount()
    [keyfile] = Path(mount.env["XDG_DATA_HOME"]).rglob("*.key")
    crashed = mount.directory / "crashed"
    with closing(open_unlocked(str(mount.store), secret_from_keyfile(keyfile))) as store, store.lock:
        inode = save_file(store, RECOVERED, lambda draft: draft.write(0, b"saved last"))
        shutil.copytree(mount.store, crashed)
    os.truncate(objects_of(crashed)[inode.version_id or 0], 0)
    mount.store = crashed
    return inode.ino


def _recover(mount: Mount, option: str) -> int:
    ino = _lose_power(mount)
    mount.mount(*option.split())
    return ino


def _end_under_a_program(mount: Mount, _option: str) -> int:
    started_from = mount.mountpoint / PROGRAM
    shutil.copy(program("sleep"), started_from)
    with subprocess.Popen([started_from, "1000"]) as process:
        mount.signal(signal.SIGTERM)
        process.kill()
    subprocess.run(["fusermount3", "-u", "-z", mount.mountpoint], capture_output=True, check=False)
    return 0


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "a damaged image is read": (_read_a_damaged_image, f"{FOLDER}/{DAMAGED} cannot be read"),
    "an image cannot be saved": (_fail_to_save, f"{FAILED} was not saved"),
    "an image is lost to a crash": (_recover, f"{RECOVERED}: it was new"),
    "a program keeps the mount busy": (_end_under_a_program, f"in use by {PROGRAM}"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_logged_names_no_image(unmounted: Mount, trouble: str) -> None:
    """Nothing below the state directory has a name of the store; what the log tells has the inode number."""
    make_trouble, _ = TROUBLES[trouble]
    unmounted.mount()
    unmounted.expect_log("inode ")
    ino = make_trouble(unmounted, "")
    _wait_for_log(unmounted, f"inode {ino}" if ino else "in use by programs")
    state = Path(unmounted.env["XDG_STATE_HOME"])
    kept = [path for path in state.rglob("*") if path.is_file()]
    assert kept
    assert not [(path, name) for path in kept for name in NAMES if name.encode() in path.read_bytes()]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_names_are_logged_where_they_are_wanted(unmounted: Mount, trouble: str) -> None:
    """`--log-names`, or `-o log_names` in fstab."""
    make_trouble, logged = TROUBLES[trouble]
    option = "-o log_names" if "crash" in trouble else "--log-names"
    unmounted.mount(*option.split())
    for name in NAMES:
        unmounted.expect_log(name)
    make_trouble(unmounted, option)
    _wait_for_log(unmounted, logged)


def _wait_for_log(mount: Mount, words: str) -> None:
    """The kernel tells of the last close after close(2) has returned."""
    deadline_s = time.monotonic() + 10
    while words not in mount.log_text() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert words in mount.log_text()


@pytest.mark.parametrize("at_terminal", [False, True])
def test_a_terminal_is_told_the_names(unmounted: Mount, at_terminal: bool) -> None:
    """What recovery did is shown with names to a person, and by number to a journal, or a mail of cron's."""
    unmounted.mount()
    unmounted.expect_log("recovery: ")
    ino = _lose_power(unmounted)
    words = ("mount", unmounted.store, unmounted.mountpoint)
    if at_terminal:
        _, said = unmounted.run_at_terminal(words, [])
    else:
        said = unmounted.run(*words).stderr
    assert f"{RECOVERED if at_terminal else f'inode {ino}'}: it was new" in said
