"""`pixstorefs mount --idle-unmount`: a mount that nobody uses ends by itself, one that is used does not."""

import os
import subprocess
import sys
import time

from support import Mount, cannot_run, program, wait_until_gone


def test_unmounts_and_has_saved_everything(unmounted: Mount) -> None:
    unmounted.mount("--idle-unmount", "1s")
    pid = unmounted.pid
    (unmounted.mountpoint / "a.jpg").write_bytes(b"w" * 3_000_000)
    wait_until_gone(pid)
    assert not unmounted.is_mounted
    assert "was not used for 1 s: unmounted" in unmounted.log_text()
    unmounted.mount()
    assert (unmounted.mountpoint / "a.jpg").read_bytes() == b"w" * 3_000_000
    assert "recovery" not in unmounted.log_text()


def test_what_is_open_and_who_stands_in_it_keep_it(unmounted: Mount) -> None:
    """Long after the time has passed. When the last of them leaves, which is no request, it ends."""
    unmounted.mount("-o", "idle_unmount=1s")
    pid = unmounted.pid
    file = os.open(unmounted.mountpoint / "a.jpg", os.O_WRONLY | os.O_CREAT)
    time.sleep(2)
    os.write(file, b"still there")
    # A process that stands in the mount and does nothing.
    words = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        words, cwd=unmounted.mountpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        inside.stdout.readline()
        os.close(file)
        time.sleep(2)
        assert unmounted.is_mounted
        inside.stdin.close()
    wait_until_gone(pid)
    unmounted.mount()
    assert (unmounted.mountpoint / "a.jpg").read_bytes() == b"still there"


def test_requests_keep_it_and_questions_about_free_space_do_not(unmounted: Mount) -> None:
    unmounted.mount("--idle-unmount", "2s")
    pid = unmounted.pid
    longest_s, last_s = 0.0, time.monotonic()
    for number in range(30):
        assert not (unmounted.mountpoint / f"{number}.jpg").exists()  # a name the kernel has not cached
        time.sleep(0.1)
        now_s = time.monotonic()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    if longest_s < 1.8:  # on a machine that stood still that long it may have ended
        assert unmounted.is_mounted
        assert unmounted.pid == pid
    while unmounted.is_mounted:
        os.statvfs(unmounted.mountpoint)
        time.sleep(0.1)
    wait_until_gone(pid)


def test_ends_although_a_copy_of_the_mount_lives_on(unmounted: Mount) -> None:
    """Whoever makes a mount namespace, a container for one, takes a copy of every mount into it."""
    if os.geteuid() != 0:
        cannot_run("only root can make a mount namespace")
    unmounted.mount("--idle-unmount", "2s")
    pid = unmounted.pid
    words = [program("unshare"), "--mount", "sh", "-c", "echo; read -r _"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdin is not None
        assert elsewhere.stdout is not None
        elsewhere.stdout.readline()
        wait_until_gone(pid)
        assert not unmounted.is_mounted
        elsewhere.stdin.close()
