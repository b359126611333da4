"""A store that comes to another user or another machine: whoever has its key can use it."""

from collections.abc import Iterator

import pytest
from machine import ANNA, BERTA, Machine, installed
from support import cannot_run, wait_until_gone

NOBODY_KNOWN = 5555

# Each runs in the directory of the mount, as the user who mounted it.
_FILL = """
import os
for folder in (".", "2025", "2026/holidays"):
    os.makedirs(folder, exist_ok=True)
    for number in range(4):
        with open(f"{folder}/{number}.jpg", "wb") as file:
            file.write(f"{folder}/{number}".encode() * 20_000)
        os.chmod(f"{folder}/{number}.jpg", (0o644, 0o600, 0o400, 0o640)[number])
os.chmod("2025", 0o700)
"""
# Every image is read, then changed by each of the calls that an owner may do.
_USE = """
import os
own = os.getuid(), os.getgid()
seen = 0
for folder in (".", "2025", "2026/holidays"):
    for number in range(4):
        path = f"{folder}/{number}.jpg"
        with open(path, "rb") as file:
            assert file.read() == f"{folder}/{number}".encode() * 20_000, path
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == own, path
        os.chown(path, *own)
        os.chmod(path, 0o640)
        with open(path, "r+b") as file:
            file.write(b"changed")
        os.utime(path)
        os.setxattr(path, "user.note", b"mine")
        os.rename(path, f"{path}.old")
        seen += 1
    with open(f"{folder}/new.jpg", "xb") as file:
        file.write(b"new")
    os.mkdir(f"{folder}/more")
    os.symlink("new.jpg", f"{folder}/link")
assert seen == 12
"""
_LOOK = """
import os
found = set()
for folder, folders, files in os.walk("."):
    for name in (".", *folders, *files):
        status = os.lstat(os.path.join(folder, name))
        found.add((status.st_uid, status.st_gid))
print(*sorted(found))
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with installed() as made:
        if made.run("pixstorefs", "init", "/mnt/anna/probe", anna=True).returncode != 0:
            cannot_run("other users cannot reach this checkout")
        yield made


@pytest.fixture
def store(machine: Machine) -> Iterator[Machine]:
    """The machine with a store of anna's, filled by her through a mount, and nothing that is berta's."""
    machine.ok("sh", "-ec", "rm -rf /mnt/*/* /mnt/*/.local /mnt/images /etc/fuse.conf; mkdir /mnt/images")
    machine.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
    inside(machine, _FILL, "anna", "/mnt/anna/Photos")
    unmount(machine, "/mnt/anna/Photos", "anna")
    yield machine
    for mountpoint in machine.mounts():
        machine.ok("umount", mountpoint)
    for pid in machine.daemons():
        wait_until_gone(pid)


def inside(machine: Machine, script: str, user: str | None, mountpoint: str) -> str:
    """Run a script of Python in a mount."""
    return machine.ok("python3", "-c", f"import os\nos.chdir({mountpoint!r})\n{script}", user=user)


def unmount(machine: Machine, mountpoint: str, user: str | None) -> None:
    machine.ok("pixstorefs", "umount", mountpoint, user=user)


def carry(machine: Machine, source: str, target: str, owner: str) -> None:
    """Bring a store back from a backup: its ciphertext alone, all files those of who restores it."""
    machine.ok("sh", "-ec", f"cp -r {source} {target} && chown -R {owner}: {target}")


def test_restore_drill(store: Machine) -> None:
    """With store and recovery code alone another user reads and changes every image, and hands it back."""
    added = store.ok(
        "pixstorefs", "key", "add", "/mnt/anna/store", "--label", "paper", "--recovery-code", anna=True
    )
    carry(store, "/mnt/anna/store", "/mnt/berta/store", "berta")
    store.ok("sh", "-c", 'umask 077; echo "$1" >~/code', "sh", added.split()[-1], user="berta")
    mount = ("pixstorefs", "mount", "--passphrase-file", "/mnt/berta/code")
    places = ("/mnt/berta/store", "/mnt/berta/Photos")
    store.ok(*mount, *places, user="berta")
    inside(store, _USE, "berta", "/mnt/berta/Photos")
    assert inside(store, _LOOK, "berta", "/mnt/berta/Photos") == f"({BERTA}, {BERTA})\n"
    unmount(store, "/mnt/berta/Photos", "berta")
    store.ok("pixstorefs", "check", "/mnt/berta/store", *mount[2:], user="berta")

    store.ok("rm", "-rf", "/mnt/anna/store")
    carry(store, "/mnt/berta/store", "/mnt/anna/store", "anna")
    store.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
    assert inside(store, _LOOK, "anna", "/mnt/anna/Photos") == f"({ANNA}, {ANNA})\n"
    inside(store, "open('2025/1.jpg.old', 'r+').write('hers')", "anna", "/mnt/anna/Photos")


def test_access_control_lists_name_the_same_people(store: Machine) -> None:
    """Who is named in a list is shown, and stored, like an owner; others keep their numbers."""
    acl = (
        "import os, struct, sys\n"
        "NAME = 'system.posix_acl_access'\n"
        "def put(path, *users):\n"
        "    rows = [(1, 6, -1), *((2, 4, user) for user in users), (4, 4, -1), (16, 6, -1), (32, 0, -1)]\n"
        "    rows = (struct.pack('<HHi', *row) for row in rows)\n"
        "    os.setxattr(path, NAME, struct.pack('<I', 2) + b''.join(rows))\n"
        "def named(path):\n"
        "    rows = struct.iter_unpack('<HHi', os.getxattr(path, NAME)[4:])\n"
        "    return [number for tag, _, number in rows if tag == 2]\n"
    )
    store.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
    inside(store, f"{acl}put('0.jpg', {ANNA}, {NOBODY_KNOWN})", "anna", "/mnt/anna/Photos")
    unmount(store, "/mnt/anna/Photos", "anna")
    carry(store, "/mnt/anna/store", "/mnt/berta/store", "berta")
    carry(store, "/mnt/anna/.local", "/mnt/berta/.local", "berta")
    store.ok("pixstorefs", "mount", "/mnt/berta/store", "/mnt/berta/Photos", user="berta")
    seen = inside(store, f"{acl}print(named('0.jpg'))", "berta", "/mnt/berta/Photos")
    assert seen == f"[{BERTA}, {NOBODY_KNOWN}]\n"
    inside(store, f"{acl}put('1.jpg', {BERTA}, 77)", "berta", "/mnt/berta/Photos")
    unmount(store, "/mnt/berta/Photos", "berta")
    store.ok("pixstorefs", "mount", "--keyfile", keyfile(store), "/mnt/berta/store", "/mnt/images")
    assert inside(store, f"{acl}print(named('1.jpg'))", None, "/mnt/images") == f"[{ANNA}, 77]\n"


def keyfile(machine: Machine) -> str:
    [path] = machine.path("/mnt/anna/.local/share/pixstorefs/keyfiles").iterdir()
    return f"/mnt/anna/.local/share/pixstorefs/keyfiles/{path.name}"


def test_root_sees_what_is_stored(store: Machine) -> None:
    """Nothing is shown as another's where root mounts, for himself or for all: a backup keeps the owners."""
    for options in ([], ["--allow-other"]):
        store.ok(
            "pixstorefs", "mount", *options, "--keyfile", keyfile(store), "/mnt/anna/store", "/mnt/images"
        )
        assert inside(store, _LOOK, None, "/mnt/images") == f"({ANNA}, {ANNA})\n"
        inside(store, f"os.chown('0.jpg', {NOBODY_KNOWN}, 0)", None, "/mnt/images")
        assert store.path("/mnt/images/0.jpg").stat().st_uid == NOBODY_KNOWN
        inside(store, f"os.chown('0.jpg', {ANNA}, {ANNA})", None, "/mnt/images")
        unmount(store, "/mnt/images", None)


