"""`pixstorefs init`, `mount` and `umount`: what they refuse, what they say, and how a mount ends."""

import contextlib
import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from support import COMMAND_TIMEOUT_S, Mount, command, program, wait_until_gone

from pixstorefs.daemon import linux

PASSPHRASE = {"PIXSTOREFS_PASSPHRASE": "correct horse"}

# What programs are told on a mount without a daemon: ENOTCONN, or ECONNABORTED the first time.
DEAD = "endpoint is not connected|connection abort"

PR_SET_DUMPABLE = 4
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root only")


def assert_refused(
    result: subprocess.CompletedProcess[str], exit_code: int, *parts: str | os.PathLike[str]
) -> None:
    """One line for a person with these parts, this exit status, and no traceback."""
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message, *hint = result.stderr.splitlines()
    assert message.startswith("pixstorefs: ")
    assert all(line.startswith("Try: ") for line in hint)
    for part in parts:
        assert os.fspath(part) in message


def assert_nothing_mounted(mount: Mount) -> None:
    assert not mount.is_mounted
    assert not mount.mountpoint.exists()


def keyfiles(mount: Mount) -> list[Path]:
    return list(Path(mount.env["XDG_DATA_HOME"]).glob("pixstorefs/keyfiles/*.key"))


class TestFirstUse:
    """A missing store is made by its first mount."""

    def test_mount_without_a_secret_makes_a_keyfile_and_says_so(self, unmounted: Mount) -> None:
        result = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert result.returncode == 0, result.stderr
        [keyfile] = keyfiles(unmounted)
        assert str(keyfile) in result.stderr
        assert "Back that file up" in result.stderr
        assert f"pixstorefs key add {unmounted.store}" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600
        assert unmounted.is_mounted

    def test_the_mount_answers_when_the_command_returns(self, mounted: Mount) -> None:
        (mounted.mountpoint / "a.jpg").write_bytes(b"x" * 300_000)
        mounted.remount()
        assert (mounted.mountpoint / "a.jpg").read_bytes() == b"x" * 300_000

    def test_missing_mountpoint_is_created_privately(self, unmounted: Mount) -> None:
        unmounted.mountpoint = unmounted.directory / "new" / "mount"
        unmounted.mount()
        unmounted.unmount()
        assert stat.S_IMODE(unmounted.mountpoint.stat().st_mode) == 0o700

    def test_passphrase_from_the_environment(self, unmounted: Mount) -> None:
        unmounted.env |= PASSPHRASE
        unmounted.mount()
        assert keyfiles(unmounted) == []
        unmounted.remount()

    def test_passphrase_from_a_command_and_from_a_file(self, unmounted: Mount) -> None:
        (unmounted.directory / "secret").write_text("correct horse\n")
        unmounted.mount("--passphrase-command", "printf 'correct horse'")
        unmounted.remount("--passphrase-file", str(unmounted.directory / "secret"))
        unmounted.remount("-o", f"passphrase_file={unmounted.directory / 'secret'},noatime,x-gvfs-show")

    def test_keyfile_named_for_a_new_store_is_made(self, unmounted: Mount) -> None:
        keyfile = unmounted.directory / "keys" / "my.key"
        unmounted.mount("--keyfile", str(keyfile))
        assert keyfile.exists()
        unmounted.remount("-o", f"keyfile={keyfile}")

    def test_passphrase_typed_at_a_terminal(self, unmounted: Mount) -> None:
        status, said = at_terminal(unmounted, ["correct horse", "correct horse"])
        assert status == 0, said
        assert "correct horse" not in said
        unmounted.unmount()
        status, said = at_terminal(unmounted, ["correct horse"])
        assert status == 0, said
        unmounted.unmount()
        status, said = at_terminal(unmounted, ["wrong"])
        assert status == 4, said

    def test_empty_answer_at_a_terminal_makes_a_keyfile(self, unmounted: Mount) -> None:
        status, said = at_terminal(unmounted, [""])
        assert status == 0, said
        assert len(keyfiles(unmounted)) == 1

    def test_two_different_answers_create_nothing(self, unmounted: Mount) -> None:
        status, said = at_terminal(unmounted, ["correct horse", "correct house"])
        assert status == 2, said
        assert not unmounted.store.exists()
        assert_nothing_mounted(unmounted)

    def test_init_makes_a_store_and_refuses_to_do_it_again(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store, "--no-padding").returncode == 0
        assert json.loads((unmounted.store / "store.json").read_text())["padding"] == "none"
        before = (unmounted.store / "keys.json").read_bytes()
        assert_refused(unmounted.run("init", unmounted.store), 2, unmounted.store, "store already")
        assert (unmounted.store / "keys.json").read_bytes() == before
        unmounted.mount()


