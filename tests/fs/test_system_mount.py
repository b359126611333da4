"""mount(8), umount(8), fstab and other users, on a machine on which pixstorefs is installed."""

import os
import signal
from collections.abc import Iterator

import pytest
from machine import ANNA, CHECKOUT, Machine, installed
from support import cannot_run, wait_until_gone

STORE = "/mnt/store"
MOUNTPOINT = "/mnt/images"


# Keyfiles, logs and caches of root and of anna, and their stores: made once, put in place for every test.
_KEEP = """
pixstorefs init /mnt/store
mkdir /mnt/.made
cp -a /mnt/store /mnt/.made/store
cp -a /root/.local /mnt/.made/root
cp -a /mnt/anna /mnt/.made/anna
"""
_RESET = """
rm -rf /mnt/store* /mnt/images* /root/.local /mnt/anna
cp -a /mnt/.made/store /mnt/store
cp -a /mnt/.made/root /root/.local
cp -a /mnt/.made/anna /mnt/anna
mkdir /mnt/images
: >/etc/fstab
"""


# Puts an automount on a directory and mounts there; a mount that touches the directory waits for itself.
_AS_SYSTEMD_DOES = """
import os, subprocess, sys
read_end, write_end = os.pipe()
options = f"fd={write_end},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
words = ["mount", "-t", "autofs", "-o", options, "systemd-1", sys.argv[1]]
subprocess.run(words, pass_fds=[write_end], check=True)
os.close(write_end)
process = subprocess.Popen(["mount", sys.argv[1]], start_new_session=True)
try:
    status = process.wait(20)
except subprocess.TimeoutExpired:
    os.killpg(process.pid, 9)
    status = "the mount waits for itself"
sys.exit(status)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with installed() as made:
        if made.run("pixstorefs", "init", "/mnt/anna/store", anna=True).returncode == 0:
            made.ok("mkdir", "/mnt/anna/Photos", anna=True)
        made.ok("sh", "-ec", _KEEP)
        yield made


@pytest.fixture
def store(machine: Machine) -> Iterator[Machine]:
    """The machine with a store of root's, a mountpoint and an empty fstab."""
    machine.ok("sh", "-ec", _RESET)
    yield machine
    for mountpoint in machine.mounts():
        machine.ok("pixstorefs", "umount", mountpoint)
    for pid in machine.daemons():
        wait_until_gone(pid)  # umount(8) returned while it was still saving


@pytest.fixture
def anna(store: Machine) -> Machine:
    """The machine with a store of anna's in her home, and ~/Photos to mount it on."""
    if not store.path("/mnt/anna/store").exists():
        cannot_run("other users cannot reach this checkout")
    return store


def fstab(machine: Machine, *lines: str) -> None:
    machine.path("/etc/fstab").write_text("".join(f"{line} 0 0\n" for line in lines))


def daemon(machine: Machine) -> int:
    [pid] = machine.daemons()
    return pid


