"""Programs that wait for changes: inotify tells the same of the mount as of a directory on the disk.

Viewers, importers and sync programs live on that. What they see is what programs of this machine do through
the mount; that is all there can be, for the mount is the only writer of a store.
"""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pictures
from programs import TIMEOUT_S, environment, require, run
from support import Mount

EVENTS = ("create", "close_write", "moved_from", "moved_to", "delete", "attrib")
LAST = "last event"


@contextmanager
def watching(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """inotifywait over a tree, ready when we are told that it is."""
    options = ["--monitor", "--recursive", *(f"--event={event}" for event in EVENTS), "--format", "%e %w%f"]
    process = subprocess.Popen(
        ["inotifywait", *options, "."],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "Watches established" not in (line := process.stderr.readline()):
            assert line, "inotifywait did not start"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def told(process: "subprocess.Popen[str]") -> list[str]:
    """What it saw until the file that is made last."""
    assert process.stdout is not None
    seen = []
    while LAST not in (line := process.stdout.readline()):
        assert line, "inotifywait ended"
        seen.append(line.rstrip("\n"))
    return seen


def events_of(folder: Path, source: Path) -> list[str]:
    """What is seen of programs that copy, replace, edit, move, link and delete."""
    (folder / "album").mkdir()
    (folder / "other").mkdir()
    with watching(folder) as watcher:
        run("cp", "-p", source, "album/photo.jpg", cwd=folder)
        run(
            "dd",
            "of=album/photo.jpg",
            "bs=1",
            "seek=9",
            "conv=notrunc,fsync",
            "status=none",
            input_text="x",
            cwd=folder,
        )
        run("sed", "-i", "s/Imaginary/imaginary/", "album/photo.jpg", cwd=folder)
        run("mv", "album/photo.jpg", "other/Größe — 写真.jpg", cwd=folder)
        run("ln", "other/Größe — 写真.jpg", "album/linked.jpg", cwd=folder)
        run("touch", "-d", "2001-02-03", "album/linked.jpg", cwd=folder)
        run("setfattr", "-n", "user.rating", "-v", "5", "album/linked.jpg", cwd=folder)
        run("chmod", "600", "album/linked.jpg", cwd=folder)
        run("mkdir", "new", cwd=folder)
        run("ln", "-s", "nowhere", "album/link", cwd=folder)
        run("truncate", "-s", "10", "album/linked.jpg", cwd=folder)
        run("rm", "album/link", "other/Größe — 写真.jpg", cwd=folder)
        run("rmdir", "new", cwd=folder)
        run("touch", LAST, cwd=folder)
        # The kernel makes one of equal events in a row, unless somebody has read the first by then.
        return [line for line, _ in itertools.groupby(told(watcher)) if "/sed" not in line]


def test_inotify_sees_what_other_programs_do(shared: Mount, places: tuple[Path, Path]) -> None:
    require("inotifywait", "setfattr")
    source = places[1].parent / "watched.jpg"
    source.write_bytes(pictures.jpeg(1))
    wanted = events_of(places[1], source)
    assert len(wanted) > 15
    assert {line.split(" ")[0].lower() for line in wanted} >= {
        "create",
        "close_write,close",
        "moved_from",
        "moved_to",
        "delete",
        "attrib",
    }
    assert events_of(places[0], source) == wanted
