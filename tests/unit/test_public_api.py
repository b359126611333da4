"""What a program of somebody else's sees of the package: names, types, and no more."""

import subprocess
import sys
from pathlib import Path

import pixstorefs
from pixstorefs import api, errors, records

USER = """
from pathlib import Path
from typing import assert_type

import pixstorefs
from pixstorefs import ImageRecord, ImageStore, InvalidInput, PixstoreError, StoreClosed, open_store


def upload(store: ImageStore, source: Path) -> ImageRecord | None:
    try:
        return store.save_image_from_file(source, directory="2026")
    except InvalidInput as error:
        print(error, error.exit_code)
    except (StoreClosed, pixstorefs.StoreInUse, pixstorefs.NoSpace, pixstorefs.StoreNotWritable):
        raise
    except PixstoreError:
        return None
    return None


with open_store(Path("store"), keyfile=Path("key"), create=False) as opened:
    record = opened.save_image(memoryview(b""))
    assert_type(record, ImageRecord)
    assert_type(record.width, int | None)
    assert_type([found.path for found in opened.images()], list[str])
    assert_type(opened.read_image(record.id), bytes)
assert_type(pixstorefs.__version__, str)
"""


def test_types_of_a_users_program(tmp_path: Path) -> None:
    """A user's program passes `mypy --strict`, which reads the types of the package that is installed."""
    assert check_types(tmp_path, USER) == "Success: no issues found in 1 source file\n"
    wrong = USER + "opened.save_image(1)\npixstorefs.no_such_name\n"
    said = check_types(tmp_path, wrong)
    assert "[arg-type]" in said
    assert "[attr-defined]" in said


def check_types(directory: Path, program: str) -> str:
    """What `mypy --strict` says of a program that is no part of the package."""
    (directory / "user.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "user.py"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False).stdout


def test_names_at_run_time() -> None:
    """Everything in __all__ is there, the class of stores too, which is imported when it is asked for."""
    for name in pixstorefs.__all__:
        assert getattr(pixstorefs, name) is not None
    assert pixstorefs.ImageStore is api.ImageStore
    assert pixstorefs.ImageRecord is records.ImageRecord
    assert set(pixstorefs.__all__) <= set(dir(pixstorefs))
    assert not hasattr(pixstorefs, "no_such_name")


def test_errors_of_the_api() -> None:
    """Every class of error that the API raises is there; what only commands raise is not."""
    of_commands = {
        "FuseUnavailable",
        "KeysNotWritten",
        "MountpointUnusable",
        "OutputFailed",
        "SnapshotFailed",
    }
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name for name in pixstorefs.__all__ if name in kinds} == kinds - of_commands


def test_import_is_cheap() -> None:
    """`import pixstorefs` brings in neither SQLite nor ciphers, so that help and completion stay fast."""
    heavy = {"apsw", "cryptography", "PIL", "importlib.metadata"}
    program = f"import sys, pixstorefs; print({heavy} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
