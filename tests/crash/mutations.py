"""Does the harness notice? Takes out one thing at a time that saves depend on; each time a test has to fail.

Every mutation is a change of one place in a copy of the checkout. One that no longer fits the code is an
error, and so is one that no test notices.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """`old` occurs once in `path`; with `new` in its place one of `tests` must fail."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


_POWER = ("tests/crash/test_faults.py", "tests/crash/test_durable_close.py", "tests/crash/test_cut.py")
_RECOVERY = ("tests/store/test_recovery.py", "tests/store/test_power_loss.py", "tests/crash/test_faults.py")
_OUTDATED = ("tests/fs/test_outdated_index.py",)
_OWNERS = ("tests/store/test_owner_note.py",)
_ROUNDS = ("tests/crash/test_damage_rounds.py",)

MUTATIONS = (
    Mutation(
        "objects are not synced by the barrier",
        "pixstorefs/store/barrier.py",
        "[*self._objects.syncs(objects), self._sync_log]",
        "[self._sync_log]",
        _POWER,
    ),
    Mutation(
        "the journal is not synced",
        "pixstorefs/objects/journal.py",
        "            os.fdatasync(self._fd)\n",
        "            pass\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "recovery does not look into the journal",
        "pixstorefs/store/store.py",
        "            with_reserve(lambda: put_back_journaled(self.index, self._objects, self.folder))\n",
        "",
        _RECOVERY,
    ),
    Mutation(
        "the journal is written over before the objects are durable",
        "pixstorefs/objects/journal.py",
        "        self._position += end\n",
        "",
        _RECOVERY,
    ),
    Mutation(
        "the log begins anew without its header on the disk",
        "pixstorefs/index/database.py",
        '"synchronous=NORMAL" if journal else',
        '"synchronous=OFF" if journal else',
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "the log is not synced by the barrier",
        "pixstorefs/index/database.py",
        "        os.fdatasync(self._log_fd)\n",
        "",
        _POWER,
    ),
    Mutation(
        "replaced versions are not kept until the barrier",
        "pixstorefs/index/rows.py",
        '        self.execute("UPDATE version SET retired_by=? WHERE version_id=?", (token, version_id))\n',
        '        self.execute("DELETE FROM version WHERE version_id=?", (version_id,))\n',
        _RECOVERY,
    ),
    Mutation(
        "a save is two transactions",
        "pixstorefs/store/store.py",
        "            index.insert_version(_version_of(saved, content, token))\n",
        "            index.insert_version(_version_of(saved, content, token))\n"
        '            index.execute("COMMIT")\n'
        '            index.execute("BEGIN IMMEDIATE")\n',
        ("tests/crash/test_faults.py", "tests/crash/test_pixstore_cases.py"),
    ),
    Mutation(
        "displaced images are deleted at once",
        "pixstorefs/store/tree.py",
        " and self._ledger.may_be_lost(index, by)\n",
        " and False\n",
        _RECOVERY,
    ),
    Mutation(
        "recovery does not verify what is recent",
        "pixstorefs/store/recovery.py",
        "            if not is_intact(self._objects, version, inode.image_id):\n",
        "            if False:\n",
        _RECOVERY,
    ),
    Mutation(
        "recovery does not sweep orphans",
        "pixstorefs/store/recovery.py",
        "    objects.unlink(orphans - set(strangers))\n",
        "",
        _RECOVERY,
    ),
    Mutation(
        "retired objects are unlinked before the barrier's syncs",
        "pixstorefs/store/barrier.py",
        "            claim = self._claim(token)\n        self._threads.run([*self._objects",
        "            claim = self._claim(token)\n"
        "            self._objects.unlink(self._ledger.retired(token))\n"
        "        self._threads.run([*self._objects",
        _POWER,
    ),
    Mutation(
        "the folders of objects are not synced",
        "pixstorefs/objects/directory.py",
        "[objects.pop(), *(partial(self._sync_folder, folder) for folder in folders)]",
        "[objects.pop()]",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "the name of a folder of objects is not synced",
        "pixstorefs/objects/directory.py",
        "        if folders - self._durable_folders:\n",
        "        if False:\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "a sync that fails on a thread is taken for done",
        "pixstorefs/disk/sync_threads.py",
        "            done.result()\n",
        "            pass\n",
        ("tests/store/test_barrier.py",),
    ),
    Mutation(
        "an fsync leaves what it replaced for ever",
        "pixstorefs/store/barrier.py",
        "            self._untidied = token, floor\n",
        "            pass\n",
        ("tests/store/test_barrier.py",),
    ),
    Mutation(
        "unlinking is not synced before its rows go",
        "pixstorefs/store/barrier.py",
        "        self._objects.sync_unlinked()\n",
        "",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "recovery's sweep is not synced",
        "pixstorefs/store/recovery.py",
        "    objects.sync_unlinked()  # the barrier",
        "    # the barrier",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "recovery trusts a log whose sync may have failed",
        "pixstorefs/store/store.py",
        "            if not self._empty_log(_READER_AT_RECOVERY_WAIT_S, self._record.withdraw_log):\n",
        "            if False:\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "the copy of the keys is written behind the file that counts",
        "pixstorefs/trust/header.py",
        "        _replace(folder, copy, slots)\n        _replace(folder, first, slots)\n",
        "        _replace(folder, first, slots)\n        _replace(folder, copy, slots)\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "the keys are not synced before they get their name",
        "pixstorefs/disk/folder.py",
        "                write_fully(fd, memoryview(content), lambda: None)\n                os.fsync(fd)\n",
        "                write_fully(fd, memoryview(content), lambda: None)\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "the keys are written over in place",
        "pixstorefs/disk/folder.py",
        '        temporary = temporary or name + ".new"\n',
        "        temporary = name\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "a snapshot does not hold the objects",
        "pixstorefs/snapshot/snapshot.py",
        "            with held(self._view.folder):\n",
        "            if True:\n",
        ("tests/store/test_snapshot.py",),
    ),
    Mutation(
        "the objects of a snapshot are not synced before its index is in place",
        "pixstorefs/snapshot/snapshot.py",
        "            self._refuse(_problems(Check(self._new, Progress()).run_index()))\n"
        "            self._target.objects.sync_all()\n",
        "            self._refuse(_problems(Check(self._new, Progress()).run_index()))\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "what an interrupted snapshot left is trusted",
        "pixstorefs/snapshot/snapshot.py",
        "or self._opens(stored)\n",
        "or True\n",
        ("tests/store/test_snapshot.py",),
    ),
    Mutation(
        "a copy of the index is kept although the log began anew under it",
        "pixstorefs/index/capture.py",
        "                if before.has_same_base(after):\n",
        "                if after:\n",
        ("tests/store/test_capture.py",),
    ),
    Mutation(
        "the log is moved into the index while another process copies both",
        "pixstorefs/index/database.py",
        "            yield at_rest and unheld\n",
        "            yield at_rest\n",
        ("tests/store/test_capture.py",),
    ),
    Mutation(
        "a log with a hole is moved into the index",
        "pixstorefs/store/store.py",
        "                    self.index.require_whole_log(self._record.withdraw_log)\n",
        "                    pass\n",
        ("tests/fs/test_cut_files.py",),
    ),
    Mutation(
        "a slot of the spill has the same nonce each time",
        "pixstorefs/objects/spill.py",
        "        self._sealer.seal_into(self._writes, False",
        "        self._sealer.seal_into(len(self._numbers), False",
        ("tests/unit/test_draft.py",),
    ),
    Mutation(
        "a failed barrier is forgotten",
        "pixstorefs/store/barrier.py",
        "        self._failure = error\n",
        "",
        ("tests/store/test_power_loss.py",),
    ),
    Mutation(
        "an old index is believed",
        "pixstorefs/trust/proof.py",
        "    return Proof(doubt, found.claim.token if found.claim else None, unread, owner_may_live)\n",
        "    return Proof(None, found.claim.token if found.claim else None, 0, owner_may_live)\n",
        _ROUNDS,
    ),
    Mutation(
        "a damaged index is restored without its copies",
        "pixstorefs/check/restore.py",
        "    copy = copies[0] if copies else None\n",
        "    copy = None\n",
        _ROUNDS,
    ),
    Mutation(
        "a check does not tell of damaged images",
        "pixstorefs/check/check.py",
        "            if damage is not None:\n",
        "            if False:\n",
        _ROUNDS,
    ),
    Mutation(
        "links below the store are followed",
        "pixstorefs/disk/folder.py",
        "            return open_beneath(self.fd, name, flags | _ALWAYS)\n",
        "            return os.open(name, (flags | _ALWAYS) & ~os.O_NOFOLLOW, 0o600, dir_fd=self.fd)\n",
        _ROUNDS,
    ),
    Mutation(
        "a second name of a file is written to",
        "pixstorefs/disk/folder.py",
        "        if status.st_nlink > 1:\n",
        "        if False:\n",
        _ROUNDS,
    ),
    Mutation(
        "SQLite is given an empty index",
        "pixstorefs/index/database.py",
        "    if not new:\n        _require_pages(path, copy_of or path)\n",
        "",
        _OUTDATED,
    ),
    Mutation(
        "a log that ends too early is believed",
        "pixstorefs/trust/proof.py",
        "        if readable_frames >= claimed.frames:\n",
        "        if True:\n",
        _OUTDATED,
    ),
    Mutation(
        "an index that is older than its copy is believed",
        "pixstorefs/trust/proof.py",
        " or _doubt_of_copy(found.copy, state)",
        "",
        ("tests/store/test_check.py",),
    ),
    Mutation(
        "what an older index does not know is removed",
        "pixstorefs/store/recovery.py",
        "    if not proof.knows_every_object:\n",
        "    if False:\n",
        ("tests/store/test_recovery.py", *_OUTDATED),
    ),
    Mutation(
        "copies that a repair started from are left to be replaced",
        "pixstorefs/check/restore.py",
        "            keep_copies(self.store, aside)\n",
        "",
        _OUTDATED,
    ),
    Mutation(
        "the log is emptied while the record vouches for it",
        "pixstorefs/trust/barrier_record.py",
        "        return claim is None or self.write(replace(claim, log=Position()), synced=True)\n",
        "        return True\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "a log that was emptied meanwhile is claimed",
        "pixstorefs/trust/barrier_record.py",
        "            if claim.withdrawals < self._withdrawals:\n",
        "            if False:\n",
        ("tests/store/test_barrier.py",),
    ),
    Mutation(
        "a record is written before what it vouches for is synced",
        "pixstorefs/store/barrier.py",
        "        self._threads.run([*self._objects.syncs(objects), self._sync_log])\n"
        "        self._record.write(claim)\n",
        "        self._record.write(claim)\n"
        "        self._threads.run([*self._objects.syncs(objects), self._sync_log])\n",
        ("tests/crash/test_faults.py",),
    ),
    Mutation(
        "an owner on another machine counts for nothing",
        "pixstorefs/disk/owner_note.py",
        "            if not break_lock:\n",
        "            if False:\n",
        _OWNERS,
    ),
    Mutation(
        "an owner that lost the store writes on",
        "pixstorefs/store/transactions.py",
        "            self._require_owner()\n",
        "            pass\n",
        _OWNERS,
    ),
    Mutation(
        "an owner that lost the store ends it cleanly",
        "pixstorefs/store/store.py",
        "                self._require_owner_or_keep(now=True)\n",
        "",
        _OWNERS,
    ),
    Mutation(
        "a lost owner's writes reach the files of the next one",
        "pixstorefs/trust/fence.py",
        "            store.rename(name + _COPY_SUFFIX, name)\n",
        "            store.unlink(name + _COPY_SUFFIX)\n",
        _OWNERS,
    ),
    Mutation(
        "what a lost owner had saved is dropped",
        "pixstorefs/store/store.py",
        "                self._keep_what_was_saved()\n",
        "                pass\n",
        _OWNERS,
    ),
    Mutation(
        "what another mount wrote is not waited for",
        "pixstorefs/disk/owner_note.py",
        "    if before - {note.identity} and not flock_is_true(store):\n",
        "    if False:\n",
        _OWNERS,
    ),
)


