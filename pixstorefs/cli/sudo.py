"""Root by mistake: what somebody makes with sudo is root's, and out of his own reach.

A new store is refused, because the way out is short and nothing is lost; a store that exists is mounted with
a line, because an administrator may well mean it.
"""

import os
import shlex

from pixstorefs.cli import console
from pixstorefs.errors import InvalidInput


def refuse_new(path: str, mountpoint: str) -> None:
    """Refuse to make a store by the way, for a mount. Raises InvalidInput."""
    if _person() is None:
        return
    store, place = shlex.quote(path), shlex.quote(mountpoint)
    own = shlex.quote(os.path.basename(os.path.realpath(mountpoint)) or "images")
    raise InvalidInput(
        f"there is no store at {path}, and with sudo it would be root's, and so would its keyfile and the "
        "mount: you could not reach your images. Nothing was made. Run it without sudo, on a directory of "
        f"yours: pixstorefs mount {store} ~/{own}. If root is to have it: "
        f"sudo pixstorefs mount --create {store} {place}"
    )


def tell_new(path: str) -> None:
    """Say whose a store is that was just made."""
    if _person() is not None:
        console.note(
            f"the store {path} and its keyfile belong to root, because of sudo: only root can mount it. "
            "If it was meant for you, make another one without sudo."
        )


def tell_existing(path: str) -> None:
    """Say so where root is about to write into the store of who typed sudo."""
    person = _person()
    if person is not None and os.stat(path).st_uid == person:
        console.note(
            f"{path} is your own store, and sudo mounts it as root: what is written to it now belongs to "
            "root, and may keep you from opening it later. Unmount it, and mount it without sudo, or with "
            f"-o setuid={person}. To take back what is root's by then: "
            f"sudo chown -R {person} {shlex.quote(path)}"
        )


def _person() -> int | None:
    """The user who became root by sudo."""
    uid = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not (uid.isascii() and uid.isdecimal()) or int(uid) == 0:
        return None
    return int(uid)