class TestMountCommand:
    """`mount -t TYPE STORE MOUNTPOINT` and `umount MOUNTPOINT`."""

    @pytest.mark.parametrize("helper", ["mount.pixstorefs", "mount.fuse.pixstorefs", "mount.fuse3"])
    def test_mount_write_umount(self, store: Machine, helper: str) -> None:
        """By either type, and where mount(8) finds no helper of ours but libfuse's."""
        if helper == "mount.fuse3":
            store.ok("rm", "/sbin/mount.fuse.pixstorefs")
        kind = "pixstorefs" if helper == "mount.pixstorefs" else "fuse.pixstorefs"
        try:
            store.ok("mount", "-t", kind, "-o", "noexec,nodev,nosuid", STORE, MOUNTPOINT)
            store.path(f"{MOUNTPOINT}/a.jpg").write_bytes(b"w" * 3_000_000)
            told = store.ok("findmnt", "--noheadings", "--raw", "-o", "SOURCE,FSTYPE,OPTIONS", MOUNTPOINT)
            assert told.startswith(f"{STORE} fuse.pixstorefs rw,nosuid,nodev,noexec,")
            store.ok("umount", MOUNTPOINT)
            store.ok("mount", "-r", "-t", kind, STORE, MOUNTPOINT)
            assert store.path(f"{MOUNTPOINT}/a.jpg").read_bytes() == b"w" * 3_000_000
            with pytest.raises(OSError, match="Read-only"):
                store.path(f"{MOUNTPOINT}/b.jpg").touch()
        finally:
            store.ok("ln", "-sfn", CHECKOUT / "scripts" / "pixstorefs", "/sbin/mount.fuse.pixstorefs")

    @pytest.mark.parametrize("kind", ["pixstorefs", "fuse.pixstorefs"])
    def test_names_that_need_escaping(self, store: Machine, kind: str) -> None:
        """Spaces, commas, quotes, and bytes that are no text."""
        name = 'it\'s, "quoted" caf\udce9'
        where = f"/mnt/images {name}"
        store.ok("mv", STORE, f"/mnt/store {name}")
        store.ok("mkdir", where)
        store.ok("mount", "-t", kind, f"/mnt/store {name}", where)
        store.ok("cp", "/etc/passwd", where)
        assert '"mountpoint": "/mnt/images it' in store.ok("pixstorefs", "status", "--json")
        store.ok("pixstorefs", "status")
        store.ok("pixstorefs", "umount", where)
        assert store.daemons() == []

    @pytest.mark.parametrize("option", ["fmask=022", "idle_unmount=soon"])
    def test_option_that_cannot_be_used_is_named(self, store: Machine, option: str) -> None:
        result = store.run("mount", "-t", "pixstorefs", "-o", f"noatime,{option}", STORE, MOUNTPOINT)
        assert result.returncode == 1  # mount(8): incorrect invocation
        assert option.removeprefix("idle_unmount=") in result.stderr
        assert store.mounts() == []

    def test_sloppy_and_fake(self, store: Machine) -> None:
        store.ok("mount", "-f", "-t", "pixstorefs", STORE, MOUNTPOINT)
        assert store.mounts() == []
        store.ok("mount", "-s", "-n", "-v", "-t", "pixstorefs", "-o", "bogus,uid=3", STORE, MOUNTPOINT)
        assert store.mounts() == [MOUNTPOINT]

    def test_other_namespaces_are_refused(self, store: Machine) -> None:
        result = store.run("/sbin/mount.pixstorefs", STORE, MOUNTPOINT, "-N", "/proc/1/ns/mnt")
        assert result.returncode == 1
        assert "nsenter" in result.stderr

    def test_remount(self, store: Machine) -> None:
        """remount,ro forbids writing, while nobody writes, and remount,rw brings it back; nosuid stays."""
        store.ok("mount", "-t", "pixstorefs", "-o", "noexec", STORE, MOUNTPOINT)
        with open(store.path(f"{MOUNTPOINT}/a.jpg"), "wb") as file:
            file.write(b"kept")
            busy = store.run("mount", "-o", "remount,ro", MOUNTPOINT)
            assert busy.returncode == 32
            assert f"({os.getpid()})" in busy.stderr
        store.ok("mount", "-o", "remount,ro", MOUNTPOINT)
        refused = store.run("touch", f"{MOUNTPOINT}/b.jpg")
        assert "Read-only file system" in refused.stderr
        assert "read-only" in store.ok("pixstorefs", "status", MOUNTPOINT)
        options = store.ok("findmnt", "-n", "-o", "OPTIONS", MOUNTPOINT)
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.strip().split(","))
        store.ok("mount", "-o", "remount,rw", MOUNTPOINT)
        store.ok("touch", f"{MOUNTPOINT}/b.jpg")
        assert store.ok("cat", f"{MOUNTPOINT}/a.jpg") == "kept"
        store.ok("umount", MOUNTPOINT)
        nothing = store.run("mount", "-t", "pixstorefs", "-o", "remount,ro", STORE, MOUNTPOINT)
        assert nothing.returncode == 32
        assert "cannot be remounted" in nothing.stderr

    def test_missing_store_is_not_created(self, store: Machine) -> None:
        """At boot it is the disk of the store that is missing."""
        result = store.run("mount", "-t", "pixstorefs", "/mnt/store-on-a-disk", MOUNTPOINT)
        assert result.returncode == 32  # mount(8): mount failure
        assert "/mnt/store-on-a-disk" in result.stderr
        assert not store.path("/mnt/store-on-a-disk").exists()

    def test_busy_mount_names_who_uses_it(self, store: Machine) -> None:
        store.ok("mount", "-t", "pixstorefs", STORE, MOUNTPOINT)
        with open(store.path(f"{MOUNTPOINT}/a.jpg"), "wb"):
            assert "busy" in store.run("umount", MOUNTPOINT).stderr
            refused = store.run("pixstorefs", "umount", MOUNTPOINT)
            assert f"({os.getpid()})" in refused.stderr
        store.ok("umount", MOUNTPOINT)


