"""The short form of `scripts/torture load`: everything at once for some seconds, and nothing left of it."""

import loading
from disks import LoopDisk
from programs import require
from support import Mount


def test_all_of_the_file_system_under_load(unmounted: Mount) -> None:
    """Every stressor once, beside verified writes; memory and descriptors return, `check` is content."""
    require(*loading.PROGRAMS)
    with LoopDisk(unmounted.directory, "ext4", loading.DISK_SIZE_MIB, memory=False).mounted(
        unmounted
    ) as disk:
        unmounted.store = disk.path / "store"
        unmounted.mount()
        tally = loading.load(unmounted, 0, slice_s=1, stressors_at_once=12)

    print(f"{tally}")
    assert tally.operations.total() > 1000
    assert min(tally.written_mib, tally.verified_mib) > 0
