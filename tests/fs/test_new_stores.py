"""When a store is made, when it is refused, and what is said about it."""

import os
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
from support import Mount, cannot_run

import pixstorefs
from pixstorefs.errors import NotAStore

NOT_A_STORE = 5
INVALID = 2


def _contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "xdg-" not in str(path)}


class TestParents:
    """Only the store itself is made, never what it should lie in."""

    @pytest.mark.parametrize("words", [("init",), ("mount", "mount"), ("mount", "--create", "mount")])
    def test_a_missing_parent_is_refused(self, unmounted: Mount, words: tuple[str, ...]) -> None:
        """It is a typo, or a disk that is not there; how to make it is said, and can be pasted."""
        parent = unmounted.directory / "my disk"
        places = [unmounted.directory / word for word in words[1:] if not word.startswith("-")]
        options = [word for word in words[1:] if word.startswith("-")]
        refused = unmounted.run(words[0], *options, parent / "store", *places)
        assert refused.returncode == NOT_A_STORE, refused.stderr
        assert f"mkdir -p {shlex.quote(str(parent))}" in refused.stderr
        assert _contents(unmounted.directory) == set()

    def test_the_python_api_makes_none_either(self, tmp_path: Path) -> None:
        with pytest.raises(NotAStore, match="mkdir -p"):
            pixstorefs.open_store(str(tmp_path / "disk" / "store"), passphrase="correct horse")
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_store_is_made_and_said(self, unmounted: Mount) -> None:
        """README's first command."""
        said = unmounted.run("mount", unmounted.store, unmounted.mountpoint)
        assert (said.returncode, f"created the store {unmounted.store}" in said.stderr) == (0, True)


class TestAbsentDisk:
    """A store that this user had at a path, and that is not there."""

    @pytest.fixture
    def absent(self, unmounted: Mount) -> Mount:
        """The disk is unplugged: the store is gone, and with it all that was below."""
        unmounted.mount()
        (unmounted.mountpoint / "a.jpg").write_bytes(b"image")
        unmounted.unmount()
        unmounted.store.rename(unmounted.directory / "unplugged")
        return unmounted

    @pytest.mark.parametrize("left", ["nothing", "an empty directory"])
    def test_no_new_store_takes_its_place(self, absent: Mount, left: str) -> None:
        """Neither where the disk was mounted nor in it; with the disk back all is as before."""
        if left == "an empty directory":
            absent.store.mkdir()
        refused = absent.run("mount", absent.store, absent.mountpoint)
        assert refused.returncode == NOT_A_STORE
        assert "you had one there" in refused.stderr
        assert f"pixstorefs init {absent.store}" in refused.stderr
        assert not absent.store.exists() or os.listdir(absent.store) == []
        if left == "an empty directory":
            absent.store.rmdir()
        (absent.directory / "unplugged").rename(absent.store)
        absent.mount()
        assert (absent.mountpoint / "a.jpg").read_bytes() == b"image"

    @pytest.mark.parametrize("made_by", ["init", "mount"])
    def test_however_it_was_made_or_came(self, absent: Mount, made_by: str) -> None:
        """A store that was only ever mounted here is known, and so is one that was only ever made."""
        other = absent.directory / "other"
        if made_by == "init":
            absent.run("init", other)
        else:
            (absent.directory / "unplugged").rename(other)
            assert absent.run("mount", other, absent.mountpoint).returncode == 0
            absent.unmount()
        shutil.rmtree(other)
        assert absent.run("mount", other, absent.mountpoint).returncode == NOT_A_STORE

    def test_who_means_it_makes_a_new_one(self, absent: Mount) -> None:
        made = absent.run("mount", "--create", absent.store, absent.mountpoint)
        assert (made.returncode, "created the store" in made.stderr) == (0, True)
        absent.unmount()
        shutil.rmtree(absent.store)
        assert absent.run("init", absent.store).returncode == 0

    def test_a_home_that_cannot_be_written(self, unmounted: Mount) -> None:
        """Without a record it is made as ever: nothing can be known then."""
        unmounted.env["XDG_STATE_HOME"] = "/proc/none"
        assert unmounted.run("init", unmounted.store).returncode == 0