class TestFstab:
    """Lines of /etc/fstab, mounted in the environment of a boot: no HOME, nothing of XDG."""

    def test_boot(self, store: Machine) -> None:
        """The keyfile is found, and the log kept, in root's home as /etc/passwd has it."""
        fstab(store, f"{STORE} {MOUNTPOINT} pixstorefs nofail,x-systemd.automount,x-gvfs-show,noatime")
        store.ok("mount", "--all")
        store.ok("mount", "--all")  # finds it mounted
        assert store.mounts() == [MOUNTPOINT]
        [log] = store.path("/root/.local/state/pixstorefs").glob("images-*.log")
        assert "INFO mounted" in log.read_text()

    def test_automount(self, store: Machine) -> None:
        """`x-systemd.automount`: whoever touches the directory waits until it is mounted on; we must not."""
        fstab(store, f"{STORE} {MOUNTPOINT} pixstorefs noauto,x-systemd.automount")
        store.ok("python3", "-c", _AS_SYSTEMD_DOES, MOUNTPOINT)
        assert store.mounts() == [MOUNTPOINT]
        store.path(f"{MOUNTPOINT}/a.jpg").write_bytes(b"works")
        store.ok("pixstorefs", "umount", MOUNTPOINT)
        store.ok("umount", "--types", "autofs", MOUNTPOINT)

    def test_automount_for_a_person(self, anna: Machine) -> None:
        """fusermount3, which she needs, would touch the directory."""
        fstab(anna, f"/mnt/anna/store {MOUNTPOINT} pixstorefs noauto,setuid=anna,x-systemd.automount")
        result = anna.run("python3", "-c", _AS_SYSTEMD_DOES, MOUNTPOINT)
        anna.ok("umount", "--types", "autofs", MOUNTPOINT)
        assert result.returncode == 32
        assert "x-systemd.automount" in result.stderr

    def test_spaces_and_keyfile(self, store: Machine) -> None:
        store.ok("sh", "-c", "mv /mnt/store '/mnt/store of images'; mv /mnt/images '/mnt/images of mine'")
        store.ok("sh", "-c", "mv /root/.local/share/pixstorefs/keyfiles/*.key '/root/a, b.key'")
        keyfile = r'keyfile="/root/a,\040b.key"'
        fstab(store, rf"/mnt/store\040of\040images /mnt/images\040of\040mine pixstorefs noauto,{keyfile}")
        store.ok("mount", "/mnt/images of mine")
        assert store.mounts() == ["/mnt/images of mine"]
        store.ok("umount", "/mnt/images of mine")
        assert store.mounts() == []

    def test_passphrase_file_and_another_fstab(self, store: Machine) -> None:
        store.path("/root/passphrase").write_text("correct horse\n")
        store.ok("pixstorefs", "init", "/mnt/store2", "--passphrase-file", "/root/passphrase")
        store.path("/root/fstab").write_text(
            f"/mnt/store2 {MOUNTPOINT} fuse.pixstorefs passphrase_file=/root/passphrase,ro 0 0\n"
        )
        store.ok("mount", "--fstab", "/root/fstab", MOUNTPOINT)
        assert store.mounts() == [MOUNTPOINT]

    def test_no_key(self, store: Machine) -> None:
        """Nobody can be asked at boot: the message says what would open the store."""
        store.ok("rm", "-r", "/root/.local/share")
        fstab(store, f"{STORE} {MOUNTPOINT} pixstorefs defaults")
        result = store.run("mount", MOUNTPOINT)
        assert result.returncode == 32
        assert "keyfile" in result.stderr
        assert store.mounts() == []

    def test_killed_daemon(self, store: Machine) -> None:
        """The dead mount stays, and fails every program, until mount(8) is told to mount again."""
        fstab(store, f"{STORE} {MOUNTPOINT} pixstorefs defaults")
        store.ok("mount", MOUNTPOINT)
        store.path(f"{MOUNTPOINT}/a.jpg").write_bytes(b"saved")
        pid = daemon(store)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        listed = store.run("ls", MOUNTPOINT)
        assert listed.returncode != 0
        assert "not connected" in listed.stderr or "connection abort" in listed.stderr
        store.ok("mount", MOUNTPOINT)
        assert store.mounts() == [MOUNTPOINT]
        assert store.path(f"{MOUNTPOINT}/a.jpg").read_bytes() == b"saved"

    def test_killed_daemon_and_umount(self, store: Machine) -> None:
        store.ok("mount", "-t", "pixstorefs", STORE, MOUNTPOINT)
        pid = daemon(store)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        store.ok("umount", MOUNTPOINT)
        assert store.mounts() == []

    @pytest.mark.parametrize("kind", ["pixstorefs", "fuse.pixstorefs"])
    def test_mount_at_boot_for_a_person(self, anna: Machine, kind: str) -> None:
        """`setuid=anna`: her keyfile opens it, the daemon runs as her, and the images are hers alone."""
        fstab(anna, f"/mnt/anna/store /mnt/anna/Photos {kind} setuid=anna,nofail")
        anna.ok("mount", "--all")
        assert os.stat(f"/proc/{daemon(anna)}").st_uid in (0, ANNA)  # 0: nobody may look into the daemon
        status = anna.ok("cat", f"/proc/{daemon(anna)}/status")
        assert f"Uid:\t{ANNA}\t{ANNA}\t{ANNA}\t{ANNA}" in status
        assert "CapEff:\t0000000000000000" in status
        anna.ok("sh", "-c", "echo image >/mnt/anna/Photos/a.jpg", anna=True)
        assert anna.run("cat", "/mnt/anna/Photos/a.jpg").returncode != 0  # not even root
        assert anna.ok("stat", "-c", "%U", "/mnt/anna/Photos/a.jpg", anna=True) == "anna\n"
        assert list(anna.path("/mnt/anna/.local/state/pixstorefs").glob("Photos-*.log"))
        anna.ok("umount", "/mnt/anna/Photos", anna=True)

    def test_mount_for_nobody_known(self, store: Machine) -> None:
        result = store.run("mount", "-t", "pixstorefs", "-o", "setuid=carla", STORE, MOUNTPOINT)
        assert result.returncode == 1
        assert "carla" in result.stderr


