"""Public POSIX suites on a mount, for scripts/posix. They are not part of this project: you give their place.

pjdfstest asks for every errno, mode and time there is a rule for; fsx does random reads, writes, truncations
and mappings on one file and compares all of it with what it knows should be there.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import Mount, program

# Lengths of file and of one operation, how rarely the file is closed and opened again, and O_DIRECT in one.
_FSX_KINDS = {
    "small": ("-l", "262144", "-c", "1000"),
    "large": ("-l", "3000000", "-o", "300000", "-c", "500"),
    "direct": (
        *("-l", "1048576", "-c", "500", "-Z", "-R", "-W"),
        *(word for option in "rwt" for word in (f"-{option}", "4096")),
    ),
}
# pyfuse3 has no handlers for them: fallocate, punch hole, zero, collapse and insert range, clone, dedupe.
_FSX_WITHOUT = ("-F", "-H", "-z", "-C", "-I", "-J", "-B")


@contextmanager
def _mounted() -> Iterator[Mount]:
    with tempfile.TemporaryDirectory(prefix="pixstorefs-posix-", dir="/var/tmp") as directory:
        mount = Mount(Path(directory))
        # The suites become other users, who have to get here.
        mount.directory.chmod(0o755)
        try:
            mount.mount("--allow-other", "-o", "dev,suid")
            mount.mountpoint.chmod(0o755)
            yield mount
        finally:
            mount.close()


def pjdfstest(suite: Path) -> int:
    """Run all of pjdfstest, as root; the exit status of prove."""
    with _mounted() as mount:
        tests = (suite / "tests").resolve()
        command = [program("prove"), "-r", tests]
        return subprocess.run(command, cwd=mount.mountpoint, check=False).returncode


def fsx(executable: Path, operations: int, seeds: range) -> int:
    """Run fsx with each seed and kind, on a mount and beside it; the exit status is 1 if anything failed.

    The same seed does the same to both files, so that the one in the mount can be compared after a remount.
    """
    failures = 0
    with _mounted() as mount:
        plain = mount.directory / "plain"
        plain.mkdir()
        for name, options in (
            (f"{kind}-{seed}", _options(kind, seed)) for seed in seeds for kind in _FSX_KINDS
        ):
            results = [
                _run_fsx(executable, directory / name, operations, options, notes=mount.directory)
                for directory in (plain, mount.mountpoint)
            ]
            passed = all(results)
            mount.remount()
            same = filecmp.cmp(plain / name, mount.mountpoint / name, shallow=False)
            failures += not (passed and same)
            told = f"{operations} operations {'passed' if passed else 'FAILED'}"
            print(f"{name}: {told}, {'the same' if same else 'DIFFERENT'} after a remount", flush=True)
            for directory in (plain, mount.mountpoint):
                (directory / name).unlink()
    return 1 if failures else 0


def _options(kind: str, seed: int) -> tuple[str, ...]:
    return ("-q", *_FSX_WITHOUT, *_FSX_KINDS[kind], "-S", str(seed))


def _run_fsx(executable: Path, file: Path, operations: int, options: tuple[str, ...], *, notes: Path) -> bool:
    command = [executable.resolve(), *options, "-N", str(operations), "-P", notes, file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        print(result.stdout[-2000:], result.stderr[-2000:], sep="\n")
    return result.returncode == 0


def main() -> int:
    """Run one suite as asked; the exit status is not 0 if anything failed."""
    parser = argparse.ArgumentParser(prog="posix", description=(__doc__ or "").partition("\n")[0])
    suites = parser.add_subparsers(dest="suite", required=True)
    whole = suites.add_parser("pjdfstest", help="as root")
    whole.add_argument("directory", type=Path, help="where pjdfstest is, built")
    random = suites.add_parser("fsx")
    random.add_argument("executable", type=Path, help="fsx of xfstests, built")
    random.add_argument("--operations", type=int, default=100_000, help="for each kind and seed")
    random.add_argument("--seeds", type=int, default=3, help="how many")
    random.add_argument("--first-seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.suite == "fsx":
        if not shutil.which(asked.executable):
            parser.error(f"{asked.executable} is no program")
        return fsx(
            asked.executable, asked.operations, range(asked.first_seed, asked.first_seed + asked.seeds)
        )
    if not (asked.directory / "pjdfstest").is_file():
        parser.error(f"there is no program pjdfstest in {asked.directory}: build it first")
    if os.geteuid() != 0:
        parser.error("pjdfstest becomes several users: run it as root")
    return pjdfstest(asked.directory)


if __name__ == "__main__":
    sys.exit(main())