class TestRefusedSecrets:
    """Wrong and missing keys: exit status 4, and nothing is mounted or created."""

    def test_wrong_passphrase(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store, env=PASSPHRASE).returncode == 0
        result = unmounted.run(
            "mount", unmounted.store, unmounted.mountpoint, env={"PIXSTOREFS_PASSPHRASE": "incorrect donkey"}
        )
        assert_refused(result, 4, "passphrase")
        assert "donkey" not in result.stderr + unmounted.log_text()
        assert_nothing_mounted(unmounted)

    def test_wrong_keyfile(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store).returncode == 0
        other = unmounted.directory / "other.key"
        assert unmounted.run("init", unmounted.directory / "other", "--keyfile", other).returncode == 0
        result = unmounted.run("mount", "--keyfile", other, unmounted.store, unmounted.mountpoint)
        assert_refused(result, 4, "keyfile")
        assert_nothing_mounted(unmounted)

    def test_file_that_is_no_keyfile(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store).returncode == 0
        photo = unmounted.directory / "photo.jpg"
        photo.write_bytes(b"\xff\xd8\xff")
        result = unmounted.run("mount", "--keyfile", photo, unmounted.store, unmounted.mountpoint)
        assert_refused(result, 4, photo)
        assert_nothing_mounted(unmounted)

    def test_copied_store_alone_opens_nothing_and_says_what_would(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store).returncode == 0
        [keyfile] = keyfiles(unmounted)
        keyfile.unlink()
        result = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert_refused(result, 4, "--keyfile", keyfile)
        assert_nothing_mounted(unmounted)

    def test_no_passphrase_and_no_terminal(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store, env=PASSPHRASE).returncode == 0
        result = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert_refused(result, 4, "--passphrase-file", "PIXSTOREFS_PASSPHRASE")

    def test_missing_passphrase_file_creates_no_store(self, unmounted: Mount) -> None:
        missing = unmounted.directory / "missing"
        result = unmounted.run("mount", "--passphrase-file", missing, unmounted.store, unmounted.mountpoint)
        assert_refused(result, 2, missing)
        assert not unmounted.store.exists()

    def test_two_secret_options(self, unmounted: Mount) -> None:
        result = unmounted.run(
            "mount", "--keyfile", "k", "-o", "passphrase_file=p", unmounted.store, unmounted.mountpoint
        )
        assert_refused(result, 2, "only one of")

    def test_secrets_do_not_reach_the_daemon_or_its_children(self, unmounted: Mount) -> None:
        unmounted.env |= PASSPHRASE
        unmounted.mount()
        assert "correct horse" not in unmounted.log_text()
        assert b"correct horse" not in Path(f"/proc/{unmounted.pid}/cmdline").read_bytes()
        if os.geteuid() == 0:  # to nobody else the kernel shows it
            assert b"correct horse" not in Path(f"/proc/{unmounted.pid}/environ").read_bytes()
        limits = Path(f"/proc/{unmounted.pid}/limits").read_text().splitlines()
        assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"]

    @pytest.mark.parametrize("words", ["mount {store} {mount}", "check {store}", "snapshot {store} {copy}"])
    def test_a_passphrase_command_does_not_inherit_a_passphrase(self, unmounted: Mount, words: str) -> None:
        """A password manager is not told what some variable held, nor what it then starts."""
        unmounted.run("init", unmounted.store, env=PASSPHRASE)
        seen = unmounted.directory / "seen"
        places = {
            "store": unmounted.store,
            "mount": unmounted.mountpoint,
            "copy": unmounted.directory / "copy",
        }
        told = unmounted.run(
            *(word.format_map(places) for word in words.split()),
            "--passphrase-command",
            f"cat /proc/$PPID/environ >{seen}; env >>{seen}; echo correct horse",
            env={"PIXSTOREFS_PASSPHRASE": "incorrect donkey"},
        )
        assert told.returncode == 0, told.stderr
        assert b"HOME=" in seen.read_bytes()
        assert b"donkey" not in seen.read_bytes()