def test_files_of_others_stay_theirs(store: Machine) -> None:
    """In a mount for one user the owner of the store is who mounts; a third one's file is still his."""
    store.ok("pixstorefs", "mount", "--keyfile", keyfile(store), "/mnt/anna/store", "/mnt/images")
    inside(store, f"os.chown('1.jpg', {NOBODY_KNOWN}, {NOBODY_KNOWN})", None, "/mnt/images")
    inside(store, f"os.chown('3.jpg', {BERTA}, {BERTA})", None, "/mnt/images")
    unmount(store, "/mnt/images", None)
    carry(store, "/mnt/anna/store", "/mnt/berta/store", "berta")
    carry(store, "/mnt/anna/.local", "/mnt/berta/.local", "berta")
    store.ok("pixstorefs", "mount", "/mnt/berta/store", "/mnt/berta/Photos", user="berta")
    look = "print(*(os.stat(f'{n}.jpg').st_uid for n in range(4)), os.access('1.jpg', os.R_OK))"
    assert (
        inside(store, look, "berta", "/mnt/berta/Photos") == f"{BERTA} {NOBODY_KNOWN} {BERTA} {BERTA} False\n"
    )
    unmount(store, "/mnt/berta/Photos", "berta")
    store.ok(
        "pixstorefs", "mount", "-o", f"uid={BERTA}", "/mnt/berta/store", "/mnt/berta/Photos", user="berta"
    )
    look = "print(*(os.stat(f'{n}.jpg').st_uid for n in range(4)), len(open('1.jpg').read()) > 9)"
    assert inside(store, look, "berta", "/mnt/berta/Photos") == f"{BERTA} {BERTA} {BERTA} {BERTA} True\n"


