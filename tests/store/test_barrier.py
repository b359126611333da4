"""The barrier's thread: it comes by itself, and it ends when told to, whatever it is doing."""

import threading
import time

import pytest
from stores import Place, image, save_file

from pixstorefs.store import barrier


def test_barrier_comes_by_itself(place: Place) -> None:
    """A save is behind a barrier soon after, although nobody asks for one."""
    place.open().close()
    store = place.open_store()
    try:
        save_file(store, "a", lambda draft: draft.write(0, image(10)))
        deadline = time.monotonic() + 30
        while store.index.state().durable_token < store.numbers.last_token:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        store.close()


def test_close_does_not_wait_for_a_barrier_that_just_began(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing while the thread begins its barrier, at every moment there is, ends the thread."""
    monkeypatch.setattr(barrier, "INTERVAL_S", 0.002)
    place.open().close()
    for number in range(150):
        store = place.open_store()
        save_file(store, f"{number}", lambda draft: draft.write(0, image(10)))
        time.sleep(number % 15 * 0.0004)
        closing = threading.Thread(target=store.close, daemon=True)
        closing.start()
        closing.join(timeout=30)
        assert not closing.is_alive(), f"close number {number} hangs"