class TestRefusedStores:
    """What is not a store of ours stays as it was."""

    def test_foreign_directory_is_left_untouched(self, unmounted: Mount) -> None:
        unmounted.store.mkdir()
        (unmounted.store / "holiday.jpg").write_bytes(b"mine")
        for arguments in (("mount", unmounted.store, unmounted.mountpoint), ("init", unmounted.store)):
            assert_refused(unmounted.run(*arguments), 5, unmounted.store, "not empty")
            assert [path.name for path in unmounted.store.iterdir()] == ["holiday.jpg"]
        assert keyfiles(unmounted) == []
        assert_nothing_mounted(unmounted)

    def test_store_is_a_file(self, unmounted: Mount) -> None:
        unmounted.store.write_bytes(b"mine")
        assert_refused(unmounted.run("mount", unmounted.store, unmounted.mountpoint), 5, unmounted.store)
        assert unmounted.store.read_bytes() == b"mine"

    def test_missing_store_is_not_created_for_reading_only(self, unmounted: Mount) -> None:
        result = unmounted.run("mount", "--read-only", unmounted.store, unmounted.mountpoint)
        assert_refused(result, 5, unmounted.store)
        assert not unmounted.store.exists()
        assert_nothing_mounted(unmounted)

    def test_newer_format(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store).returncode == 0
        header = unmounted.store / "store.json"
        header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 99}))
        result = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert_refused(result, 7, unmounted.store, "99")
        assert_nothing_mounted(unmounted)

    def test_damaged_header(self, unmounted: Mount) -> None:
        assert unmounted.run("init", unmounted.store).returncode == 0
        for name in ("store.json", "copies/store.json"):
            (unmounted.store / name).write_text("{}")
        result = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert_refused(result, 8, "store.json")

    def test_store_mounted_already(self, mounted: Mount) -> None:
        elsewhere = mounted.directory / "elsewhere"
        for mountpoint in (mounted.mountpoint, elsewhere):
            result = mounted.run("mount", mounted.store, mountpoint)
            assert_refused(result, 3, mounted.mountpoint, str(mounted.pid))
        assert not elsewhere.exists()
        (mounted.mountpoint / "still.jpg").write_bytes(b"works")


