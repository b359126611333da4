"""Peers and tools from Debian's packages: installed when root runs the benchmark, named otherwise."""

import os
import shutil
import subprocess

TOOLS = {
    "rsync": "rsync",
    "fusermount3": "fuse3",
    "find": "findutils",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
}
NPM_SECONDS = 900  # what has to be compiled takes minutes


def missing(programs: tuple[str, ...]) -> list[str]:
    return [program for program in programs if not shutil.which(program)]


def install(packages: list[str]) -> str:
    """Install Debian packages. Returns what went wrong, or nothing."""
    if not shutil.which("apt-get"):
        return "there is no apt-get here"
    if os.geteuid():
        return f"run as root, or install: apt-get install {' '.join(packages)}"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:  # the lists may never have been fetched
        subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip()[-300:] if done.returncode else ""


def version_of(package: str) -> str:
    """The version of an installed Debian package, for programs that do not tell their own."""
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def ensure(programs: tuple[str, ...], packages: tuple[str, ...]) -> str:
    """Make programs available. Returns what went wrong, or nothing."""
    if not missing(programs):
        return ""
    problem = install(list(packages))
    if not problem and (absent := missing(programs)):
        problem = f"{', '.join(absent)} not found after the installation"
    return problem


def ensure_tools() -> str:
    """The tools the rows are made of."""
    absent = missing(tuple(TOOLS))
    return ensure(tuple(absent), tuple(TOOLS[program] for program in absent)) if absent else ""


def install_from_npm(folder: str, package: str) -> str:
    """Have an npm package below a folder of ours. Returns what is wrong, or nothing."""
    if absent := missing(("node", "npm")):
        return f"{' and '.join(absent)} not found"
    if os.path.isdir(os.path.join(folder, "node_modules", package.partition("@")[0])):
        return ""
    os.makedirs(folder, exist_ok=True)
    command = ["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", package]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npm install: {error}"
    return f"npm install: {done.stderr.strip()[-300:]}" if done.returncode else ""