class TestWithoutRoot:
    """anna, who has no rights but hers."""

    def test_line_for_users(self, anna: Machine) -> None:
        """With `user` in fstab she mounts and unmounts by mount(8) and umount(8)."""
        fstab(anna, "/mnt/anna/store /mnt/anna/Photos pixstorefs noauto,user")
        anna.ok("mount", "/mnt/anna/Photos", anna=True)
        anna.ok("cp", "/etc/passwd", "/mnt/anna/Photos", anna=True)
        anna.ok("umount", "/mnt/anna/Photos", anna=True)
        assert anna.mounts() == []

    @pytest.mark.parametrize("words", ["pixstorefs umount", "fusermount3 -u", "umount"])
    def test_own_mount(self, anna: Machine, words: str) -> None:
        """What she mounted she unmounts, with no line in fstab."""
        anna.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
        anna.ok("cp", "/etc/passwd", "/mnt/anna/Photos/a.jpg", anna=True)
        pid = daemon(anna)
        anna.ok(*words.split(), "/mnt/anna/Photos", anna=True)
        wait_until_gone(pid)
        assert anna.mounts() == []
        anna.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
        anna.ok("cmp", "/etc/passwd", "/mnt/anna/Photos/a.jpg", anna=True)

    def test_busy_mount_names_who_uses_it(self, anna: Machine) -> None:
        anna.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
        script = "cd /mnt/anna/Photos; pixstorefs umount /mnt/anna/Photos; echo $? $$"
        result = anna.run("sh", "-c", script, anna=True)
        status, shell = result.stdout.split()
        assert status == "3"
        assert f"sh ({shell})" in result.stderr
        assert anna.mounts() == ["/mnt/anna/Photos"]

    def test_mount_of_another_user(self, anna: Machine) -> None:
        anna.ok("mount", "-t", "pixstorefs", STORE, MOUNTPOINT)
        for words in ("pixstorefs umount", "umount"):
            result = anna.run(*words.split(), MOUNTPOINT, anna=True)
            assert result.returncode != 0
            assert "Traceback" not in result.stderr
        assert anna.mounts() == [MOUNTPOINT]

    def test_setuid_is_for_root(self, anna: Machine) -> None:
        words = ("/mnt/anna/store", "/mnt/anna/Photos", "-o", "setuid=root")
        result = anna.run("pixstorefs", "mount", *words, anna=True)
        assert result.returncode == 2
        assert "only root" in result.stderr


