"""A mount answers as ext4 does. The long form is scripts/differential."""

from pathlib import Path

import pytest
from differential_machine import Site, is_ext4, run
from support import Mount


def test_mount_and_ext4_do_not_differ(mounted: Mount, tmp_path: Path) -> None:
    """Random system calls, done on a mount and on a plain directory of ext4, have the same results."""
    if not is_ext4(tmp_path):
        pytest.skip(f"{tmp_path} is not on ext4, which the mount is compared with")
    mounted.expect_log("recovery: ")
    run(Site(mounted, tmp_path / "plain"), sequences=25, steps=30)
