"""`pixstorefs mount --idle-unmount`: a mount that nobody uses ends by itself, one that is used does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def copy_of_all_mounts(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a mount namespace of its own, as in a container. It says a line and reads lines."""
    if os.geteuid() != 0:
        cannot_run("only root can make a mount namespace")
    words = [program("unshare"), "--mount", "--propagation", "private", "bash", "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdin is not None
        assert elsewhere.stdout is not None
        try:
            elsewhere.stdout.readline()
            yield elsewhere
        finally:
            elsewhere.stdin.close()


def test_ends_although_an_unused_copy_of_the_mount_lives_on(unmounted: Mount) -> None:
    """Whoever makes a mount namespace, a container for one, takes a copy of every mount into it."""
    unmounted.with_setting("daemon.idle", _LOOP_END_TIMEOUT_S=0.5)
    unmounted.mount("--idle-unmount", "2s")
    pid = unmounted.pid
    with copy_of_all_mounts("echo; read -r _"):
        wait_until_gone(pid)
        assert not unmounted.is_mounted


def test_what_is_open_in_a_container_keeps_it(unmounted: Mount) -> None:
    """A program in another mount namespace writes on, long after the time: nothing of it is lost."""
    unmounted.with_setting("daemon.idle", _LOOP_END_TIMEOUT_S=0.5)
    unmounted.mount("--idle-unmount", "1s")
    pid = unmounted.pid
    path = unmounted.mountpoint / "a.jpg"
    script = f'exec 3>"{path}"; echo 1 >&3; echo; read -r _; echo 2 >&3 && exec 3>&- && echo done; read -r _'
    with copy_of_all_mounts(script) as elsewhere:
        assert elsewhere.stdin is not None
        assert elsewhere.stdout is not None
        time.sleep(3.5)  # the time, what the loop is given to end, and the time again
        elsewhere.stdin.write(b"\n")
        elsewhere.stdin.flush()
        assert elsewhere.stdout.readline() == b"done\n"
    wait_until_gone(pid)
    unmounted.mount()
    assert path.read_bytes() == b"1\n2\n"


def test_what_a_container_has_written_is_saved_when_the_daemon_is_asked_to_end(unmounted: Mount) -> None:
    """Also what the kernel still caches of a file that is open there."""
    unmounted.with_setting("daemon.serve", _LOOP_END_TIMEOUT_S=0.5)
    unmounted.mount()
    path = unmounted.mountpoint / "a.jpg"
    with copy_of_all_mounts(f'exec 3>"{path}"; echo written >&3; echo; read -r _'):
        unmounted.signal(signal.SIGTERM)
    unmounted.mount()
    assert path.read_bytes() == b"written\n"


def test_umount_tells_who_else_has_the_mount(unmounted: Mount) -> None:
    """It does not wait for a process that serves a container, and so does the next mount: both name it."""
    unmounted.with_code(
        "import pixstorefs.cli.umount, pixstorefs.daemon.serve\n"
        "pixstorefs.cli.umount._COPY_TIMEOUT_S = 0.5\n"
        "pixstorefs.daemon.serve._PREDECESSOR_TIMEOUT_S = 0.5\n"
    )
    unmounted.mount()
    pid = unmounted.pid
    with copy_of_all_mounts("echo; read -r _") as elsewhere:
        began_s = time.monotonic()
        told = unmounted.run("umount", unmounted.mountpoint)
        assert told.returncode == 3
        assert f"bash ({elsewhere.pid})" in told.stderr
        assert f"kill {pid}" in told.stderr
        assert not unmounted.is_mounted
        assert time.monotonic() - began_s < 60
        refused = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert (refused.returncode, f"kill {pid}" in refused.stderr) == (3, True)
    wait_until_gone(pid)


def test_umount_tells_of_a_bind_mount(unmounted: Mount) -> None:
    """A bind mount is served on, and what was written through it is there afterwards."""
    if os.geteuid() != 0:
        cannot_run("only root can make a bind mount")
    unmounted.with_setting("cli.umount", _COPY_TIMEOUT_S=0.5)
    unmounted.mount()
    pid, copy = unmounted.pid, unmounted.directory / "copy"
    copy.mkdir()
    subprocess.run([program("mount"), "--bind", unmounted.mountpoint, copy], check=True)
    try:
        told = unmounted.run("umount", unmounted.mountpoint)
        assert (told.returncode, f"the bind mount {copy}" in told.stderr) == (3, True)
        (copy / "a.jpg").write_bytes(b"through the copy")
    finally:
        subprocess.run([program("umount"), copy], check=True)
    wait_until_gone(pid)
    unmounted.mount()
    assert (unmounted.mountpoint / "a.jpg").read_bytes() == b"through the copy"