class TestInstall:
    """scripts/install."""

    def test_unit_is_one_that_systemd_understands(self, machine: Machine) -> None:
        if machine.run("systemd-analyze", "--version").returncode != 0:
            pytest.skip("there is no systemd here")
        place = {"XDG_RUNTIME_DIR": "/mnt/run"}
        result = machine.run("systemd-analyze", "--user", "verify", "pixstorefs@photos.service", env=place)
        assert (result.returncode, result.stderr) == (0, "")

    @pytest.mark.parametrize(
        "opened",
        ["chown -R anna:anna .", "chmod g+w,o+w pixstorefs/cli/mount.py", "chgrp anna . && chmod g+w ."],
    )
    def test_a_checkout_that_others_can_write_to_is_refused(self, machine: Machine, opened: str) -> None:
        """Root would run at boot what they write: it says how to make a copy, which installs."""
        machine.ok("mkdir", "-p", "-m", "755", "/mnt/checkout")
        parts = ["scripts", "pixstorefs", "docs", "pyproject.toml"]
        machine.ok("cp", "-r", *(CHECKOUT / part for part in parts), "/mnt/checkout")
        machine.ok("sh", "-ec", f"cd /mnt/checkout; chmod -R go-w .; {opened}")
        refused = machine.run("/mnt/checkout/scripts/install")
        machine.ok("rm", "-rf", "/mnt/checkout")
        assert refused.returncode == 69
        assert "others than root can write to /mnt/checkout" in refused.stderr
        assert "/opt/pixstorefs/scripts/install" in refused.stderr
        assert str(CHECKOUT) in machine.ok("readlink", "-f", "/sbin/mount.pixstorefs")

    def test_remove_takes_away_what_is_ours_only(self, machine: Machine) -> None:
        links = [
            line.split(" ")[2] for line in machine.run(CHECKOUT / "scripts" / "install").stderr.splitlines()
        ]
        assert len(links) == 4
        machine.ok("ln", "-sfn", "/bin/true", links[0])
        refused = machine.run(CHECKOUT / "scripts" / "install")
        assert refused.returncode == 69
        assert links[0] in refused.stderr
        machine.ok(CHECKOUT / "scripts" / "install", "--remove")
        assert [link for link in links if os.path.lexists(machine.path(link))] == [links[0]]
        machine.ok("rm", links[0])
        machine.ok(CHECKOUT / "scripts" / "install")