def test_a_mount_for_all_says_who_the_owner_is(store: Machine) -> None:
    """Who lets others in and is not the owner is told why he may do nothing, and the option that helps."""
    store.ok("sh", "-c", "echo user_allow_other >/etc/fuse.conf")
    carry(store, "/mnt/anna/store", "/mnt/berta/store", "berta")
    carry(store, "/mnt/anna/.local", "/mnt/berta/.local", "berta")
    words = ("pixstorefs", "mount", "--allow-other")
    places = ("/mnt/berta/store", "/mnt/berta/Photos")
    told = store.run(*words, *places, user="berta")
    assert told.returncode == 0, told.stderr
    assert f"-o uid={BERTA},gid={BERTA}" in told.stderr
    assert store.run("touch", "/mnt/berta/Photos/x", user="berta").returncode != 0
    unmount(store, "/mnt/berta/Photos", "berta")
    told = store.run(*words, "-o", f"uid={BERTA},gid={BERTA}", *places, user="berta")
    assert (told.returncode, "uid=" in told.stderr) == (0, False)
    store.ok("touch", "/mnt/berta/Photos/x", user="berta")


def test_uid_gid_and_umask(store: Machine) -> None:
    """All is shown as they say, and allowed by that; what is stored is seen again without them."""
    mount = ("pixstorefs", "mount", "--keyfile", keyfile(store))
    places = ("/mnt/anna/store", "/mnt/images")
    options = f"allow_other,uid={BERTA},gid=7,umask=027"
    store.ok(*mount, "-o", options, *places)
    look = """
for path in (".", "2025", "2025/1.jpg", "0.jpg"):
    status = os.stat(path)
    print(oct(status.st_mode & 0o7777), status.st_uid, status.st_gid)
"""
    assert inside(store, look, "berta", "/mnt/images").splitlines() == [
        *(f"0o750 {BERTA} 7",) * 2,
        *(f"0o640 {BERTA} 7",) * 2,
    ]
    inside(store, "open('2025/2.jpg', 'r+').write('x'); open('new', 'x').write('x')", "berta", "/mnt/images")
    # What is shown already changes nothing; what is not is stored.
    inside(store, f"os.chown('0.jpg', {BERTA}, 7); os.chmod('0.jpg', 0o640)", None, "/mnt/images")
    inside(store, f"os.chown('1.jpg', {NOBODY_KNOWN}, -1); os.chmod('1.jpg', 0o604)", None, "/mnt/images")
    unmount(store, "/mnt/images", None)
    store.ok(*mount, *places)
    look = """
for path in ("2025/1.jpg", "new", "0.jpg", "1.jpg"):
    status = os.stat(path)
    print(path, oct(status.st_mode & 0o777), status.st_uid)
"""
    assert inside(store, look, None, "/mnt/images").splitlines() == [
        f"2025/1.jpg 0o600 {ANNA}",
        f"new 0o644 {ANNA}",
        f"0.jpg 0o644 {ANNA}",
        f"1.jpg 0o604 {NOBODY_KNOWN}",
    ]


def test_root_of_a_container_without_root(store: Machine) -> None:
    """In a user namespace root may do no more than its maker, and is shown as the owner like anybody."""
    # Nobody outside sees that mount, so it goes whatever happens.
    script = (
        "pixstorefs mount /mnt/anna/store /mnt/anna/Photos;"
        "trap 'cd /; pixstorefs umount /mnt/anna/Photos' EXIT;"
        'cd /mnt/anna/Photos; echo new >new; cat 1.jpg >2025/copy; stat -c "%u %g" . 1.jpg new'
    )
    shown = store.run(
        *("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script),
        anna=True,
    )
    if "unshare" in shown.stderr:
        cannot_run(f"users cannot make namespaces here: {shown.stderr}")
    assert (shown.returncode, shown.stdout) == (0, "0 0\n" * 3), shown.stderr
    store.ok("pixstorefs", "mount", "/mnt/anna/store", "/mnt/anna/Photos", anna=True)
    assert inside(store, _LOOK, "anna", "/mnt/anna/Photos") == f"({ANNA}, {ANNA})\n"
