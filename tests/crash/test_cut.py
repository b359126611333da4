"""What fsync acknowledged survives a power cut; everything else is old or new, never a mix."""

import cutting
import pytest
from disks import LoopDisk
from support import Mount

CUTS = 5


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_no_fsynced_save_is_lost_by_a_power_cut(unmounted: Mount, kind: str) -> None:
    """Five cuts at random moments under three writers: no loss, and enough was at stake to prove it."""
    with LoopDisk(unmounted.directory, kind, size_mib=512).mounted(unmounted) as disk:
        tally = cutting.cut_repeatedly(unmounted, disk, CUTS, seed=1)

    print(f"{tally}")
    assert tally.cuts == CUTS
    assert tally.synced > 5 * CUTS
    assert tally.checked > 5 * CUTS
    assert tally.unsynced_files_lost == CUTS