class TestRefusedMountpoints:
    """Exit status 6, and neither a store nor a keyfile is made for nothing."""

    def refused(self, mount: Mount, *parts: str | os.PathLike[str]) -> None:
        assert_refused(mount.run("mount", mount.store, mount.mountpoint), 6, *parts)
        assert not (mount.store / "store.json").exists()
        assert keyfiles(mount) == []

    def test_store_inside_the_mountpoint(self, unmounted: Mount) -> None:
        unmounted.store = unmounted.mountpoint / "deep" / "store"
        self.refused(unmounted, unmounted.store, "lies inside the mountpoint")

    def test_mountpoint_inside_the_store(self, unmounted: Mount) -> None:
        unmounted.mountpoint = unmounted.store / "mount"
        self.refused(unmounted, unmounted.store, "lies inside the store")

    def test_overlap_through_a_symbolic_link(self, unmounted: Mount) -> None:
        unmounted.store.mkdir()
        (unmounted.directory / "link").symlink_to(unmounted.store)
        unmounted.mountpoint = unmounted.directory / "link" / "mount"
        self.refused(unmounted, "lies inside the store")

    def test_store_as_its_own_mountpoint(self, unmounted: Mount) -> None:
        unmounted.mountpoint = unmounted.store
        self.refused(unmounted, unmounted.store)

    def test_mountpoint_is_a_file(self, unmounted: Mount) -> None:
        unmounted.mountpoint.write_bytes(b"mine")
        self.refused(unmounted, unmounted.mountpoint, "not a directory")

    def test_mountpoint_is_not_empty(self, unmounted: Mount) -> None:
        unmounted.mountpoint.mkdir()
        (unmounted.mountpoint / "mine").touch()
        self.refused(unmounted, unmounted.mountpoint, "not empty")

    def test_parent_is_a_file(self, unmounted: Mount) -> None:
        (unmounted.directory / "file").touch()
        unmounted.mountpoint = unmounted.directory / "file" / "mount"
        self.refused(unmounted, unmounted.mountpoint)

    def test_parent_gives_no_rights(self, unmounted: Mount) -> None:
        unmounted.without_privileges()
        closed = unmounted.directory / "closed"
        closed.mkdir(mode=0o500)
        unmounted.mountpoint = closed / "mount"
        self.refused(unmounted, unmounted.mountpoint)

    def test_mountpoint_gives_no_rights(self, unmounted: Mount) -> None:
        unmounted.without_privileges()
        unmounted.mountpoint.mkdir(mode=0o500)
        self.refused(unmounted, unmounted.mountpoint)

    def test_another_store_is_mounted_there(self, mounted: Mount) -> None:
        result = mounted.run("mount", mounted.directory / "other", mounted.mountpoint)
        assert_refused(result, 6, mounted.mountpoint, mounted.store)


class TestSystem:
    """The system cannot mount."""

    def path_without_helper(self, mount: Mount) -> dict[str, str]:
        empty = mount.directory / "bin"
        empty.mkdir()
        return {"PATH": str(empty)}

    @as_root
    def test_root_needs_no_fusermount3(self, unmounted: Mount) -> None:
        unmounted.env |= self.path_without_helper(unmounted)
        unmounted.mount()
        (unmounted.mountpoint / "a.jpg").write_bytes(b"1")
        unmounted.unmount()

    @as_root
    def test_fusermount3_missing(self, unmounted: Mount) -> None:
        unmounted.without_helper()
        assert_refused(unmounted.run("mount", unmounted.store, unmounted.mountpoint), 9, "fuse3")

    def test_unknown_mount_option(self, unmounted: Mount) -> None:
        result = unmounted.run("mount", "-o", "ro,bogus=1", unmounted.store, unmounted.mountpoint)
        assert_refused(result, 2, "bogus=1")

    def test_remount_is_for_the_mount_command_of_the_machine(self, unmounted: Mount) -> None:
        """A person's mount command makes no new mount of it, and says what does."""
        words = ("mount", "-o", "remount,ro", unmounted.store, unmounted.mountpoint)
        assert_refused(unmounted.run(*words), 2, f"mount -o remount,ro {unmounted.mountpoint}")
        assert not unmounted.store.exists()

    def test_missing_argument(self, unmounted: Mount) -> None:
        assert_refused(unmounted.run("mount", unmounted.store), 2, "MOUNTPOINT")

    def test_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(self, unmounted: Mount) -> None:
        unmounted.with_code(
            "import pixstorefs.daemon.mounts as mounts\n"
            "def find(path): raise ZeroDivisionError('a bug')\n"
            "mounts.find = find\n"
        )
        result = unmounted.run("umount", unmounted.mountpoint)
        [log] = unmounted.log_paths
        assert_refused(result, 70, "ZeroDivisionError", "a bug", log)
        assert "Traceback" in log.read_text()
        assert len(log.read_text().splitlines()) == 1
        unmounted.expect_log("ZeroDivisionError")
        assert "Traceback" in unmounted.run("--debug", "umount", unmounted.mountpoint).stderr


