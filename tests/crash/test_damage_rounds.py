"""The short form of `scripts/torture damage` and `attack`: some rounds of both, the same in every run."""

import json
import os
import subprocess
import sys

import attacking
import damages
import damaging
from prepared import KINDS
from support import cannot_run

_DAMAGES = 60
_ATTACKS = 40


def _run(program: str, rounds: int) -> dict[str, object]:
    """Run so many rounds; returns the counts. It forks, so it has to be a process without threads."""
    result = subprocess.run(
        [sys.executable, program, str(rounds), "--seed", "1", "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout, result.stderr
    counts: dict[str, object] = json.loads(result.stdout)
    return counts


def test_no_damage_loses_what_a_key_opens() -> None:
    """Every kind of damage, to stores of every kind: no image lost without need, and no loss untold."""
    counts = _run(damaging.__file__, _DAMAGES)
    assert counts["failures"] == []
    assert counts["rounds"] == _DAMAGES
    assert counts["mounts"] > 0
    assert counts["images"] > 10 * _DAMAGES
    assert counts["told_lost"] > 20
    assert set(damages.ACTIONS) <= set(counts["tried"])
    assert {f"in {kind.name}" for kind in KINDS} <= set(counts["tried"])


def test_no_link_leads_out_of_a_store() -> None:
    """A tree and another store beside it stay as they are, whoever opens what somebody else prepared."""
    if os.geteuid() != 0:
        cannot_run("only root may be led everywhere")
    counts = _run(attacking.__file__, _ATTACKS)
    assert counts["failures"] == []
    assert counts["rounds"] == _ATTACKS
    assert {"links", "races"} <= set(counts["tried"])
