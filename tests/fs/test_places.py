"""A person names a store by its path or by where it is mounted, and something in a mount for the mount."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support import Mount, cannot_run, command, program


def test_status_of_what_is_in_a_mount(mounted: Mount) -> None:
    """A folder and a file in it: which mount they are in, and its state."""
    folder = mounted.mountpoint / "2026"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a")
    for path in (folder, folder / "a.jpg"):
        told = mounted.run("status", path)
        first = f"{path} is in the mount {mounted.mountpoint}\n{mounted.store} on {mounted.mountpoint}\n"
        assert (told.returncode, told.stdout.startswith(first)) == (0, True), told.stdout
        [status] = json.loads(mounted.run("status", "--json", path).stdout)
        assert status["mountpoint"] == str(mounted.mountpoint)


def test_status_of_a_store_that_a_program_has_open(unmounted: Mount) -> None:
    """It is not mounted, and not free either."""
    unmounted.run("init", unmounted.store)
    [keyfile] = unmounted.directory.rglob("*.key")
    words = (
        "import pixstorefs, sys; store = pixstorefs.open_store(sys.argv[1], keyfile=sys.argv[2]); "
        "print(flush=True); sys.stdin.read(); store.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", words, unmounted.store, keyfile],
        env=unmounted.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdout.readline()
        told = unmounted.run("status", unmounted.store)
        user.stdin.close()
    assert told.returncode == 1
    assert told.stdout == f"{unmounted.store} is not mounted, and in use by process {user.pid}\n"
    assert unmounted.run("status", unmounted.store).stdout == f"{unmounted.store} is not mounted\n"


def test_umount_takes_the_store_as_well(mounted: Mount) -> None:
    """By its path, and by a link to it; also what a killed daemon left."""
    link = mounted.directory / "link"
    link.symlink_to(mounted.store)
    for path in (mounted.store, link):
        assert mounted.run("umount", path).returncode == 0
        assert not mounted.is_mounted
        mounted.mount()
    mounted.signal(signal.SIGKILL)
    assert mounted.run("umount", mounted.store).returncode == 0
    assert not mounted.is_mounted


def test_umount_of_something_in_a_mount_names_the_mount(mounted: Mount) -> None:
    """It is not ended for that: a typing error may be what led there."""
    (mounted.mountpoint / "2026").mkdir()
    refused = mounted.run("umount", mounted.mountpoint / "2026")
    assert (refused.returncode, f"pixstorefs umount {mounted.mountpoint}" in refused.stderr) == (6, True)
    assert mounted.is_mounted


@pytest.mark.parametrize("by_mountpoint", [False, True])
def test_check_and_snapshot_take_both(album: Mount, by_mountpoint: bool) -> None:
    path = album.mountpoint if by_mountpoint else album.store
    checked = album.run("check", path)
    assert (checked.returncode, "verified 10 images" in checked.stdout) == (0, True), checked.stderr
    below = album.run("check", path, "2025")
    assert (below.returncode, "verified 5 images" in below.stdout) == (0, True), below.stderr
    taken = album.run("snapshot", path, album.directory / "taken")
    assert (taken.returncode, "snapshot of 10 images" in taken.stdout) == (0, True), taken.stderr
    listed = album.run("key", "list", path)
    assert (listed.returncode, "keyfile" in listed.stdout) == (0, True), listed.stderr


def test_umount_of_roots_mount_by_another_user(mounted: Mount) -> None:
    """Told as what it is: fusermount3 says that it finds no such entry."""
    if os.geteuid() != 0:
        cannot_run("only root has a mount of root's")
    as_nobody = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    refused = subprocess.run(
        [*as_nobody, *command("umount", mounted.mountpoint)],
        env=mounted.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 6
    assert "it was mounted by root, and only root can unmount it" in refused.stderr
    assert mounted.is_mounted
