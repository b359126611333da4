"""Two machines with one store, a round of each kind; the long form: scripts/torture share."""

import contextlib
import os
import random
from pathlib import Path

import pytest
from sharing import EVENTS, SFTP_SERVER, Round
from support import cannot_run


@pytest.mark.parametrize("event", EVENTS)
def test_a_store_has_one_owner_on_two_machines(tmp_path: Path, event: str) -> None:
    """Whoever comes second is refused, and whoever lost the store writes nothing more and is told."""
    if os.geteuid() != 0 or not os.path.exists(SFTP_SERVER):
        cannot_run("machines with a network mount need root, sshfs and openssh-sftp-server")
    with contextlib.ExitStack() as machines:
        Round(tmp_path, random.Random(f"test {event}"), (event,), machines).run()