class TestKeyfile:
    """A key that lies with its store protects nothing."""

    @pytest.mark.parametrize("words", ["init {store}", "mount {store} {mount}"])
    def test_a_new_one_inside_the_store_is_refused(self, unmounted: Mount, words: str) -> None:
        """Whoever copies the store would copy the key, too. Nothing is made; links do not help."""
        (unmounted.directory / "link").symlink_to(unmounted.store)
        places = {"store": unmounted.store, "mount": unmounted.mountpoint}
        for folder in ("store", "link", "store/below"):
            arguments = (word.format_map(places) for word in words.split())
            refused = unmounted.run(*arguments, "--keyfile", unmounted.directory / folder / "my.key")
            assert refused.returncode == INVALID, refused.stderr
            assert "inside the store" in refused.stderr
            assert _contents(unmounted.directory) == {"link"}

    def test_keys_that_are_added_or_changed(self, unmounted: Mount) -> None:
        unmounted.run("init", unmounted.store)
        before = _contents(unmounted.directory)
        for words in (("add", "--label", "second"), ("change",)):
            verb, *options = words
            refused = unmounted.run(
                "key", verb, unmounted.store, *options, "--new-keyfile", unmounted.store / "my.key"
            )
            assert refused.returncode == INVALID, refused.stderr
            assert "inside the store" in refused.stderr
        assert _contents(unmounted.directory) == before

    def test_new_secrets_that_others_may_read(self, unmounted: Mount) -> None:
        """Told for those that are added, as for those that open."""
        passphrase, keyfile = unmounted.directory / "passphrase-file", unmounted.directory / "keyfile"
        passphrase.write_text("correct horse")
        unmounted.run("init", unmounted.directory / "other", "--keyfile", keyfile)
        unmounted.run("init", unmounted.store)
        for path in (passphrase, keyfile):
            path.chmod(0o640)
            words = ("key", "add", unmounted.store, "--label", path.name, f"--new-{path.name}", path)
            told = unmounted.run(*words)
            assert (told.returncode, f"chmod 600 {path}" in told.stderr) == (0, True), told.stderr

    def test_one_that_is_inside_already_opens_and_is_told(self, unmounted: Mount) -> None:
        """It was allowed once."""
        keyfile = unmounted.directory / "my.key"
        unmounted.run("init", unmounted.store, "--keyfile", keyfile)
        moved = keyfile.rename(unmounted.store / "my.key")
        told = unmounted.run("check", unmounted.store, "--keyfile", moved)
        assert f"{moved} lies inside the store" in told.stderr

    def test_one_on_the_same_disk_is_told(self, unmounted: Mount) -> None:
        """With the way to something better, to be pasted."""
        store = unmounted.directory / "my store"
        said = unmounted.run("init", store)
        assert "same disk" in said.stderr
        assert f"pixstorefs key add {shlex.quote(str(store))} --label" in said.stderr

    def test_one_on_another_disk(self, unmounted: Mount) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            if os.stat(folder).st_dev == unmounted.directory.stat().st_dev:
                cannot_run("the tests' folder and /dev/shm are one file system")
            said = unmounted.run("init", unmounted.store, "--keyfile", Path(folder, "key"))
        assert (said.returncode, "same disk" in said.stderr) == (0, False)


class TestSudo:
    """Root by mistake: what is made is root's then, and whoever typed it cannot reach it."""

    PERSON = 4321

    @pytest.fixture
    def sudo(self, unmounted: Mount) -> Mount:
        if os.geteuid() != 0:
            cannot_run("only root can have been made root by sudo")
        unmounted.env["SUDO_UID"] = str(self.PERSON)
        return unmounted

    def test_no_store_is_made_by_the_way(self, sudo: Mount) -> None:
        refused = sudo.run("mount", sudo.store, sudo.mountpoint)
        assert refused.returncode == INVALID, refused.stderr
        assert "without sudo" in refused.stderr
        assert "--create" in refused.stderr
        assert _contents(sudo.directory) == set()

    @pytest.mark.parametrize("words", ["init", "mount --create"])
    def test_who_means_it_gets_it(self, sudo: Mount, words: str) -> None:
        """Said once, at creation; a store of root's is mounted by sudo without a word."""
        places = [sudo.store] if words == "init" else [sudo.store, sudo.mountpoint]
        made = sudo.run(*words.split(), *places)
        assert (made.returncode, "belong to root" in made.stderr) == (0, True), made.stderr
        if words != "init":
            sudo.unmount()
        again = sudo.run("mount", sudo.store, sudo.mountpoint)
        assert (again.returncode, again.stderr) == (0, "")

    def test_the_store_of_who_typed_it(self, sudo: Mount) -> None:
        """It is mounted, for root: what that means for its owner is said, and what to do."""
        sudo.run("init", sudo.store)
        os.chown(sudo.store, self.PERSON, self.PERSON)
        told = sudo.run("mount", sudo.store, sudo.mountpoint)
        assert told.returncode == 0, told.stderr
        assert "without sudo" in told.stderr
        assert f"sudo chown -R {self.PERSON} {sudo.store}" in told.stderr

    def test_root_himself(self, unmounted: Mount) -> None:
        unmounted.env["SUDO_UID"] = "0"
        made = unmounted.run("init", unmounted.store)
        assert (made.returncode, "sudo" in made.stderr) == (0, False)
