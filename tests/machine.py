"""A machine of one's own for what is installed system-wide: mount(8), fstab, other users.

It is this machine with a private mount namespace, in which /etc, /root, /sbin and /usr/local may be changed
without a trace, and /mnt holds nothing but the homes of `anna` and `berta`, two users. Needs root.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import COMMAND_TIMEOUT_S, cannot_run, program, wait_until_gone

from pixstorefs.daemon import mounts

CHECKOUT = Path(__file__).parent.parent
ANNA = 4321  # her user and group number
BERTA = 4322
_NUMBERS = {"anna": ANNA, "berta": BERTA}

# What a process has that systemd starts at boot: no HOME, nothing of XDG.
BOOT_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}

_SETUP = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
# As udev makes it; in containers it is often for root alone.
mknod -m 666 /mnt/.fuse c 10 229
mount --bind /mnt/.fuse /dev/fuse
for place in "$(readlink -f /sbin)" /usr/local /etc /root; do
  above=/mnt/.above$place
  mkdir -p $above/upper $above/work
  mount -t overlay -o lowerdir=$place,upperdir=$above/upper,workdir=$above/work overlay $place
done
for user in anna:4321 berta:4322; do
  name=${user%:*} number=${user#*:}
  echo "$name:x:$number:$number::/mnt/$name:/bin/sh" >>/etc/passwd
  echo "$name:x:$number:" >>/etc/group
  mkdir -m 700 /mnt/$name
  chown $number:$number /mnt/$name
done
: >/etc/fstab
chmod 711 /root # so that anna reaches a checkout below it
# What root of this machine mounted for himself is not this one's.
rm -rf /root/.local/share/pixstorefs/keyfiles /root/.local/state/pixstorefs
mkdir -m 700 /mnt/run
"""


class Machine:
    """Programs run in it; files in it are seen from outside below `root`."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            [
                program("unshare"),
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                "echo; exec sleep infinity",
            ],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            cannot_run("no mount namespace can be made here")
        self.root = Path(f"/proc/{self._holder.pid}/root")
        # Copies of what other tests have mounted would keep it alive in here after they have unmounted it.
        places = ("/tmp/", "/var/tmp/", tempfile.gettempdir() + "/")
        copies = [entry.mountpoint for entry in mounts.mounted() if entry.mountpoint.startswith(places)]
        if copies:
            self.run("umount", "--internal-only", "--lazy", *copies)
        setup = self.run("sh", "-c", _SETUP)
        if setup.returncode != 0:
            self.close()
            cannot_run(f"no machine can be made here: {setup.stderr}")

    def run(
        self,
        *arguments: str | bytes | os.PathLike[str],
        anna: bool = False,
        user: str | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as root at boot or as a user; never raises for its exit status."""
        user = "anna" if anna else user
        environment = BOOT_ENVIRONMENT | ({"HOME": f"/mnt/{user}"} if user else {}) | (env or {})
        prefix = [program("nsenter"), f"--target={self._holder.pid}", "--mount", "--wd=/"]
        if user:
            number = _NUMBERS[user]
            prefix += [program("setpriv"), f"--reuid={number}", f"--regid={number}", "--clear-groups"]
            prefix += ["--inh-caps=-all"]
        return subprocess.run(
            [*prefix, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    def ok(
        self, *arguments: str | bytes | os.PathLike[str], anna: bool = False, user: str | None = None
    ) -> str:
        """Run a program that has to succeed; returns what it prints."""
        result = self.run(*arguments, anna=anna, user=user)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def path(self, path: str) -> Path:
        """A path in the machine, for looking at from outside."""
        return self.root / path.lstrip("/")

    def mounts(self) -> list[str]:
        """Where a pixstorefs is mounted, alive or dead."""
        lines = Path(f"/proc/{self._holder.pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
        return [line.split(" ")[4].replace("\\040", " ") for line in lines if " - fuse.pixstorefs " in line]

    def daemons(self) -> list[int]:
        """Processes in it, beside the one that holds it."""
        own = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                inside = os.readlink(process / "ns" / "mnt") == own
            except OSError:
                continue  # it has just ended
            if inside and int(process.name) != self._holder.pid:
                found.append(int(process.name))
        return found

    def close(self) -> None:
        """Unmount what is left, wait for its processes, and let the machine go."""
        for mountpoint in self.mounts():
            self.run("umount", "--internal-only", "--lazy", mountpoint)
        try:
            for pid in self.daemons():
                try:
                    wait_until_gone(pid)
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
        finally:
            self._holder.kill()
            self._holder.communicate()


@contextmanager
def installed() -> Iterator[Machine]:
    """A machine on which scripts/install has been run for this checkout."""
    if os.geteuid() != 0:
        cannot_run("only root can change a machine of its own")
    if not Path(sys.prefix, ".pixstorefs").is_dir():
        cannot_run("scripts/install would set up an environment: run the tests by scripts/test")
    machine = Machine()
    try:
        if machine.run("test", "-x", CHECKOUT / "scripts" / "install").returncode != 0:
            cannot_run("the checkout is a mount below a directory that is replaced here")
        install = machine.run(CHECKOUT / "scripts" / "install")
        if "others than root can write to" in install.stderr:
            cannot_run("the checkout is not root's alone, so scripts/install refuses it")
        assert install.returncode == 0, install.stderr
        yield machine
    finally:
        machine.close()
