"""Backup and sync programs: a second run reads and transfers nothing, also after a remount; all comes back.

They tell what changed by inode number, size, mtime and ctime, so these have to be the same again. Device
numbers are not: Linux gives every mount without a disk of its own the next free one. Who looks notices:
GNU tar needs --no-check-device, restic writes its list of each directory once more, without reading a file.
"""

import json
import os
import random
import re
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

import pictures
import pytest
from programs import TIMEOUT_S, environment, require, run
from support import Mount
from trees import assert_same, describe

LARGE_SIZE_BYTES = 6_000_000
# What a second run may cost the daemon after a remount: requests and rows, but no image.
READ_LIMIT_BYTES = LARGE_SIZE_BYTES // 3
CLOCK_REALTIME_COARSE = 5  # clock_getres(2); Python has no name for it


class Tool(ABC):
    """A backup program that saves `source`, with a place of its own on the disk."""

    name: str

    def __init__(self, source: Path, place: Path) -> None:
        self.source = source
        self.place = place
        self.variables: dict[str, str] = {}
        self.runs = 0
        place.mkdir()
        require(self.name)

    def call(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run the program; what it printed on either stream, for they report on both."""
        result = subprocess.run(
            [self.name, *map(str, arguments)],
            cwd=cwd or self.source,
            env=environment(self.place) | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            timeout=TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0, f"{arguments}\n{result.stdout}"
        return result.stdout

    def prepare(self) -> None:
        """Make the repository, where the program has one."""
        return

    @abstractmethod
    def save(self) -> int:
        """Save the source; returns how many files it took for new or changed."""

    @abstractmethod
    def restore(self, target: Path) -> None:
        """Verify what was saved, and get it back as it was at the last run."""


class Restic(Tool):
    name = "restic"

    def prepare(self) -> None:
        self.variables = {"RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": str(self.place / "repository")}
        self.call("init")

    def save(self) -> int:
        summary = json.loads(self.call("backup", "--json", ".").splitlines()[-1])
        changed = int(summary["files_new"] + summary["files_changed"])
        assert (summary["data_blobs"] > 0) == (changed > 0), summary
        return changed

    def restore(self, target: Path) -> None:
        self.call("check", "--read-data")
        self.call("restore", "latest", "--target", target)


class Borg(Tool):
    name = "borg"

    def prepare(self) -> None:
        self.variables = {
            "BORG_REPO": str(self.place / "repository"),
            "BORG_BASE_DIR": str(self.place),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self.call("init", "--encryption=none")

    def save(self) -> int:
        self.runs += 1
        # A is new, M changed, C changed while it was read, E failed; U was known and not read.
        said = self.call("create", "--list", "--filter=AMCE", f"::{self.runs}", ".")
        files = [line[2:] for line in said.splitlines() if line[:2] in ("A ", "M ", "C ", "E ")]
        # The files with the latest ctime are not remembered: they might change again in the same tick.
        return len([name for name in files if self.runs == 1 or name != "latest.jpg"])

    def restore(self, target: Path) -> None:
        self.call("check", "--verify-data")
        target.mkdir()
        self.call("extract", f"::{self.runs}", cwd=target)


class Tar(Tool):
    name = "tar"
    _XATTRS = ("--xattrs", "--xattrs-include=*")

    def save(self) -> int:
        self.runs += 1
        archive = self.place / f"{self.runs}.tar"
        snapshot = ("--no-check-device", f"--listed-incremental={self.place / 'snapshot'}")
        names = self.call(*snapshot, *self._XATTRS, "-cvf", archive, ".").splitlines()
        return len([name for name in names if not name.endswith("/")])

    def restore(self, target: Path) -> None:
        target.mkdir()
        for number in range(1, self.runs + 1):
            archive = self.place / f"{number}.tar"
            self.call("--listed-incremental=/dev/null", *self._XATTRS, "-xpf", archive, cwd=target)


class Rsync(Tool):
    name = "rsync"

    def save(self) -> int:
        changes = self.call("-aHX", "--itemize-changes", "./", self.place / "copy")
        return len([line for line in changes.splitlines() if line.startswith(">f")])

    def restore(self, target: Path) -> None:
        self.call("-aHX", f"{self.place / 'copy'}/", target)


@pytest.mark.parametrize("tool_class", [Restic, Borg, Tar, Rsync])
def test_second_run_of_a_backup(mounted: Mount, tool_class: type[Tool]) -> None:
    source = mounted.mountpoint / "album"
    pictures.make_album(source)
    (source / "links" / "broken").unlink()  # restic keeps targets of links as UTF-8
    (source / "large.tiff").write_bytes(random.Random(1).randbytes(LARGE_SIZE_BYTES))
    set_times(source, 10**18 + 123_456_789)
    let_kernel_clock_tick()  # no other file has the same ctime
    (source / "latest.jpg").write_bytes(pictures.jpeg(1))
    tool = tool_class(source, mounted.directory / "backup")
    tool.prepare()
    assert tool.save() > 30
    assert tool.save() == 0

    remount_elsewhere(mounted)
    before = bytes_read(mounted)
    assert tool.save() == 0
    assert bytes_read(mounted) - before < READ_LIMIT_BYTES
    mounted.remount()
    before = bytes_read(mounted)
    assert tool.save() == 0
    assert bytes_read(mounted) - before < READ_LIMIT_BYTES

    let_kernel_clock_tick()  # tar knows no changes that look older than its last run
    (source / "every format" / "windows.bmp").write_bytes(pictures.jpeg(7))
    mounted.remount()
    assert tool.save() == 1
    tool.restore(mounted.directory / "restored")
    restored, wanted = describe(mounted.directory / "restored"), describe(source)
    for nodes in (restored, wanted):
        del nodes[b""]  # "." itself is restored by some of them and left as they find it by others
    assert_same(restored, wanted)


def let_kernel_clock_tick() -> None:
    """Wait until times that the kernel gives to files from now on are later than this moment.

    Its clock for files stands still between ticks, longer than one where a machine is busy: 19 ms were seen.
    """
    now_ns = time.time_ns()
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= now_ns:
        time.sleep(0.001)


def remount_elsewhere(mount: Mount) -> None:
    """Remount so that the new mount gets another device number, where we may take the old one away."""
    mount.unmount()
    taker = mount.directory / "taker"
    taker.mkdir()
    if pictures.IS_ROOT:
        run("mount", "-t", "tmpfs", "taker", taker)
    try:
        mount.mount()
    finally:
        if pictures.IS_ROOT:
            run("umount", taker)


def bytes_read(mount: Mount) -> int:
    """What the daemon has read so far, objects and requests; only root may know."""
    if not pictures.IS_ROOT:
        return 0
    found = re.search(r"^rchar: (\d+)$", Path(f"/proc/{mount.pid}/io").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.fixture
def folder(places: tuple[Path, Path]) -> Path:
    """Photos on the disk, with times in whole seconds: some programs keep no more of them."""
    folder = places[1] / "folder"
    (folder / "Größe — 写真").mkdir(parents=True)
    for name, content in pictures.every_format().items():
        (folder / "Größe — 写真" / name).write_bytes(content)
    (folder / "large.tiff").write_bytes(random.Random(1).randbytes(2_000_000))
    (folder / "link").symlink_to("large.tiff")
    set_times(folder, 10**18)
    return folder


def set_times(folder: Path, time_ns: int) -> None:
    """Long ago: rsync takes two times within one second for equal."""
    for found, names, others in os.walk(os.fsencode(folder)):
        for name in names + others:
            os.utime(os.path.join(found, name), ns=(time_ns, time_ns), follow_symlinks=False)


def files(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """What programs that sync keep: contents and times of files, and links."""
    return {
        name: (node.sha256, node.target, node.mtime_ns if node.sha256 else 0)
        for name, node in describe(folder).items()
        if node.sha256 or node.target
    }


def rclone(home: Path, *arguments: str | Path) -> dict[str, int]:
    """Run it; what its statistics say."""
    said = run(
        "rclone",
        "--config=",
        f"--cache-dir={home}",
        "--links",
        "--use-json-log",
        "-v",
        *arguments,
        quiet=False,
        errors_too=True,
    )
    stats = [entry["stats"] for entry in map(json.loads, said.splitlines()) if "stats" in entry]
    return {name: stats[-1][name] for name in ("transfers", "deletes", "errors")}


def test_rclone(shared: Mount, places: tuple[Path, Path], folder: Path) -> None:
    """Sync into the mount and out of it."""
    inside, outside = places[0] / "inside", places[1] / "outside"
    nothing = {"transfers": 0, "deletes": 0, "errors": 0}
    count = len(files(folder))
    for source, target in ((folder, inside), (inside, outside)):
        assert rclone(places[1], "sync", source, target) == nothing | {"transfers": count}
        assert rclone(places[1], "sync", source, target) == nothing
        shared.remount()
        assert rclone(places[1], "sync", source, target) == nothing
        assert rclone(places[1], "sync", "--checksum", source, target) == nothing
        assert rclone(places[1], "check", source, target)["errors"] == 0
        assert files(target) == files(folder)
    (folder / "large.tiff").write_bytes(b"changed")
    (folder / "link").unlink()
    (folder / "new.jpg").write_bytes(pictures.jpeg(1))
    assert rclone(places[1], "sync", folder, inside) == {"transfers": 2, "deletes": 1, "errors": 0}
    shared.remount()
    assert rclone(places[1], "sync", inside, outside) == {"transfers": 2, "deletes": 1, "errors": 0}
    assert files(outside) == files(inside) == files(folder)


def unison(home: Path, one: Path, other: Path) -> str:
    options = ["-ui", "text", "-batch", "-times", "-perms", "-1", "-confirmbigdel=false", "-dumbtty"]
    return run(
        "env", f"UNISON={home / 'unison'}", "unison", *options, one, other, quiet=False, errors_too=True
    )


def test_unison(shared: Mount, places: tuple[Path, Path], folder: Path) -> None:
    """Both sides change between the runs; where neither did, there is nothing to do."""
    inside = places[0] / "inside"
    inside.mkdir()
    assert "0 failed" in unison(places[1], folder, inside)
    assert files(inside) == files(folder)
    assert "Nothing to do" in unison(places[1], folder, inside)
    remount_elsewhere(shared)
    assert "Nothing to do: replicas have not changed" in unison(places[1], folder, inside)

    (folder / "large.tiff").rename(folder / "moved.tiff")
    (folder / "from the disk.jpg").write_bytes(pictures.jpeg(1))
    (inside / "from the mount.jpg").write_bytes(pictures.jpeg(2))
    (inside / "Größe — 写真" / "icon.ico").unlink()
    (inside / "Größe — 写真" / "windows.bmp").write_bytes(b"changed")
    for place in (folder, inside):
        for path in place.glob("*.jpg"):
            os.utime(path, (10**9, 10**9))
    os.utime(inside / "Größe — 写真" / "windows.bmp", (10**9 + 60, 10**9 + 60))
    assert "0 failed" in unison(places[1], folder, inside)
    shared.remount()
    assert "Nothing to do" in unison(places[1], folder, inside)
    assert files(inside) == files(folder)
    names = {os.fsdecode(name) for name in files(folder)}
    assert {"moved.tiff", "from the disk.jpg", "from the mount.jpg"} <= names
    assert not {"large.tiff", "Größe — 写真/icon.ico"} & names
