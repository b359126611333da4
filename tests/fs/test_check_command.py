"""`pixstorefs check` as people and scripts run it, on mounted and unmounted stores."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import COMMAND_TIMEOUT_S, Mount, command

CLEAN, TIDY, IN_USE, MEND, RESTORE, INTERRUPTED = 0, 1, 3, 8, 12, 130


def _objects(mount: Mount) -> dict[int, Path]:
    return {int(path.name): path for path in (mount.store / "objects").glob("*/*")}


def _checked(mount: Mount, *options: str, status: int = CLEAN) -> dict[str, Any]:
    result = mount.run("check", "--json", mount.store, *options)
    assert result.returncode == status, result.stdout + result.stderr
    content = json.loads(result.stdout)
    assert isinstance(content, dict)
    return content


@pytest.fixture
def damaged(album: Mount) -> Mount:
    """The same, unmounted, and the object of 2026/holidays/4.jpg damaged."""
    album.unmount()
    path = _objects(album)[max(_objects(album))]
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    return album


def test_a_sound_store(album: Mount) -> None:
    """Text for people, JSON for programs, mounted or not; stderr stays silent without a terminal."""
    for _ in range(2):
        result = album.run("check", album.store)
        assert result.returncode == CLEAN
        assert re.fullmatch(
            r"verified 10 images, 2\.\d MB, in \d+\.\d s \(\d+\.\d\d GB/s\); no problems\n", result.stdout
        )
        assert result.stderr == ""
        found = _checked(album)
        assert found["images"] == 10
        assert found["bytes"] >= 2_000_000
        assert found["problems"] == found["notes"] == []
        if album.is_mounted:
            album.unmount()


def test_damage_has_a_path_and_a_status(damaged: Mount) -> None:
    """One line for the image that is damaged, and the same in JSON; other paths are clean."""
    found = _checked(damaged, status=RESTORE)
    [problem] = found["problems"]
    assert problem["kind"] == "image-damaged"
    assert problem["path"] == "2026/holidays/4.jpg"
    assert len(problem["image_id"]) == 32
    assert problem["version_id"] == max(_objects(damaged))
    assert found["images"] == 10

    text = damaged.run("check", damaged.store)
    assert text.returncode == RESTORE
    assert text.stdout.startswith("2026/holidays/4.jpg: image ")
    assert text.stdout.endswith("; 1 problem\n")

    assert _checked(damaged, "2025")["images"] == 5
    assert _checked(damaged, "2026/holidays/3.jpg")["images"] == 1
    assert _checked(damaged, "2026", status=RESTORE)["images"] == 5
    missing = damaged.run("check", damaged.store, "2024")
    assert missing.returncode == 11
    assert "2024" in missing.stderr


def test_exit_statuses(album: Mount) -> None:
    """Wasted space, a damaged index, a lost header: each has its own, and JSON all the same."""
    album.unmount()
    stranger = next(iter(_objects(album).values())).with_name("4001")
    stranger.write_bytes(b"?")
    assert [problem["kind"] for problem in _checked(album, status=TIDY)["problems"]] == ["stray-object"]
    for names in (["index.db"], ["keys.json", "copies/keys.json"], ["store.json", "copies/store.json"]):
        whole = {name: (album.store / name).read_bytes() for name in names}
        for name in names:
            (album.store / name).write_bytes(whole[name][:100])
        assert _checked(album, status=MEND)["problems"][0]["kind"] == "store-damaged"
        for name in names:
            (album.store / name).write_bytes(whole[name])
    stranger.unlink()
    (album.store / "keys.json").unlink()
    assert [note["kind"] for note in _checked(album)["notes"]] == ["copy-differs"]
    assert _checked(album, "--repair")["problems"] == []
    assert _checked(album)["notes"] == []
    for wrong in (["--repair", "--resume"], ["2025", "--repair"], ["2025", "--resume"]):
        assert album.run("check", album.store, *wrong).returncode == 2
    assert album.run("check", album.directory / "none").returncode == 5


def test_repair(damaged: Mount) -> None:
    """Refused while mounted; then the image is in lost+found with what is left; twice changes nothing."""
    damaged.mount()
    refused = damaged.run("check", "--repair", damaged.store)
    assert refused.returncode == IN_USE
    assert str(damaged.mountpoint) in refused.stderr
    damaged.unmount()

    found = _checked(damaged, "--repair")
    assert [problem["path"] for problem in found["problems"]] == ["2026/holidays/4.jpg"]
    assert len(found["repaired"]) == 1
    assert found["not_repaired"] == []
    again = _checked(damaged, "--repair")
    assert again["problems"] == again["repaired"] == []
    assert [note["kind"] for note in again["notes"]] == ["image-set-aside"]

    damaged.mount()
    assert sorted(path.name for path in (damaged.mountpoint / "2026" / "holidays").iterdir()) == [
        f"{number}.jpg" for number in range(4)
    ]
    lost = damaged.mountpoint / "lost+found"
    assert lost.stat().st_mode & 0o777 == 0o700
    [image, report] = sorted(lost.iterdir())
    assert image.name.endswith("-4.jpg")
    assert report.read_text().startswith("2026/holidays/4.jpg is now lost+found/")
    damaged.expect_log("damaged")
    with open(image, "rb", buffering=0) as file:
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 4096, 0)
        assert len(os.pread(file.fileno(), 68_928, 1 << 17)) == 68_928
    image.unlink()
    damaged.remount()
    assert _checked(damaged)["notes"] == []


@pytest.mark.parametrize("loss", ["page", "all"])
def test_repair_of_the_index(album: Mount, loss: str) -> None:
    """One bad sector, or all of the index: the mount says what helps, and that brings every image back."""
    album.unmount()
    album.mount()
    (album.mountpoint / "2025" / "0.jpg").unlink()
    album.unmount()
    index = album.store / "index.db"
    if loss == "all":
        index.unlink()
    else:
        with open(index, "r+b", buffering=0) as file:
            file.seek(4096)
            file.write(os.urandom(4096))
    refused = album.run("mount", album.store, album.mountpoint)
    assert refused.returncode == MEND
    assert "pixstorefs check --repair" in refused.stderr
    assert _checked(album, status=MEND)["problems"]

    found = _checked(album, "--repair")
    assert found["not_repaired"] == []
    assert found["repaired"][0].startswith("the index was restored from")
    assert _checked(album)["problems"] == []
    album.mount()
    names = sorted(str(path.relative_to(album.mountpoint)) for path in album.mountpoint.glob("20*/**/*.jpg"))
    assert names == [f"2025/{n}.jpg" for n in range(1, 5)] + [f"2026/holidays/{n}.jpg" for n in range(5)]
    assert {path.stat().st_size for path in album.mountpoint.glob("20*/**/*.jpg")} == {200_000}


def test_a_state_directory_that_cannot_be_written(damaged: Mount) -> None:
    """A check needs no place to remember where it stands, unless it is interrupted."""
    state = Path(damaged.env["XDG_STATE_HOME"])
    (state / "pixstorefs").rename(state / "aside")
    (state / "pixstorefs").write_text("a file")
    assert _checked(damaged, status=RESTORE)["images"] == 10
    with _leased(_objects(damaged)[min(_objects(damaged))]) as is_wanted:
        status, _, err = _interrupted(damaged, signal.SIGINT, is_wanted)
    assert status == INTERRUPTED
    assert "could not be written down" in err
    assert "--resume" not in err
    (state / "pixstorefs").unlink()
    (state / "aside").rename(state / "pixstorefs")


def test_repair_after_a_crash(album: Mount) -> None:
    """A store that was not closed is a note to the check; the repair recovers it, and keeps every image."""
    (album.mountpoint / "last.jpg").write_bytes(b"last")
    album.kill()
    assert [note["kind"] for note in _checked(album)["notes"]] == ["not-closed"]
    found = _checked(album, "--repair")
    assert found["problems"] == found["repaired"] == []
    album.mount()
    assert (album.mountpoint / "last.jpg").read_bytes() == b"last"


@pytest.fixture
def busy(mounted: Mount) -> Iterator[tuple[Mount, list[BaseException]]]:
    """A mount on which images are saved, replaced, renamed, linked and deleted all the time."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(folder: Path) -> None:
        number = 0
        try:
            folder.mkdir()
            while not stop.is_set():
                number += 1
                path = folder / f"{number % 17}.jpg"
                path.write_bytes(os.urandom(1 + number % 5 * 60_000))
                if number % 3 == 0:
                    path.rename(folder / f"{number % 7}.jpg")
                if number % 4 == 0:
                    for old in list(folder.iterdir())[:5]:
                        old.unlink()
                if number % 5 == 0:
                    (folder / "sub").mkdir(exist_ok=True)
                    (folder / "file").write_bytes(b"x")
                    os.link(folder / "file", folder / "sub" / "link")
                    (folder / "sub" / "link").unlink()
                    (folder / "sub").rmdir()
                    (folder / "file").unlink()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mounted.mountpoint / name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    yield mounted, failures
    stop.set()
    for thread in threads:
        thread.join()


