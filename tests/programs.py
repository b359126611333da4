"""Running other people's programs."""

import os
import shutil
import subprocess
from pathlib import Path

from support import cannot_run

TIMEOUT_S = 120.0


def require(*programs: str) -> None:
    """Skip the test where a program is missing; with PIXSTOREFS_REQUIRE_ALL=1 fail it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        cannot_run(f"not installed: {', '.join(missing)}")


def environment(home: Path | None = None) -> dict[str, str]:
    """This process's, with the same messages and times everywhere; `home` is for what a program keeps."""
    changes = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    if home is not None:
        changes |= {name: str(home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    return os.environ | changes


def run(
    *arguments: str | os.PathLike[str],
    cwd: Path | None = None,
    status: int = 0,
    quiet: bool = True,
    errors_too: bool = False,
    input_text: str | None = None,
) -> str:
    """Run a program to its end; returns what it printed, on stderr as well where `errors_too`.

    Anything on stderr fails where `quiet`.
    """
    require(os.fspath(arguments[0]))
    result = subprocess.run(
        [os.fspath(argument) for argument in arguments],
        cwd=cwd,
        env=environment(),
        input=input_text or "",
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_S,
        check=False,
    )
    said = f"{arguments}\n{result.stdout}\n{result.stderr}"
    assert result.returncode == status, said
    assert not quiet or not result.stderr, said
    return result.stdout + (result.stderr if errors_too else "")