class TestOptions:
    """What reaches the kernel."""

    def options(self, mount: Mount) -> set[str]:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        [fields] = [line.split(" ") for line in lines if line.split(" ")[4] == str(mount.mountpoint)]
        assert fields[-3] == "fuse.pixstorefs"
        return set(fields[5].split(",") + fields[-1].split(","))

    def test_defaults(self, mounted: Mount) -> None:
        options = self.options(mounted)
        assert {"rw", "nosuid", "nodev"} <= options
        assert ("default_permissions" in options) is (os.geteuid() != 0)

    def test_last_of_two_wins_and_the_harmless_are_ignored(self, unmounted: Mount) -> None:
        unmounted.mount("-o", "defaults,ro,noauto,nofail,_netdev,user,noatime", "-o", "exec,noexec,rw")
        assert {"rw", "noexec"} <= self.options(unmounted)

    @as_root
    def test_allow_other(self, unmounted: Mount) -> None:
        unmounted.mount("--allow-other")
        assert {"allow_other", "default_permissions"} <= self.options(unmounted)

    @as_root
    def test_kernel_checks_modes_where_it_is_asked_to(self, unmounted: Mount) -> None:
        unmounted.mount("-o", "default_permissions")
        assert "default_permissions" in self.options(unmounted)

    def test_read_only(self, mounted: Mount) -> None:
        (mounted.mountpoint / "a.jpg").write_bytes(b"1")
        mounted.remount("--read-only")
        assert "ro" in self.options(mounted)
        assert (mounted.mountpoint / "a.jpg").read_bytes() == b"1"
        with pytest.raises(OSError, match="Read-only"):
            (mounted.mountpoint / "b.jpg").write_bytes(b"2")

    @pytest.mark.parametrize("name", ["with space", "zoë", "comma,and\\backslash", "tab\there", "#hash?"])
    def test_names_that_need_escaping(self, unmounted: Mount, name: str) -> None:
        unmounted.store = unmounted.directory / name
        unmounted.mountpoint = unmounted.directory / f"mount {name}"
        unmounted.mount()
        assert unmounted.run("status", unmounted.store).returncode == 0
        assert_refused(unmounted.run("mount", unmounted.store, unmounted.mountpoint), 3, str(unmounted.pid))
        unmounted.unmount()
        assert json_or_none(unmounted.store / "lock") is None

    def test_relative_paths(self, unmounted: Mount) -> None:
        subprocess.run(
            command("mount", "store", "mount"), cwd=unmounted.directory, env=unmounted.env, check=True
        )
        assert unmounted.is_mounted
        subprocess.run(command("umount", "mount"), cwd=unmounted.directory, env=unmounted.env, check=True)
        assert not unmounted.is_mounted


