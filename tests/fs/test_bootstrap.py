"""`scripts/pixstorefs` finds what is installed, and goes on with it where nothing new can be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
_WRITE_STAMP = """
source scripts/bootstrap.sh
read_pyproject
STATE=$CHECKOUT/.venv/.pixstorefs PYTHON=$(readlink -f .venv/bin/python3) PYTHON_REQUEST=
mkdir "$STATE"
write_stamp run
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with an environment that is complete and has no pip, so that nothing can be installed."""
    for name in ("scripts", "pixstorefs"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    program = tmp_path / ".venv" / "bin" / "pixstorefs"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o755)
    subprocess.run(["bash", "-euc", _WRITE_STAMP], cwd=tmp_path, check=True)
    return tmp_path


def _start(checkout: Path, name: str = "pixstorefs") -> tuple[int, str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIXSTOREFS_")}
    run = subprocess.run(
        [checkout / "scripts" / name, "--version"],
        env=env | {"XDG_CACHE_HOME": str(checkout / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


def _edit(checkout: Path, old: str, new: str) -> None:
    path = checkout / "pyproject.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_tools_are_told_installs_nothing(checkout: Path) -> None:
    """A line length that changed is no reason to ask the network for anything."""
    assert _start(checkout) == (0, "started\n", "")
    _edit(checkout, "[tool.ruff]\n", "[tool.ruff]\n# changed\n")
    assert _start(checkout) == (0, "started\n", "")


def test_without_a_network_what_is_installed_goes_on(checkout: Path) -> None:
    """A new dependency that cannot be had is told once; the tests, which may need it, do not begin."""
    _edit(checkout, "dependencies = [\n", 'dependencies = [\n    "something-new",\n')
    status, said, complaint = _start(checkout)
    assert (status, said) == (0, "started\n")
    assert "what was installed before goes on" in complaint
    assert _start(checkout) == (0, "started\n", "")
    status, _, complaint = _start(checkout, "test")
    assert status == 69
    assert "pip install failed" in complaint
    # Of another pyproject.toml nobody knows that it cannot be had.
    _edit(checkout, '"something-new"', '"something-newer"')
    assert "goes on" in _start(checkout)[2]


def test_an_environment_that_was_interrupted_does_not_go_on(checkout: Path) -> None:
    """Nobody knows what is in it."""
    (checkout / ".venv" / ".pixstorefs" / "changing").touch()
    _edit(checkout, "dependencies = [\n", 'dependencies = [\n    "something-new",\n')
    status, said, _ = _start(checkout)
    assert (status, said) == (69, "")
