"""What to mount where: the one thing the command line hands to `serve`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MountPlan:
    """Both paths are real and absolute: the process that serves changes its directory.

    `durable_close`: close(2) returns when what it saved survives power loss.
    `idle_unmount_s`: unmount after that long without use; 0 for never.
    `busy_poll_s`: how long the daemon polls for the next request before it sleeps; 0 for not at all.
    `kernel_checks`: the kernel enforces modes and access control lists. Without, nobody does.
    `mounter`: user and group of who mounts, to be shown as the owner of the store; None for nobody.
    `uid`, `gid`, `umask`: what every file is shown with, whatever is stored.
    `break_lock`: a person says that the owner of the store on another machine is gone.
    `log_names`: the log names images, which it else calls by their inode numbers. `tell_names`: so does what
    is told when the mount answers.
    `flags` are mount options passed on to libfuse as they are (noexec, dev, ...).
    """

    store_path: str
    mountpoint: str
    read_only: bool = False
    allow_other: bool = False
    durable_close: bool = False
    idle_unmount_s: float = 0.0
    busy_poll_s: float = 0.0
    kernel_checks: bool = True
    mounter: tuple[int, int] | None = None
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    break_lock: bool = False
    log_names: bool = False
    tell_names: bool = False
    flags: frozenset[str] = frozenset()
