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
    chosen = SCENARIOS[half::2]
    kinds = [kind for kind in faulting.KINDS if kind != "power cut"]
    counts = run(
        *("--stride", str(_STRIDE)),
        *(word for scenario in chosen for word in ("--scenario", scenario.name)),
        *(word for kind in kinds for word in ("--kind", kind)),
    )
    assert counts["problems"] == []
    assert counts["points"] > len(kinds) * len(chosen) * 2
    assert counts["old"] > len(chosen)
    assert counts["new"] > len(chosen)
    assert counts["failed_and_told"] > len(chosen)
    assert {"write", "fdatasync", "fsync", "create", "unlink", "rename", "mkdir", "ftruncate"} <= set(
        counts["calls"]
    )


def test_power_cut_at_calls_of_a_careful_save() -> None:
    """The power goes at some calls of the saves that most depend on the order of writes."""
    if os.geteuid() != 0:
        cannot_run("a file system of the test's own needs root")
    names = ("update", "save and rename over", "recover")
    counts = run(
        *("--stride", "11", "--kind", "power cut"), *(word for name in names for word in ("--scenario", name))
    )
    assert counts["problems"] == []
    assert counts["points"] > 20
    assert counts["old"] > 3
    assert counts["new"] > 3


@pytest.mark.parametrize("scenario", ["update", "update, the log first"])
def test_order_of_a_barrier(scenario: str) -> None:
    """Object, folder, the folder's name and log, in any order; what was replaced is unlinked only then."""
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
    assert max(synced) < unlinked
    assert (synced == sorted(synced)) is (scenario == "update")


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
