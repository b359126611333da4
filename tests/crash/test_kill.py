"""What close acknowledged survives kill -9; everything else is old or new, never a mix."""

import killing
from support import Mount

KILLS = 10


def test_no_acknowledged_save_is_lost_by_kill(unmounted: Mount) -> None:
    """Ten kills at random moments under three writers: no loss, and enough was acknowledged to prove it."""
    tally = killing.kill_repeatedly(unmounted, KILLS, seed=1)

    print(f"{tally}")
    assert tally.kills == KILLS
    assert tally.acknowledged > 20 * KILLS
    assert tally.checked > 10 * KILLS
