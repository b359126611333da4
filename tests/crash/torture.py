"""The long form of test_kill.py, for scripts/torture: any number of kills, and the counts printed."""

import sys
import tempfile
from pathlib import Path

import killing
from support import Mount

_KILLS_A_STORE = 50


def main(kills: int = 1000, seed: int = 1) -> None:
    """Kill `kills` times, in stores of fifty kills each; ends with an AssertionError at the first loss."""
    total = killing.Tally()
    while total.kills < kills:
        with tempfile.TemporaryDirectory(prefix="pixstorefs-torture-") as directory:
            mount = Mount(Path(directory))
            try:
                tally = killing.kill_repeatedly(mount, min(_KILLS_A_STORE, kills - total.kills), seed)
            finally:
                mount.close()
        seed += 1
        total.kills += tally.kills
        total.acknowledged += tally.acknowledged
        total.checked += tally.checked
        total.recovered_drafts += tally.recovered_drafts
        print(
            f"{total.kills} kills, {total.acknowledged} acknowledged steps, {total.checked} images checked, "
            f"{total.recovered_drafts} recoveries, 0 losses",
            flush=True,
        )
    assert total.acknowledged > 20 * kills, "too little was acknowledged to prove anything"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
