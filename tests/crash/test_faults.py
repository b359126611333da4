"""A fault at any system call leaves every image exactly old or new. The long form: scripts/torture faults."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import faulting
import pytest
from scenarios import SCENARIOS
from support import cannot_run

_STRIDE = 29
CALLS = {"write", "fdatasync", "fsync", "create", "unlink", "rename", "mkdir", "ftruncate"}


def run(*arguments: str) -> dict[str, object]:
    """Run the harness; returns its counts."""
    counts: dict[str, object] = json.loads(_output("--json", *arguments))
    return counts


def _no_power() -> list[str]:
    """Every kind of fault that needs no file system of its own."""
    return [word for kind in faulting.KINDS if kind != "power cut" for word in ("--kind", kind)]


def _output(*arguments: str) -> str:
    if not shutil.which("cc"):
        cannot_run("there is no C compiler for the faults to be compiled with")
    result = subprocess.run(
        [sys.executable, faulting.__file__, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout, result.stderr
    return result.stdout


@pytest.mark.parametrize("half", [0, 1])
def test_faults_leave_old_or_new(half: int) -> None:
    """Some of all calls of all scenarios, the same in every run; each kind of fault meets each scenario."""
    chosen = [scenario for scenario in SCENARIOS if not scenario.key_steps][half::2]
    counts = run(
        *("--stride", str(_STRIDE)),
        *(word for scenario in chosen for word in ("--scenario", scenario.name)),
        *_no_power(),
    )
    assert counts["problems"] == []
    assert counts["points"] > len(_no_power()) * len(chosen)
    assert counts["old"] > len(chosen)
    assert counts["new"] > len(chosen)
    assert counts["failed_and_told"] > len(chosen)
    assert {"write", "fdatasync", "fsync", "create", "unlink", "rename", "mkdir", "ftruncate"} <= set(
        counts["calls"]
    )


def test_power_cut_at_calls_of_a_careful_save() -> None:
    """The power goes at some calls of what most depends on the order of writes."""
    if os.geteuid() != 0:
        cannot_run("a file system of the test's own needs root")
    names = ("update", "save and rename over", "recover", "snapshot again to another disk")
    counts = run(
        *("--stride", "11", "--kind", "power cut"), *(word for name in names for word in ("--scenario", name))
    )
    assert counts["problems"] == []
    assert counts["points"] > 20
    assert counts["old"] > 3
    assert counts["new"] > 3


def test_faults_leave_old_or_new_keys() -> None:
    """Of every change of keys some calls: old or new keys, never a copy that is behind, and all images."""
    names = [scenario.name for scenario in SCENARIOS if scenario.key_steps]
    counts = run("--stride", "5", *_no_power(), *(word for name in names for word in ("--scenario", name)))
    assert counts["problems"] == []
    assert counts["points"] > 150
    assert counts["old"] > 50
    assert counts["new"] > 50
    assert counts["failed_and_told"] > 30


def test_power_cut_at_calls_of_a_change_of_keys() -> None:
    """The power goes before every second call: old or new keys, and new ones once that was acknowledged."""
    if os.geteuid() != 0:
        cannot_run("a file system of the test's own needs root")
    names = ("--scenario", "remove a key", "--scenario", "change a key")
    counts = run("--stride", "2", "--kind", "power cut", *names)
    assert counts["problems"] == []
    assert counts["points"] > 10
    assert counts["new"] > 0
    assert counts["old"] > 0


def test_order_of_a_change_of_keys() -> None:
    """Each file is synced before it gets its name, and the copy is durable before the file that counts."""
    calls = _output("--scenario", "remove a key", "--trace").splitlines()
    order = [
        calls.index(call)
        for call in (
            "write /copies/keys.json.new",
            "fsync /copies/keys.json.new",
            "rename /copies/keys.json",
            "fsync /copies",
            "write /keys.json.new",
            "fsync /keys.json.new",
            "rename /keys.json",
            "fsync ",
        )
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("scenario", ["update", "update, the log first"])
def test_order_of_a_barrier(scenario: str) -> None:
    """Object, folder, the folder's name and log, in any order; record and unlinking only then."""
    calls = _output("--scenario", scenario, "--trace").splitlines()
    unlinked = calls.index(next(call for call in calls if call.startswith("unlink /objects/")))
    created = [call for call in calls if call.startswith("create /objects/")][-1].removeprefix("create ")
    written = _next(calls, f"write {created}", calls.index(f"create {created}"))
    committed = _next(calls, "write /index.db-wal", written)
    synced = [
        _next(calls, f"fdatasync {created}", written),
        _next(calls, f"fsync {os.path.dirname(created)}", written),
        _next(calls, "fsync /objects", written),
        _next(calls, "fdatasync /index.db-wal", committed),
    ]
    # The record vouches for what is synced: one that came first would call a lost image durable.
    recorded = _next(calls, "write /barrier", committed)
    assert max(synced) < recorded
    assert max(synced) < unlinked
    assert (synced == sorted(synced)) is (scenario == "update")


