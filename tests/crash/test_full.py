"""A disk that is full again and again: what was acknowledged stays, deleting works, the mount goes on."""

import filling
from disks import LoopDisk
from support import Mount

ROUNDS = 5


def test_no_acknowledged_save_is_lost_on_a_full_disk(unmounted: Mount) -> None:
    """Five rounds of four writers on 64 MiB: no loss, and the disk was really full."""
    with LoopDisk(unmounted.directory, "ext4", filling.DISK_SIZE_MIB).mounted(unmounted) as disk:
        unmounted.store = disk.path / "store"
        unmounted.mount()
        tally = filling.fill_repeatedly(unmounted, ROUNDS)
        unmounted.unmount()

    print(f"{tally}")
    assert tally.rounds == ROUNDS
    assert tally.saved > 100 * ROUNDS
    assert tally.refused > 2 * ROUNDS
    assert tally.deleted_when_full > 2 * ROUNDS