def test_no_false_alarm_on_a_busy_mount(busy: tuple[Mount, list[BaseException]]) -> None:
    """While everything changes, check after check finds nothing wrong."""
    mount, failures = busy
    deadline = time.monotonic() + 6
    runs = images = 0
    while time.monotonic() < deadline:
        found = _checked(mount)
        assert found["problems"] == found["notes"] == []
        runs += 1
        images += found["images"]
    assert failures == []
    assert runs > 3
    assert images > 20


@contextmanager
def _leased(path: Path) -> Iterator[Callable[[], bool]]:
    """Have whoever opens a file wait for us; yields whether somebody does (fcntl(2), leases)."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel tells, and what would end us
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def _interrupted(mount: Mount, number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str, str]:
    with subprocess.Popen(
        command("check", "--json", mount.store),
        env=mount.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while not when() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_and_going_on(damaged: Mount, number: signal.Signals) -> None:
    """A signal ends it with a word how to go on; --resume verifies the rest, and what was bad again.

    Where it stands is made certain by a lease on an object: opening it waits until we give it up.
    """
    objects = _objects(damaged)
    first = objects[min(objects)]
    first_kept = first.read_bytes()
    first.write_bytes(b"damaged")
    with _leased(objects[sorted(objects)[7]]) as is_wanted:
        status, out, err = _interrupted(damaged, number, is_wanted)
        assert is_wanted()
    assert status == INTERRUPTED
    assert "--resume" in err
    found = json.loads(out)
    assert found["interrupted"] is True
    [bookmark] = (Path(damaged.env["XDG_STATE_HOME"]) / "pixstorefs").glob("check-*.json")
    assert bookmark.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(bookmark.read_text())) == {
        "after_version_id",
        "images",
        "bytes",
        "bad_version_ids",
        "seconds",
    }

    resumed = _checked(damaged, "--resume", status=RESTORE)
    assert resumed["images"] == 10
    assert {problem["path"] for problem in resumed["problems"]} == {"2025/0.jpg", "2026/holidays/4.jpg"}
    assert not bookmark.exists()
    first.write_bytes(first_kept)
    result = damaged.run("check", "--resume", damaged.store)
    assert "no check of this store was interrupted" in result.stderr
    assert result.returncode == RESTORE


def test_a_bar_on_a_terminal(album: Mount) -> None:
    """With a terminal as stderr there is a progress bar, and the result alone on stdout."""
    leader, follower = pty.openpty()
    try:
        result = subprocess.run(
            command("check", album.store),
            env=album.env | {"TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=follower,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        os.set_blocking(leader, False)
        shown = os.read(leader, 1 << 16)
    finally:
        os.close(leader)
        os.close(follower)
    assert b"verifying" in shown
    assert result.stdout.startswith(b"verified 10 images")


def test_names_cannot_forge_lines(mounted: Mount) -> None:
    """A newline in a name is shown as such."""
    (mounted.mountpoint / "a\nverified 0 images").write_bytes(b"x" * 1000)
    mounted.unmount()
    [stored] = _objects(mounted).values()
    stored.unlink()
    result = mounted.run("check", mounted.store)
    assert result.returncode == RESTORE
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.startswith("a\\nverified 0 images: ")
