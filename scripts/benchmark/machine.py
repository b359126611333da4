"""A description of where the numbers come from. No hosts and no paths: it is meant to be published."""

import os
import platform
import re
from importlib import metadata

from . import process
from .systems import first_line

PACKAGES = ("pyfuse3", "trio", "cryptography", "apsw-sqlite3mc")


def describe(workdir: str, own_file_systems: bool) -> dict[str, object]:
    """CPU, kernel, memory, file system and versions."""
    below = process.filesystem_of(workdir)
    cpu = re.search(r"^model name\s*:\s*(.+)$", process.read_proc("cpuinfo"), re.M)
    return {
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(_total_memory() / 1e9, 1),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "file_system": f"ext4 of their own on loop devices over {below}" if own_file_systems else below,
        "python": platform.python_version(),
        "packages": {name: _package(name) for name in PACKAGES},
        "tools": {
            "cp": first_line(["cp", "--version"]),
            "rsync": first_line(["rsync", "--version"]),
            "fusermount3": first_line(["fusermount3", "--version"]),
        },
    }


def sentence(machine: dict) -> str:
    """The description in one line, for a document."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        f"{machine['distribution']}, Linux {machine['kernel']}, stores on {machine['file_system']}; "
        f"Python {machine['python']}, {packages}"
    )


def _total_memory() -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", process.read_proc("meminfo"), re.M)
    return int(match[1]) * 1024 if match else 0


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
