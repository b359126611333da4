"""`pixstorefs snapshot` as people and scripts run it, beside mounts in use."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import COMMAND_TIMEOUT_S, Mount, command

from pixstorefs.daemon import owner

USAGE, IN_USE, WRONG_KEY, NOT_A_STORE, LOST = 2, 3, 4, 5, 12


@pytest.fixture
def other(album: Mount) -> Iterator[Mount]:
    """The snapshot, mounted beside the store by who has its key."""
    beside = Mount(album.directory)
    beside.store = album.directory / "taken"
    beside.mountpoint = album.directory / "mount-of-taken"
    yield beside
    beside.close()


def taken(mount: Mount, *options: str, status: int = 0) -> dict[str, Any]:
    """The counts of a snapshot into `taken` beside the store."""
    result = mount.run("snapshot", "--json", *options, mount.store, mount.directory / "taken")
    assert result.returncode == status, result.stdout + result.stderr
    assert not result.stderr
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    return content


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file below a directory."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def owns(pid: int, store: Path) -> bool:
    """Whether a process has a store."""
    holder = owner.read(str(store))
    return holder is not None and holder.pid == pid


def test_text_for_people(album: Mount) -> None:
    """One line says what was done; stderr stays silent without a terminal."""
    result = album.run("snapshot", "--verify", album.store, album.directory / "taken")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(
        r"snapshot of 10 images, 2\.\d MB, in \d+\.\d s: 10 objects new \(10 linked, 2\.\d MB\), 0 removed, "
        r"every byte verified\n",
        result.stdout,
    )
    result = album.run("snapshot", album.store, album.directory / "taken")
    assert re.search(r": 0 objects new \(nothing, 0\.0 MB\), 0 removed\n$", result.stdout)


def test_mounted_read_only_and_for_writing(album: Mount, other: Mount) -> None:
    """The snapshot of a mounted store is mounted beside it; what is done there stays there."""
    before = files(album.mountpoint)
    counts = taken(album)
    assert (counts["images"], counts["added"], counts["linked"], counts["verified"]) == (10, 10, 10, False)
    for option in (["--read-only"], []):
        other.mount(*option)
        assert files(other.mountpoint) == before
        other.unmount()
        assert (taken(album)["added"], taken(album)["removed"]) == (0, 0)
    other.mount()
    shutil.rmtree(other.mountpoint / "2025")
    (other.mountpoint / "2026/holidays/1.jpg").write_bytes(b"changed")
    other.unmount()
    assert files(album.mountpoint) == before
    assert album.run("check", album.store).returncode == 0
    assert other.run("check", other.store).returncode == 0
    result = album.run("snapshot", album.store, other.store)
    assert result.returncode == USAGE
    assert "was mounted and changed" in result.stderr


def test_only_changes_are_brought(album: Mount, other: Mount) -> None:
    """A second run, after changes, deletes and renames in the mount."""
    taken(album)
    (album.mountpoint / "2025/0.jpg").unlink()
    (album.mountpoint / "2025/1.jpg").write_bytes(b"new")
    (album.mountpoint / "2025/2.jpg").rename(album.mountpoint / "renamed.jpg")
    (album.mountpoint / "note").write_bytes(b"")
    counts = taken(album, "--verify")
    assert (counts["images"], counts["added"], counts["removed"]) == (10, 1, 2)
    other.mount("--read-only")
    assert files(other.mountpoint) == files(album.mountpoint)


_WRITER = """
import sys
with open(sys.argv[1], "wb", buffering=0) as file, open(sys.argv[2], "wb", buffering=0) as pending:
    file.write(bytes(1 << 20))
    pending.write(b"?")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_files_that_are_being_written_are_not_in_it(album: Mount, other: Mount) -> None:
    """An image is in the snapshot once it is closed, the one before it until then."""
    path = album.mountpoint / "2025/0.jpg"
    before = path.read_bytes()
    # In a process of its own: a descriptor that we had would be closed in every process that we start.
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, album.mountpoint / "pending"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    taken(album)
    writer.communicate(b"\n", timeout=COMMAND_TIMEOUT_S)
    assert path.read_bytes() == bytes(1 << 20)
    other.mount("--read-only")
    assert (other.mountpoint / "2025/0.jpg").read_bytes() == before
    assert not (other.mountpoint / "pending").exists()


