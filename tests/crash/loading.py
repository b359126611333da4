"""All of the file system at once: stress-ng's stressors and fio's verified writes, eight workers of them."""

import itertools
import json
import os
import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from support import Mount

PROGRAMS = ("stress-ng", "fio")
DISK_SIZE_MIB = 2048
# Several times what the daemon keeps by design (drafts, caches of verified segments and of the index).
PEAK_LIMIT_MIB = 256
# What a load may leave in memory beyond the most after what each stressor did once: fragments, no leak.
GROWTH_LIMIT_MIB = 48
_WARM_UP_S = 60.0

_SIZE = "16m"
# Not here: fallocate, fpunch, fiemap and verity, which pyfuse3 cannot serve, fsize, which needs the first,
# and io, which syncs and keeps busy every other file system of the machine as well.
_STRESSORS: dict[str, tuple[str, ...]] = {
    "access": (),
    "chdir": (),
    "chmod": (),
    "chown": (),
    "copy-file": ("--copy-file-bytes", "128m"),
    "dentry": (),
    "dir": (),
    "dirdeep": ("--dirdeep-inodes", "2000"),
    "dirmany": (),
    "fcntl": (),
    "filename": (),
    "flock": (),
    "fstat": (),
    "getdent": (),
    "hdd": ("--hdd-bytes", _SIZE),
    "inotify": (),
    "iomix": ("--iomix-bytes", "1m"),
    "lease": (),
    "link": (),
    "lockf": (),
    "lockofd": (),
    "mknod": (),
    "mmap": ("--mmap-file", "--mmap-bytes", _SIZE),
    "msync": ("--msync-bytes", _SIZE),
    "open": (),
    "rename": (),
    "revio": ("--revio-bytes", _SIZE),
    "seek": ("--seek-size", _SIZE),
    "symlink": (),
    "sync-file": ("--sync-file-bytes", _SIZE),
    "touch": (),
    "utime": (),
    "xattr": (),
}
_VERIFIED_WRITES = (
    "--rw=randwrite",
    "--size=8m",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
)
_ENGINES: dict[str, tuple[str, ...]] = {
    "psync": ("--bsrange=4k-128k", "--fsync=64"),
    "mmap": ("--bs=4k",),
}
# A stressor ends what it has begun, and deletes it, after its time.
_STOPPING_TIMEOUT_S = 240.0
_SETTLING_TIMEOUT_S = 15.0


@dataclass
class Tally:
    """What a load did, and what it cost the daemon."""

    operations: Counter[str] = field(default_factory=Counter)
    written_mib: int = 0
    verified_mib: int = 0
    warm_mib: int = 0
    end_mib: int = 0
    peak_mib: int = 0

    def __str__(self) -> str:
        # An operation of xattr is some 36,000 calls, which all have to fit in a slice.
        began = [name for name, count in self.operations.items() if not count]
        return (
            f"{self.operations.total()} operations of {len(self.operations)} stressors "
            f"(of which in the middle of their first: {', '.join(began) or 'none'}), "
            f"{self.written_mib} MiB written and {self.verified_mib} MiB verified by fio; memory: "
            f"{self.warm_mib} MiB warm, {self.end_mib} MiB at the end, {self.peak_mib} MiB at most"
        )