class TestEnd:
    """Every way a mount may end keeps what was written."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_signal_ends_it_cleanly(self, mounted: Mount, number: signal.Signals) -> None:
        (mounted.mountpoint / "a.jpg").write_bytes(b"written")
        mounted.signal(number)
        assert not mounted.is_mounted
        assert mounted.mountpoint.is_dir()
        mounted.mount()
        assert (mounted.mountpoint / "a.jpg").read_bytes() == b"written"
        assert "recovery" not in mounted.log_text()

    @pytest.mark.parametrize("size_bytes", [5, 3_000_000])
    def test_signal_saves_what_is_written_and_still_open(self, mounted: Mount, size_bytes: int) -> None:
        file = os.open(mounted.mountpoint / "open.jpg", os.O_WRONLY | os.O_CREAT)
        # Into the kernel's cache: hardly anything of it has reached the daemon yet.
        os.write(file, b"o" * size_bytes)
        mounted.signal(signal.SIGTERM)
        # The cache takes that as well, unless the page has been dropped meanwhile; no close says it is saved.
        with contextlib.suppress(OSError):
            os.write(file, b"too late")
        with pytest.raises(OSError, match=DEAD):
            os.close(file)
        assert not mounted.is_mounted
        mounted.mount()
        assert (mounted.mountpoint / "open.jpg").read_bytes() == b"o" * size_bytes
        assert "recovery" not in mounted.log_text()

    def test_unmounted_from_outside(self, mounted: Mount) -> None:
        pid = mounted.pid
        (mounted.mountpoint / "a.jpg").write_bytes(b"written")
        subprocess.run(["fusermount3", "-u", mounted.mountpoint], check=True)
        wait_until_gone(pid)
        mounted.mount()
        assert (mounted.mountpoint / "a.jpg").read_bytes() == b"written"
        assert "recovery" not in mounted.log_text()

    def test_mounting_again_at_once_waits_for_the_one_that_ends(self, mounted: Mount) -> None:
        for round_number in range(5):
            (mounted.mountpoint / f"{round_number}.jpg").write_bytes(b"w" * 1_000_000)
            subprocess.run(["fusermount3", "-u", mounted.mountpoint], check=True)
            mounted.mount()
        assert len(list(mounted.mountpoint.iterdir())) == 5

    def test_umount_returns_when_the_daemon_has_ended(self, mounted: Mount) -> None:
        pid = mounted.pid
        (mounted.mountpoint / "a.jpg").write_bytes(b"w" * 5_000_000)
        mounted.unmount()
        wait_until_gone(pid, timeout_s=0.01)
        assert json_or_none(mounted.store / "lock") is None

    def test_umount_of_a_busy_mount_names_who_uses_it(self, mounted: Mount) -> None:
        with open(mounted.mountpoint / "a.jpg", "wb"):
            result = mounted.run("umount", mounted.mountpoint)
            assert_refused(result, 3, mounted.mountpoint, f"({os.getpid()})", "--lazy")
        mounted.unmount()

    def test_lazy_umount_of_a_busy_mount_keeps_what_is_open(self, mounted: Mount) -> None:
        mounted.with_setting("cli.umount", _LAZY_END_TIMEOUT_S=0.5)
        pid = mounted.pid
        with open(mounted.mountpoint / "a.jpg", "wb") as file:
            result = mounted.run("umount", "--lazy", mounted.mountpoint)
            assert result.returncode == 0
            assert not mounted.is_mounted
            file.write(b"still saved")
        wait_until_gone(pid)
        mounted.mount()
        assert (mounted.mountpoint / "a.jpg").read_bytes() == b"still saved"

    def test_an_answer_that_nobody_waits_for_any_more_is_nothing_to_complain_of(
        self, unmounted: Mount
    ) -> None:
        meeting = unmounted.directory / "meeting"
        os.mkfifo(meeting)
        unmounted.with_code(
            "import pixstorefs.cli.umount\n"
            "pixstorefs.cli.umount._LAZY_END_TIMEOUT_S = 0.5\n"
            "from pixstorefs.fuse.operations import Operations\n"
            "release = Operations.release\n"
            "async def late(self, handle):\n"
            "    await release(self, handle)\n"
            f"    open({os.fspath(meeting)!r}, 'wb').close()\n"
            f"    open({os.fspath(meeting)!r}, 'rb').close()\n"
            "Operations.release = late\n"
        )
        unmounted.mount()
        pid = unmounted.pid
        last = os.open(unmounted.mountpoint, os.O_PATH)
        with open(unmounted.mountpoint / "a.jpg", "wb"):
            assert unmounted.run("umount", "--lazy", unmounted.mountpoint).returncode == 0
        meeting.open("rb").close()  # it handles the request, for which the kernel lets nobody wait
        os.close(last)  # the end of the connection
        meeting.open("wb").close()
        wait_until_gone(pid)  # and nothing in its log, see `watched`

    def test_umount_names_what_is_open_in_other_ways(self, mounted: Mount) -> None:
        """A program that was started from the mount, and a file that is mapped and closed."""
        path = mounted.mountpoint / "sleep"
        shutil.copy(program("sleep"), path)
        with subprocess.Popen([path, "60"]) as running:
            try:
                refused = mounted.run("umount", mounted.mountpoint)
                assert_refused(refused, 3, f"sleep ({running.pid})")
            finally:
                running.kill()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        size = ctypes.c_size_t(mmap.PAGESIZE)
        with open(path, "rb") as file:  # Python's own mapping would keep a descriptor
            mapped = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0))
        try:
            assert_refused(mounted.run("umount", mounted.mountpoint), 3, f"({os.getpid()})")
        finally:
            libc.munmap(ctypes.c_void_p(mapped), size)

    @as_root
    def test_umount_names_a_mount_inside(self, mounted: Mount) -> None:
        """A disk that is mounted in the mount is in the way, and no program of anybody."""
        inside = mounted.mountpoint / "inside"
        inside.mkdir()
        subprocess.run([program("mount"), "-t", "tmpfs", "tmpfs", inside], check=True)
        try:
            assert_refused(mounted.run("umount", mounted.mountpoint), 3, f"the mount {inside}")
        finally:
            subprocess.run([program("umount"), inside], check=True)

    def test_umount_of_what_is_not_mounted(self, unmounted: Mount) -> None:
        for path in (unmounted.mountpoint, Path("/proc")):
            assert_refused(unmounted.run("umount", path), 6, path)

    def test_killed_daemon_leaves_a_dead_mount_that_the_next_mount_cleans_away(self, mounted: Mount) -> None:
        (mounted.mountpoint / "a.jpg").write_bytes(b"saved")
        mounted.mountpoint.stat()  # cached by the kernel, so that stat may find nothing wrong later
        mounted.signal(signal.SIGKILL)
        with pytest.raises(OSError, match=DEAD):
            (mounted.mountpoint / "lost.jpg").write_bytes(b"never into an empty directory")
        mounted.mount()
        assert (mounted.mountpoint / "a.jpg").read_bytes() == b"saved"
        assert [path.name for path in mounted.mountpoint.iterdir()] == ["a.jpg"]

    def test_a_bug_in_the_loop_saves_drafts_and_leaves_the_mount_dead(self, unmounted: Mount) -> None:
        healthy = dict(unmounted.env)
        unmounted.with_code(
            "from pixstorefs.fuse.operations import Operations\n"
            "async def statfs(self, ctx): raise ZeroDivisionError('a bug')\n"
            "Operations.statfs = statfs\n"
        )
        unmounted.mount()
        pid = unmounted.pid
        file = os.open(unmounted.mountpoint / "open.jpg", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"open")
        os.fsync(file)
        with pytest.raises(OSError, match=DEAD):
            os.statvfs(unmounted.mountpoint)
        wait_until_gone(pid)
        with pytest.raises(OSError, match=DEAD):
            os.close(file)
        with pytest.raises(OSError, match=DEAD):
            (unmounted.mountpoint / "lost.jpg").write_bytes(b"never into an empty directory")
        unmounted.expect_log("ZeroDivisionError")
        unmounted.env = healthy
        unmounted.mount()
        assert (unmounted.mountpoint / "open.jpg").read_bytes() == b"open"

    @as_root
    def test_what_cannot_be_saved_at_the_end_gives_an_exit_status(self, unmounted: Mount) -> None:
        disk = unmounted.directory / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", disk], check=True)
        try:
            unmounted.store = disk / "store"
            process = in_foreground(unmounted)
            (unmounted.mountpoint / "old.jpg").write_bytes(b"old")
            file = os.open(unmounted.mountpoint / "big.jpg", os.O_WRONLY | os.O_CREAT)
            os.write(file, os.urandom(6_000_000))
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=COMMAND_TIMEOUT_S)
            with pytest.raises(OSError, match=f"No space|{DEAD}"):
                os.close(file)
            assert process.returncode == 1, log
            assert "Traceback" not in log
            assert re.search(r"ERROR inode \d+ was not saved: ", log)
            unmounted.mount()
            assert (unmounted.mountpoint / "old.jpg").read_bytes() == b"old"
            unmounted.unmount()
        finally:
            subprocess.run(["umount", "-l", disk], check=True)

    def test_umount_cleans_a_dead_mount_away(self, mounted: Mount) -> None:
        mounted.signal(signal.SIGKILL)
        mounted.unmount()
        assert not mounted.is_mounted
        assert list(mounted.mountpoint.iterdir()) == []

    def test_kill_of_the_helper_class(self, mounted: Mount) -> None:
        mounted.kill()
        assert not mounted.is_mounted


class TestProcess:
    """The background process and the foreground one."""

    def test_foreground_logs_to_stderr_and_ends_with_zero(self, unmounted: Mount) -> None:
        process = in_foreground(unmounted)
        (unmounted.mountpoint / "a.jpg").write_bytes(b"1")
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert process.returncode == 0, log
        assert "INFO mounted" in log
        assert "INFO SIGINT" in log
        unmounted.mount()
        assert (unmounted.mountpoint / "a.jpg").read_bytes() == b"1"

    def test_the_daemon_lets_go_of_everything_it_was_started_with(self, unmounted: Mount) -> None:
        read_end, write_end = os.pipe()
        process = subprocess.Popen(
            command("mount", unmounted.store, unmounted.mountpoint),
            env=unmounted.env,
            cwd=unmounted.directory,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.DEVNULL,
            pass_fds=[write_end],
        )
        os.close(write_end)
        assert process.wait(COMMAND_TIMEOUT_S) == 0
        with open(read_end, "rb") as pipe:
            assert pipe.read() == b""  # ends only when nobody holds the other end
        assert os.getsid(unmounted.pid) == unmounted.pid
        if os.geteuid() == 0:
            assert os.readlink(f"/proc/{unmounted.pid}/cwd") == "/"

    @as_root
    def test_other_programs_of_the_user_cannot_look_into_the_daemon(self) -> None:
        # /proc belongs to the user of a process that lets him look in, and to root if it does not.
        nobody = 65534

        def owner_after(protect: bool) -> int:
            child = os.fork()
            if child == 0:
                os.setresuid(nobody, nobody, nobody)
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after exec: setresuid cleared it
                if protect:
                    linux.protect_memory()
                os.kill(os.getpid(), signal.SIGSTOP)
                os._exit(0)
            os.waitpid(child, os.WUNTRACED)
            try:
                return os.stat(f"/proc/{child}/environ").st_uid
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

        assert owner_after(protect=False) == nobody
        assert owner_after(protect=True) == 0

    def test_daemon_dumps_no_core(self, mounted: Mount) -> None:
        limits = Path(f"/proc/{mounted.pid}/limits").read_text().splitlines()
        [core] = [line for line in limits if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]

    def test_closed_standard_descriptors(self, unmounted: Mount) -> None:
        arguments = command("mount", unmounted.store, unmounted.mountpoint)
        script = 'exec "$@" <&- >&- 2>&-'
        result = subprocess.run(
            ["sh", "-c", script, "sh", *arguments], env=unmounted.env, timeout=COMMAND_TIMEOUT_S, check=False
        )
        assert result.returncode == 0
        (unmounted.mountpoint / "a.jpg").write_bytes(b"1")
        unmounted.remount()
        assert (unmounted.mountpoint / "a.jpg").read_bytes() == b"1"

    def test_log_is_private_and_one_line_a_record(self, mounted: Mount) -> None:
        [log] = mounted.log_paths
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        mounted.unmount()
        assert all(line.split(" ")[2] == "INFO" for line in log.read_text().splitlines())

    def test_mount_goes_on_where_no_log_can_be_written(self, unmounted: Mount) -> None:
        Path(unmounted.env["XDG_STATE_HOME"]).write_text("in the way")
        result = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert result.returncode == 0, result.stderr
        assert "no log is written" in result.stderr


def at_terminal(mount: Mount, answers: list[str]) -> tuple[int, str]:
    """`pixstorefs mount` on a terminal of its own."""
    return mount.run_at_terminal(["mount", mount.store, mount.mountpoint], answers)


def in_foreground(mount: Mount) -> subprocess.Popen[str]:
    """`pixstorefs mount -f`, mounted when this returns."""
    process = subprocess.Popen(
        command("mount", "-f", mount.store, mount.mountpoint),
        env=mount.env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while not mount.is_mounted:
        assert time.monotonic() < deadline, "nothing was mounted"
        time.sleep(0.01)
    return process


def json_or_none(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None
