"""What /proc knows: processes, mounts, memory."""

import os
import re
import time

TICKS = os.sysconf("SC_CLK_TCK")


def read_proc(*parts: object) -> str:
    """A file of /proc, or nothing when its process is gone."""
    try:
        with open(os.path.join("/proc", *map(str, parts)), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; the name before it may contain anything."""
    return read_proc(pid, "stat").rpartition(")")[2].split()


def alive(pid: int) -> bool:
    fields = stat_fields(pid)
    return bool(fields) and fields[0] not in "ZX"


def started(pid: int) -> str:
    """When the process started; with the pid it names one process and not a later one."""
    fields = stat_fields(pid)
    return fields[19] if fields else ""


def family(pid: int) -> list[int]:
    """The process and everything it started that still runs."""
    parents = {int(entry): stat_fields(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    members = [pid]
    for member in members:
        members += [child for child, fields in parents.items() if fields and int(fields[1]) == member]
    return members


def cpu_seconds(pid: int) -> float:
    """CPU time of the process, its threads and its children, the waited-for ones too."""
    return sum(sum(map(int, stat_fields(member)[11:15])) for member in family(pid)) / TICKS


def peak_bytes(pid: int) -> int:
    """The largest resident size so far, of the process and its children together."""
    found = [re.search(r"^VmHWM:\s+(\d+) kB", read_proc(member, "status"), re.M) for member in family(pid)]
    return sum(int(match[1]) * 1024 for match in found if match)


def resident_bytes(pid: int) -> int:
    """The resident size now, of the process and its children together."""
    found = [re.search(r"^VmRSS:\s+(\d+) kB", read_proc(member, "status"), re.M) for member in family(pid)]
    return sum(int(match[1]) * 1024 for match in found if match)


def reset_peak(pid: int) -> None:
    """Start the count of the largest resident size again."""
    for member in family(pid):
        try:
            with open(f"/proc/{member}/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        except OSError:  # not ours to reset: the peak then counts from the mount
            pass


def with_argument(argument: str) -> list[int]:
    """Processes that have this exact argument on their command line, the newest last."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
    found = [pid for pid in pids if argument in read_proc(pid, "cmdline").split("\0")[1:]]
    return sorted(found, key=lambda pid: int(started(pid) or 0))


def mount_points() -> dict[str, str]:
    """Mount point -> type of file system. Asks no file system anything, so a hanging one cannot hang us."""
    mounts = {}
    for line in read_proc("self", "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        mounts[point] = after.split()[0]
    return mounts


def mounts_below(path: str) -> list[str]:
    """Mount points below a directory, the innermost first."""
    below = os.path.realpath(path).rstrip("/") + "/"
    return sorted((point for point in mount_points() if point.startswith(below)), key=len, reverse=True)


def filesystem_of(path: str) -> str:
    """The type of the file system a path lies on."""
    real, mounts = os.path.realpath(path), mount_points()
    inside = [point for point in mounts if real == point or real.startswith(point.rstrip("/") + "/")]
    return mounts[max(inside, key=len)] if inside else "unknown"


def available_memory() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", read_proc("meminfo"), re.M)
    return int(match[1]) * 1024 if match else 0


def wait_until(condition, seconds: float, step: float = 0.02) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step)
    return True
