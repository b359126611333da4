"""One store on a server, mounted through two network mounts, each of which has a flock(2) of its own."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import Mount, cannot_run, command, program, wait_until_gone, watched

from pixstorefs.errors import StoreInUse

_SFTP_SERVER = "/usr/lib/openssh/sftp-server"
_REMEMBERS_S = 2


@contextmanager
def _network_mount(export: Path, place: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or not os.path.exists(_SFTP_SERVER):
        cannot_run("a network mount needs root, sshfs and openssh-sftp-server")
    place.mkdir()
    shell = place.with_suffix(".sh")
    shell.write_text(f"#!/bin/sh\nexec {_SFTP_SERVER}\n")
    shell.chmod(0o700)
    options = f"ssh_command={shell},dcache_timeout={_REMEMBERS_S}"
    subprocess.run([program("sshfs"), "-o", options, f"nas:{export}", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", place], check=True)


def _remember_less(mount: Mount) -> None:
    """Have its commands wait for as long as this network mount remembers names: sshfs does for 20 s."""
    place = mount.directory / "customized"
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        f"from pixstorefs.disk import owner_note\nowner_note._CACHED_S = {_REMEMBERS_S + 1}\n"
    )
    mount.env["PYTHONPATH"] = f"{place}:{mount.env['PYTHONPATH']}"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Mount, Mount]]:
    """Two mounts with one keyfile, of one store that both reach by a mount of their own."""
    (tmp_path / "export").mkdir()
    with ExitStack() as stack:
        found = []
        for name in ("north", "south"):
            nas = stack.enter_context(_network_mount(tmp_path / "export", tmp_path / f"{name}-nas"))
            (tmp_path / name).mkdir()
            mount = stack.enter_context(watched(tmp_path / name))
            mount.store = nas / "store"
            mount.env["XDG_DATA_HOME"] = str(tmp_path / "keys")
            _remember_less(mount)
            found.append(mount)
        north, south = found
        yield north, south


def test_the_second_mount_is_refused(machines: tuple[Mount, Mount]) -> None:
    """It says who has the store, and opens it when that one is gone: unmounted, or dead on this machine."""
    for first, second in (machines, machines[::-1]):
        first.mount()
        (first.mountpoint / first.directory.name).write_bytes(b"content")
        refused = second.run("mount", second.store, second.mountpoint)
        assert refused.returncode == StoreInUse.exit_code
        assert f"in use by root on {os.uname().nodename} (process {first.pid})" in refused.stderr
        assert "--break-lock" in refused.stderr
        first.unmount()
        second.mount()
        assert (second.mountpoint / first.directory.name).read_bytes() == b"content"
        second.kill()
        first.expect_log("recovery")
        first.mount()
        first.unmount()


def test_a_mount_that_lost_the_store(machines: tuple[Mount, Mount]) -> None:
    """Programs get an error, nothing more is written, and the daemon ends with a status that says so."""
    first, second = machines
    first.mount()
    first.unmount()
    served = subprocess.Popen(
        command("mount", "--foreground", first.store, first.mountpoint),
        env=first.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not os.path.ismount(first.mountpoint):
        assert served.poll() is None
    (first.mountpoint / "before").write_bytes(b"content")
    second.mount("--break-lock")
    with pytest.raises(OSError, match="Read-only file system"):
        (first.mountpoint / "after").write_bytes(b"content")
    served.send_signal(signal.SIGTERM)
    _, said = served.communicate()
    assert served.returncode == 1
    assert f"taken over by root on {os.uname().nodename}" in said
    assert (second.mountpoint / "before").read_bytes() == b"content"
    (second.mountpoint / "later").write_bytes(b"content")
    pid = second.pid
    second.unmount()
    wait_until_gone(pid)
    checked = second.run("check", second.store)
    assert checked.returncode == 0, checked.stdout
