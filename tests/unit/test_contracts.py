"""The import contracts of pyproject.toml: what is new and has no leave is refused."""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pixstorefs

CHECKOUT = Path(__file__).parents[2]
PACKAGES = {module.name for module in pkgutil.iter_modules(pixstorefs.__path__) if module.ispkg}
ALLOWED = {
    "apsw": {"index", "salvage"},
    "cryptography": {"keys"},
    "pyfuse3": {"fuse", "daemon"},
    "trio": {"fuse", "daemon"},
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its contracts, to be changed."""
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    shutil.copytree(
        CHECKOUT / "pixstorefs", tmp_path / "pixstorefs", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def lint(copy: Path) -> tuple[int, str]:
    """The exit status of import-linter in a copy, and what it says, folded to one line."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, " ".join((run.stdout + run.stderr).split())


def test_the_code_keeps_its_contracts(copy: Path) -> None:
    """What the other tests here break is whole before."""
    status, said = lint(copy)
    assert status == 0, said


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_a_new_module_may_not_import_what_its_layer_must_not_know(copy: Path, library: str) -> None:
    """A module that nobody wrote a rule for is refused in every layer without leave."""
    for package in PACKAGES:
        (copy / "pixstorefs" / package / "intruder.py").write_text(f"import {library}\n")
    status, said = lint(copy)
    assert status == 1
    refused = set(re.findall(rf"pixstorefs\.(\w+)\.intruder -> {library}", said))
    assert refused == PACKAGES - ALLOWED[library], said


def test_a_new_folder_needs_a_place_among_the_layers(copy: Path) -> None:
    """A top-level module that stands in no layer is an error, not an exception."""
    (copy / "pixstorefs" / "attic").mkdir()
    (copy / "pixstorefs" / "attic" / "__init__.py").write_text("")
    status, said = lint(copy)
    assert status != 0
    assert "attic" in said


def test_an_import_upward_is_refused(copy: Path) -> None:
    """The index, for example, does not know the store above it, nor the objects beside it."""
    module = copy / "pixstorefs" / "index" / "intruder.py"
    for above in ("store.store", "objects.sealing"):
        module.write_text(f"import pixstorefs.{above}\n")
        status, said = lint(copy)
        assert status == 1, said
        assert f"pixstorefs.index.intruder -> pixstorefs.{above}" in said


def test_architecture_tells_of_every_folder_what_the_folder_tells() -> None:
    """docs/architecture.md has one line a folder: the first one of its docstring."""
    document = (CHECKOUT / "docs" / "architecture.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", document, re.MULTILINE))
    docstrings = {name: importlib.import_module(f"pixstorefs.{name}").__doc__ or "" for name in PACKAGES}
    assert told == {name: text.splitlines()[0] for name, text in docstrings.items()}
