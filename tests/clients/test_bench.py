"""scripts/bench on real mounts, as small as it gets: it runs, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import cannot_run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def bench(workdir: Path, *options: str) -> dict:
    """Run it with what the test environment has, and return what it wrote as JSON."""
    if not os.access("/dev/fuse", os.W_OK):
        cannot_run("this machine has no usable /dev/fuse")
    output = workdir / "results.json"
    command = [sys.executable, "-P", "-m", "benchmark", "--workdir", str(workdir), "--json", str(output)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(workdir.glob("pixstorefs-bench-*")), "it left its directory"
    assert str(workdir) not in Path("/proc/self/mounts").read_text(), "it left a mount"
    return json.loads(output.read_text())


def test_comparison(tmp_path):
    """Two systems, a row of each sort that needs no empty caches: samples, ratios, no complaint."""
    rows = ["ingest-small", "read-small-warm", "rename-small", "fsync-each", "disk-small"]
    small = ("--size-factor", "0.004", "--repetitions", "1", "--warmups", "0")
    found = bench(tmp_path, *small, "--systems", "pixstorefs,ext4", "--rows", ",".join(rows))
    assert found["notes"] == []
    assert sorted(row["name"] for row in found["rows"]) == sorted(rows)
    for row in found["rows"]:
        assert all(len(samples) == 1 and samples[0] > 0 for samples in row["samples"].values()), row
        assert row["ratios"]["ext4"] > 0
    assert found["geometric_means"]["ext4"] > 0


@pytest.mark.long
def test_growth(tmp_path):
    """A store that grows from 300 to 600 images, every quantity at both sizes."""
    found = bench(tmp_path, "--scale", "--scale-images", "300,600")
    assert list(found["images"]) == ["300", "600"]
    assert all(value > 0 for sample in found["images"].values() for value in sample.values())