def test_order_of_a_snapshot() -> None:
    """New objects, synced; the index in place; objects of no image; and only then it is finished."""
    calls = _output("--scenario", "snapshot again to another disk", "--trace").splitlines()
    brought = [number for number, call in enumerate(calls) if call.startswith("rename /taken/objects/0/")]
    placed = calls.index("rename /taken/index.db")
    removed = [
        n for n, call in enumerate(calls) if call.startswith("unlink /taken/objects/0/") and n > placed
    ]
    assert len(brought) == 2
    assert len(removed) == 2
    first, second = (number for number, call in enumerate(calls) if call.startswith("syncfs "))
    records = [number for number, call in enumerate(calls) if call == "rename /taken/snapshot.json"]
    order = [records[0], *brought, first, records[1], placed, *removed, second, records[2]]
    assert order == sorted(order)
    assert calls[placed + 1] == "fsync /taken"


def test_unlinking_is_synced_before_its_rows_go() -> None:
    """An object that came back after power loss, with its row gone for good, would stay for ever."""
    calls = _output("--scenario", "update", "--trace").splitlines()
    (unlinked,) = (call for call in calls if call.startswith("unlink /objects/"))
    at = calls.index(unlinked)
    folder = os.path.dirname(unlinked.removeprefix("unlink "))
    assert _next(calls, f"fsync {folder}", at) < _next(calls, "write /index.db-wal", at)


def test_sweep_is_synced_before_the_floor_rises() -> None:
    """The same for the drafts that recovery removes: the next one does not look below the floor."""
    calls = _output("--scenario", "recover", "--trace").splitlines()
    swept = calls.index(next(call for call in calls if call.startswith("unlink /objects/")))
    folder = os.path.dirname(calls[swept].removeprefix("unlink "))
    assert _next(calls, f"fsync {folder}", swept) < _next(calls, "write /index.db-wal", swept)


def test_log_is_written_anew_after_an_unclean_stop() -> None:
    """What a failed sync dropped from the log is copied to the database before anything relies on it.

    Linux reports a failed writeback once: the next sync of the same log succeeds and proves nothing.
    """
    calls = _output("--scenario", "recover", "--trace").splitlines()
    first_of_recovery = calls.index("write /index.db-wal")
    copied = calls.index("write /index.db")
    assert copied < _next(calls, "fdatasync /index.db", copied) < first_of_recovery


def test_order_of_an_fsync() -> None:
    """The object's copy and the log, then the record; the new file's own blocks come with the barrier."""
    calls = _output("--scenario", "update, fsync and update", "--trace").splitlines()
    created = [call for call in calls if call.startswith("create /objects/")][-2].removeprefix("create ")
    committed = _next(calls, "write /index.db-wal", calls.index(f"write {created}"))
    synced = [
        _next(calls, "fdatasync /journal", _next(calls, "write /journal", committed)),
        _next(calls, "fdatasync /index.db-wal", committed),
    ]
    updated = [call for call in calls if call.startswith("create /objects/")][-1]
    assert max(synced) < _next(calls, "write /barrier", committed)
    assert max(synced) < calls.index(updated) < _next(calls, f"fdatasync {created}", committed)


def test_log_begins_anew_with_its_header_on_the_disk() -> None:
    """All of it is in the database: it is overwritten. Old pages must not be found behind the old header."""
    calls = _output("--scenario", "update with checkpoints", "--trace").splitlines()
    checkpointed = calls.index("fdatasync /index.db", calls.index("write /index.db"))
    header = _next(calls, "write /index.db-wal", checkpointed)
    assert calls[header + 1] == "fdatasync /index.db-wal"
    assert "write /index.db-wal" in calls[header + 2 :]


def _next(calls: list[str], call: str, after: int) -> int:
    return calls.index(call, after)


def test_sqlite_is_met(tmp_path: Path) -> None:
    """The preloaded functions see what SQLite writes, or a part of the steps would never be met."""
    library = faulting.compile_shim(tmp_path)
    script = (
        "import ctypes, os, sys, apsw; "
        "ctypes.CDLL(sys.argv[1]).faults_arm(os.fsencode(sys.argv[2]), 0, ctypes.c_long(0), 0, 1); "
        "db = apsw.Connection(sys.argv[2] + '/db'); db.execute('CREATE TABLE t (x)'); db.close()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, library, tmp_path],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "write /db\n" in result.stdout
    assert "write /db-journal\n" in result.stdout