def load(mount: Mount, duration_s: float, slice_s: int, stressors_at_once: int) -> Tally:
    """Load a mount that nobody else uses, slice after slice with other stressors, each of them at least once.

    Raises AssertionError where a program finds something wrong, the daemon complains, keeps memory or
    descriptors, or `check` is not content at the end. The store is unmounted then.
    """
    names = list(_STRESSORS)
    count = -(-len(names) // stressors_at_once)
    groups = [names[number::count] for number in range(count)]
    tally = Tally()
    _use_once(mount.mountpoint)
    descriptors = _descriptors(mount)
    started = time.monotonic()
    for number, group in enumerate(itertools.cycle(groups)):
        if number >= len(groups) and time.monotonic() - started >= duration_s:
            break
        _run_slice(mount, group, slice_s, tally)
        tally.end_mib = _memory_mib(mount.pid, "VmRSS")
        if number < len(groups) or time.monotonic() - started < _WARM_UP_S:
            tally.warm_mib = max(tally.warm_mib, tally.end_mib)
    tally.peak_mib = _memory_mib(mount.pid, "VmHWM")
    assert tally.operations.keys() == _STRESSORS.keys()
    assert list(mount.mountpoint.iterdir()) == [], "the programs left something behind"
    _assert_descriptors_return(mount, descriptors)
    _verify_after_remount(mount)
    assert not mount.complaints(), mount.complaints()
    checked = mount.run("check", mount.store)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert tally.peak_mib < PEAK_LIMIT_MIB, str(tally)
    assert tally.end_mib - tally.warm_mib < GROWTH_LIMIT_MIB, str(tally)
    return tally


def _run_slice(mount: Mount, names: list[str], slice_s: int, tally: Tally) -> None:
    scratch = mount.mountpoint / "load"
    scratch.mkdir()
    report = mount.directory / "stress-ng.yaml"
    commands = [_stress(names, slice_s, scratch, report)]
    results = {engine: mount.directory / f"fio-{engine}.json" for engine in _ENGINES}
    for engine, result in results.items():
        timed = ("--time_based", f"--runtime={slice_s}", "--verify_backlog=64")
        commands.append(_fio(engine, scratch, result, *timed))
    programs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        for program in programs:
            said, _ = program.communicate(timeout=slice_s + _STOPPING_TIMEOUT_S)
            assert program.returncode == 0, f"{program.args}\n{said}"
    finally:
        # Not killed: stress-ng ends its own workers, and then nothing of it is on the mount any more.
        for program in programs:
            program.terminate()
            program.wait(_STOPPING_TIMEOUT_S)
    for name, count in re.findall(r"stressor: (\S+)\s+bogo-ops: (\d+)", report.read_text()):
        tally.operations[name] += int(count)
    for result in results.values():
        written, verified = _fio_bytes(result)
        tally.written_mib += written >> 20
        tally.verified_mib += verified >> 20
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()


def _stress(names: list[str], slice_s: int, scratch: Path, report: Path) -> list[str]:
    command = ["stress-ng", "--verify", "--metrics", "--temp-path", str(scratch), "--yaml", str(report)]
    for name in names:
        command += [f"--{name}", "1", *_STRESSORS[name]]
    return [*command, "--timeout", f"{slice_s}s"]


def _fio(engine: str, scratch: Path, result: Path, *options: str) -> list[str]:
    names = [f"--name={engine}", f"--directory={scratch}", f"--ioengine={engine}", f"--output={result}"]
    return ["fio", "--output-format=json", *names, *_VERIFIED_WRITES, *_ENGINES[engine], *options]


def _fio_bytes(result: Path) -> tuple[int, int]:
    """What a job wrote, and what it read again to verify it."""
    [job] = json.loads(result.read_text())["jobs"]
    assert job["error"] == 0, job
    return job["write"]["io_bytes"], job["read"]["io_bytes"]


def _verify_after_remount(mount: Mount) -> None:
    """What fio has written is verified once more from the store alone; leaves the store unmounted."""
    result = mount.directory / "fio.json"
    for turn in (("--do_verify=0",), ("--verify_only",)):
        for engine in _ENGINES:
            _, verified = _run_fio(_fio(engine, mount.mountpoint, result, *turn), result)
            assert bool(verified) == (turn == ("--verify_only",)), f"{engine}: {verified} bytes verified"
        mount.remount()
    mount.unmount()


def _run_fio(command: list[str], result: Path) -> tuple[int, int]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_STOPPING_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return _fio_bytes(result)


def _use_once(folder: Path) -> None:
    """What the daemon opens for good, it opens now."""
    path = folder / "first"
    path.write_bytes(b"first")
    with open(path, "rb") as file:
        file.read()
        os.fsync(file.fileno())
    path.unlink()


def _descriptors(mount: Mount) -> Counter[str]:
    """What the daemon has open, by name without numbers: it goes on to the next folder of objects."""
    names = (os.readlink(path) for path in Path(f"/proc/{mount.pid}/fd").iterdir())
    return Counter(re.sub(r"(objects/)\d+", r"\1", name) for name in names)


def _assert_descriptors_return(mount: Mount, before: Counter[str]) -> None:
    """The kernel releases files a moment after the programs have gone, the barrier objects soon after."""
    # The barrier's own connection to the index is made when the first checkpoint is due, and behind it the
    # log is mapped, for which Python keeps a descriptor. And SQLite keeps one of a connection that is closed,
    # that for copying the index, for the next one of its kind.
    suffixes = ("", "", "-wal", "-wal", "-shm")
    allowed = before + Counter(f"{mount.store}/index.db{suffix}" for suffix in suffixes)
    deadline = time.monotonic() + _SETTLING_TIMEOUT_S
    while left := _descriptors(mount) - allowed:
        assert time.monotonic() < deadline, f"still open: {left}"
        time.sleep(0.1)


def _memory_mib(pid: int, what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) >> 10
