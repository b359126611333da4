"""Which user mounts: becoming another one before anything is opened, for a person's mount at boot."""

import os
import pwd

from pixstorefs.errors import InvalidInput

# What tells programs where a user keeps his files. Root's would lead them astray.
_OF_THE_CALLER = (
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
)


# The whole of them, as they are: the first user namespace of the machine (user_namespaces(7)).
_ALL_USERS = ["0", "0", "4294967295"]


def may_do_everything() -> bool:
    """Whether this is root of the machine. In a user namespace root has the rights of who made it."""
    if os.geteuid() != 0:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == _ALL_USERS
    except OSError:
        return True  # without /proc, or user namespaces


def become(name: str) -> None:
    """Give up this process's user for the one of this name or number, groups and home included, for good.

    Raises InvalidInput where there is no such user, or this one may not become him.
    """
    try:
        user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise InvalidInput(f"setuid={name}: there is no such user. Nothing was mounted.") from None
    if os.getuid() == user.pw_uid:
        return
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except PermissionError:
        raise InvalidInput(
            f"setuid={name}: only root may mount for another user. Nothing was mounted."
        ) from None
    for variable in _OF_THE_CALLER:
        os.environ.pop(variable, None)
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