def test_beside_programs_that_write(album: Mount, other: Mount) -> None:
    """Ten snapshots while four programs replace images by rename: every image is whole, old or new."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(folder: Path) -> None:
        try:
            number = 0
            while not stop.is_set():
                number += 1
                (folder / "tmp").write_bytes(b"%d " % number * 30_000)
                (folder / "tmp").rename(folder / "image.jpg")
        except BaseException as error:
            failures.append(error)

    folders = [album.mountpoint / f"writer{n}" for n in range(4)]
    for folder in folders:
        folder.mkdir()
        (folder / "image.jpg").write_bytes(b"0 " * 30_000)
    threads = [threading.Thread(target=write, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            taken(album, *(["--verify"] if number % 2 else []))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert album.run("check", other.store).returncode == 0
    other.mount("--read-only")
    for folder in folders:
        content = (other.mountpoint / folder.name / "image.jpg").read_bytes()
        number = content.split(b" ")[0]
        assert content == (number + b" ") * 30_000


def test_refused_places(album: Mount) -> None:
    """In the store, in its mount, above them, over somebody's files; and nothing is left there."""
    (album.directory / "files").mkdir()
    (album.directory / "files" / "letter").write_text("dear")
    for place, status, words in (
        (album.store / "taken", USAGE, "cannot lie in each other"),
        (album.directory, USAGE, "cannot lie in each other"),
        (album.mountpoint / "taken", USAGE, "is mounted"),
        (album.mountpoint, USAGE, "is mounted"),
        (album.directory / "files", NOT_A_STORE, "not empty"),
    ):
        result = album.run("snapshot", album.store, place)
        assert result.returncode == status, result.stderr
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert files(album.directory / "files") == {"letter": b"dear"}
    assert not (album.mountpoint / "taken").exists()
    result = album.run("snapshot", album.directory / "files", album.directory / "taken")
    assert result.returncode == NOT_A_STORE


def test_secrets_and_owners(album: Mount, other: Mount) -> None:
    """The wrong key takes none; a snapshot that is mounted is in use; the store itself may be."""
    (album.directory / "wrong").write_text("wrong")
    result = album.run(
        "snapshot", "--passphrase-file", album.directory / "wrong", album.store, album.directory / "taken"
    )
    assert result.returncode == WRONG_KEY
    assert not (album.directory / "taken").exists()
    taken(album)
    other.mount()
    result = album.run("snapshot", album.store, other.store)
    assert result.returncode == IN_USE
    assert str(other.mountpoint) in result.stderr
    other.unmount()
    album.unmount()
    assert taken(album)["added"] == 0


def test_damaged_store(album: Mount) -> None:
    """The images are named, and the snapshot before stays."""
    taken(album)
    (album.mountpoint / "2026/holidays/4.jpg").write_bytes(b"new")
    album.unmount()
    objects = {int(path.name): path for path in (album.store / "objects").glob("*/*")}
    objects[max(objects)].unlink()
    result = album.run("snapshot", album.store, album.directory / "taken")
    assert result.returncode == LOST
    assert "2026/holidays/4.jpg: its object" in result.stderr
    result = album.run("check", album.directory / "taken")
    assert result.returncode == 0
    assert "was interrupted" in result.stdout


def test_killed_and_interrupted(album: Mount, other: Mount) -> None:
    """Whenever it is killed, the store goes on, and another run completes the snapshot."""
    arguments = command("snapshot", album.store, other.store)
    for number, deadly in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGINT) * 3):
        (album.mountpoint / f"{number}.jpg").write_bytes(os.urandom(100_000))
        process = subprocess.Popen(arguments, env=album.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        while process.poll() is None and not owns(process.pid, other.store):
            time.sleep(0.001)
        time.sleep(number * 0.004)
        process.send_signal(deadly)
        _, said = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert b"Traceback" not in said
        (album.mountpoint / f"{number}.jpg").write_bytes(os.urandom(100_000))
    taken(album, "--verify")
    assert album.run("check", other.store).stdout.endswith("no problems\n")
    other.mount("--read-only")
    assert files(other.mountpoint) == files(album.mountpoint)