def survives(mutation: Mutation) -> bool:
    """Whether all tests pass with the mutation."""
    with tempfile.TemporaryDirectory(prefix="pixstorefs-mutation-") as directory:
        copy = Path(directory, "checkout")
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")
        shutil.copytree(_CHECKOUT, copy, ignore=ignored)
        path = copy / mutation.path
        source = path.read_text()
        if source.count(mutation.old) != 1:
            sys.exit(f"{mutation.name}: {mutation.path} has changed, the mutation does not fit any more")
        path.write_text(source.replace(mutation.old, mutation.new))
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode not in (0, 1):
            sys.exit(f"{mutation.name}: the tests did not run:\n{result.stdout[-2000:]}")
        if result.returncode == 1:
            failed = next((line for line in result.stdout.splitlines() if line.startswith("FAILED")), "")
            print(f"noticed: {mutation.name} ({failed[7:100]})", flush=True)
        return result.returncode == 0


def main(names: list[str]) -> int:
    """Try all mutations, or those whose name contains one of `names`; returns the exit status."""
    chosen = [each for each in MUTATIONS if not names or any(name in each.name for name in names)]
    survivors = [mutation.name for mutation in chosen if survives(mutation)]
    for name in survivors:
        print(f"NOT noticed: {name}")
    print(f"{len(chosen)} mutations, {len(chosen) - len(survivors)} noticed")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
