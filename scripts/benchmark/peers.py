"""The peers: other encrypting file systems, as Debian packages them and with the settings they propose."""

import os

from . import packages
from .systems import PASSPHRASE, Floor, FuseSystem, Pixstorefs, Plain, System, first_line


class Gocryptfs(FuseSystem):
    """AES-256-GCM in 4 KiB blocks, Go."""

    name = "gocryptfs"
    packages = programs = ("gocryptfs",)

    def create_store(self) -> None:
        # The cost of scrypt is paid once a mount; no row measures it.
        self.run(["gocryptfs", "-init", "-q", "-passfile", self.secret, "-scryptn", "10", self.store])

    def command(self) -> list[str]:
        return ["gocryptfs", "-q", "-passfile", self.secret, self.store, self.mountpoint]

    def version(self) -> str:
        return first_line(["gocryptfs", "-version"])


class Cryfs(FuseSystem):
    """XChaCha20-Poly1305 in blocks of 16 KiB that hide the shape of the tree, C++."""

    name = "cryfs"
    settle_seconds = 3.0  # it keeps written blocks to itself for a while, whatever sync(2) says
    packages = programs = ("cryfs",)
    answer = PASSPHRASE + "\n"

    def environment(self) -> dict[str, str]:
        # Its memory of file systems it has seen belongs into the work directory, not into the home directory.
        return os.environ | {
            "CRYFS_FRONTEND": "noninteractive",
            "CRYFS_NO_UPDATE_CHECK": "true",
            "CRYFS_LOCAL_STATE_DIR": os.path.join(self.workdir, "state"),
        }

    def command(self) -> list[str]:
        return ["cryfs", self.store, self.mountpoint]


class Encfs(FuseSystem):
    """AES-256-CBC in 1 KiB blocks, without integrity, C++. Unmaintained, known to be weak, still in use."""

    name = "encfs"
    packages = programs = ("encfs",)
    answer = PASSPHRASE + "\n"

    def command(self) -> list[str]:
        return ["encfs", "--standard", "--stdinpass", self.store, self.mountpoint]


class Securefs(FuseSystem):
    """AES-256-GCM, C++. Its full format hides the tree: two files an inode, data and metadata."""

    name = "securefs"
    packages = programs = ("securefs",)
    answer = PASSPHRASE + "\n"
    format = "2"

    def create_store(self) -> None:
        command = ["securefs", "create", "--format", self.format, self.store]
        self.run(command, f"{PASSPHRASE}\n{PASSPHRASE}\n")

    def command(self) -> list[str]:
        # In the background it writes its log into the working directory unless it is told where.
        return ["securefs", "mount", "--log", self.log, "-b", self.store, self.mountpoint]

    def version(self) -> str:
        return f"{packages.version_of('securefs')}, format {self.format}"


class SecurefsLite(Securefs):
    """Its lite format, the default of today: names are encrypted in place, the tree is to be seen."""

    name = "securefs-lite"
    format = "4"


DEFAULT_SYSTEMS: tuple[type[System], ...] = (Pixstorefs, Gocryptfs, Plain, Floor, Cryfs, Encfs, Securefs)
SYSTEMS: dict[str, type[System]] = {system.name: system for system in (*DEFAULT_SYSTEMS, SecurefsLite)}
