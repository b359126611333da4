"""The barrier's thread: it comes by itself, ends when told to, and leaves alone what a snapshot holds."""

import os
import signal
import threading
import time
from contextlib import closing

import pytest
from stores import Place, image, replace_file, save_file, tree

from pixstorefs.store import barrier
from pixstorefs.store.hold import held, unless_held
from pixstorefs.store.index import ROOT_INO


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


def test_hold_keeps_what_was_retired(place: Place) -> None:
    """While a snapshot holds the objects none goes; soon after it let go they do, without another change."""
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "a", lambda draft: draft.write(0, image(10)))
        save_file(store, "b", lambda draft: draft.write(0, image(10)))
        store.sync()
        before = set(place.objects())
        with held(str(place.path)):
            replace_file(store, "a", image(20))
            store.remove(ROOT_INO, b"b", 3)
            store.sync()
            store.sync()
            assert before < set(place.objects())
            assert store.index.state().durable_token == store.numbers.last_token
        deadline = time.monotonic() + 30
        while before & set(place.objects()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(place.objects()) == 1


def test_hold_outlasts_a_close(place: Place) -> None:
    """A store that is closed while it is held is a clean one; the next barrier removes what was retired."""
    place.open().close()
    store = place.open_store()
    save_file(store, "a", lambda draft: draft.write(0, image(10)))
    with held(str(place.path)):
        replace_file(store, "a", image(20))
        store.close()
        assert len(place.objects()) == 2
        with closing(place.open_store()) as store:
            assert store.report == []
            assert tree(store) == {"a": image(20)}
            assert len(place.objects()) == 2
    with closing(place.open_store()) as store:
        assert tree(store) == {"a": image(20)}
        assert len(place.objects()) == 1


def test_full_disk_goes_before_a_hold(place: Place) -> None:
    """Saving must not fail for lack of room that a snapshot only holds."""
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "a", lambda draft: draft.write(0, image(10)))
        with held(str(place.path)):
            replace_file(store, "a", image(20))
            store.make_room()
            assert len(place.objects()) == 1


def test_hold_ends_with_its_process(place: Place) -> None:
    """A snapshot that is killed holds nothing any more."""
    place.open().close()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with held(str(place.path)):
            os.write(write_end, b"held")
            time.sleep(60)
            os._exit(0)
    os.read(read_end, 4)
    with unless_held(str(place.path)) as free:
        assert not free
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with unless_held(str(place.path)) as free:
        assert free
    os.close(read_end)
    os.close(write_end)
