"""What is mounted where, who uses it, and how to unmount it."""

import errno
import glob
import os
import re
import subprocess
from dataclasses import dataclass

from pixstorefs.daemon import linux

SUBTYPE = "pixstorefs"
FILESYSTEM_TYPE = f"fuse.{SUBTYPE}"

# A desktop session has a few hundred processes; a message needs only the first few that are in the way.
_MAX_USERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo. `source` of our mounts is the path of the store."""

    mountpoint: str
    filesystem: str
    source: str
    device: str  # "major:minor"
    read_only: bool

    @property
    def is_ours(self) -> bool:
        return self.filesystem == FILESYSTEM_TYPE

    @property
    def is_automount(self) -> bool:
        """Whether a touch of this directory waits for somebody to mount on it: us, while we do that."""
        return self.filesystem == "autofs"


def mounted() -> list[MountEntry]:
    """All mounts this process sees; of several on one directory the topmost comes last."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return [_parse(line) for line in lines]


def find(path: str) -> MountEntry | None:
    """The topmost mount on `path` itself, without touching `path` where that can be avoided.

    A dead mount answers every access with an error and a hung one does not answer at all, so links
    are resolved in the parent first and the last component only if nothing was found.
    """
    absolute = os.path.abspath(path)
    parent, name = os.path.split(absolute)
    entries = {entry.mountpoint: entry for entry in mounted()}
    for candidate in (absolute, os.path.join(os.path.realpath(parent), name)):
        if candidate in entries:
            return entries[candidate]
    return entries.get(os.path.realpath(absolute))


def is_dead(mountpoint: str) -> bool:
    """Whether the process behind this FUSE mount is gone ("Transport endpoint is not connected").

    Asked by statvfs: the kernel never answers that from its caches, as it does stat even for the dead.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount; raises OSError, with EBUSY while programs use the mount.

    root asks the kernel; everyone else needs the setuid helper. In a user namespace root may be
    refused (EPERM) and the helper still work.
    """
    if os.geteuid() == 0:
        try:
            linux.umount(mountpoint, lazy=lazy)
        except PermissionError:
            pass
        else:
            return
    arguments = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    # The helper's words are the only way to tell "busy" from the rest.
    environment = os.environ | {"LC_ALL": "C"}
    try:
        result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "fusermount3 is not installed", mountpoint) from None
    if result.returncode != 0:
        reason = result.stderr.strip() or f"fusermount3 ended with {result.returncode}"
        number = errno.EBUSY if "busy" in reason.lower() else errno.EPERM
        raise OSError(number, reason, mountpoint)


def users(mountpoint: str) -> list[str]:
    """Programs that keep the mount busy, as "name (pid)", as far as this user may see them."""
    found = []
    for process in glob.glob("/proc/[0-9]*"):
        if any(is_inside(link, mountpoint) for link in _links(process)):
            found.append(f"{_program(process)} ({os.path.basename(process)})")
        if len(found) == _MAX_USERS_NAMED:
            break
    return found


def _links(process: str) -> list[str]:
    """Where a process stands and what it has open. readlink never enters the file system itself."""
    targets = []
    for link in (f"{process}/cwd", f"{process}/root", *glob.glob(f"{process}/fd/*")):
        try:
            targets.append(os.readlink(link))
        except OSError:
            continue
    return targets


def _program(process: str) -> str:
    try:
        with open(f"{process}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def is_inside(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies in it. Both are real paths."""
    return path == directory or path.startswith(directory + "/")


def _parse(line: str) -> MountEntry:
    # 36 35 98:0 /root /mountpoint options [optional fields] - type source superoptions; proc(5)
    before, _, after = line.partition(" - ")
    fields, tail = before.split(" "), after.split(" ")
    return MountEntry(
        mountpoint=_unescape(fields[4]),
        filesystem=tail[0],
        source=_unescape(tail[1]),
        device=fields[2],
        read_only="ro" in fields[5].split(","),
    )


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline, '#' and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
