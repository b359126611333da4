"""The barrier's thread: it comes by itself, ends when told to, and leaves alone what a snapshot holds."""

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest
from stores import Place, image, objects_of, replace_file, save_file, tree

from pixstorefs.disk.folder import Folder
from pixstorefs.disk.sync_threads import SyncThreads
from pixstorefs.disk.unlink_guard import held, unless_held
from pixstorefs.index.rows import ROOT_INO
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


def test_hold_keeps_what_was_retired(place: Place) -> None:
    """While a snapshot holds the objects none goes; soon after it let go they do, without another change."""
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "a", lambda draft: draft.write(0, image(10)))
        save_file(store, "b", lambda draft: draft.write(0, image(10)))
        store.sync()
        before = set(place.objects())
        with held(Folder.at(str(place.path))):
            replace_file(store, "a", image(20))
            store.tree.remove(ROOT_INO, b"b", 3)
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
    with held(Folder.at(str(place.path))):
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
        with held(Folder.at(str(place.path))):
            replace_file(store, "a", image(20))
            store.make_room()
            assert len(place.objects()) == 1


def test_hold_ends_with_its_process(place: Place) -> None:
    """A snapshot that is killed holds nothing any more."""
    place.open().close()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with held(Folder.at(str(place.path))):
            os.write(write_end, b"held")
            time.sleep(60)
            os._exit(0)
    os.read(read_end, 4)
    with unless_held(Folder.at(str(place.path))) as free:
        assert not free
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with unless_held(Folder.at(str(place.path))) as free:
        assert free
    os.close(read_end)
    os.close(write_end)


def test_fsync_does_not_wait_for_unlinking(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an fsync made durable survives anything; what it replaced goes with the barrier's thread."""
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    place.open().close()
    store = place.open_store()
    save_file(store, "a", lambda draft: draft.write(0, image(10, "old")))
    store.sync()
    before = set(place.objects())
    replace_file(store, "a", image(20, "new"))
    store.make_durable()

    assert before < set(place.objects())
    copy = place.path.with_name("copy")
    shutil.copytree(place.path, copy)
    reopened = place.open_store(copy)
    assert reopened.report == []
    assert tree(reopened) == {"a": image(20, "new")}
    assert set(objects_of(copy)) == set(place.objects()) - before
    reopened.close()

    store.sync()
    assert not before & set(place.objects())
    store.close()


def test_a_log_emptied_beside_an_fsync_is_not_claimed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an fsync claims of a log that a barrier empties meanwhile is not held against the next one."""
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    place.open().close()
    with closing(place.open_store()) as store:
        save_file(store, "a", lambda draft: draft.write(0, image(10)))
        run = SyncThreads.run

        def run_and_empty(threads: SyncThreads, calls: list[Callable[[], None]]) -> None:
            run(threads, calls)
            assert store._empty_log(0, store._record.withdraw_log)

        with monkeypatch.context() as emptied:
            emptied.setattr(SyncThreads, "run", run_and_empty)
            store.make_durable()
        save_file(store, "b", lambda draft: draft.write(0, image(10)))
        copy = place.path.with_name("copy")
        shutil.copytree(place.path, copy)
    with closing(place.open_store(copy)) as reopened:
        assert set(tree(reopened)) == {"a", "b"}


def test_barrier_comes_by_itself_after_an_fsync(place: Place) -> None:
    """What an fsync left for the barrier's thread is done soon, although nothing else changes."""
    place.open().close()
    store = place.open_store()
    try:
        save_file(store, "a", lambda draft: draft.write(0, image(10, "old")))
        replace_file(store, "a", image(20, "new"))
        store.make_durable()
        deadline = time.monotonic() + 30
        while len(place.objects()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        store.close()


def test_rename_over_what_an_fsync_made_durable_keeps_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The careful save: its rename destroys the key of what it replaces, nothing brings that back."""
    monkeypatch.setattr(barrier, "INTERVAL_S", 3600.0)
    place.open().close()
    store = place.open_store()
    old = save_file(store, "a", lambda draft: draft.write(0, image(10, "old")))
    store.sync()
    save_file(store, "tmp", lambda draft: draft.write(0, image(20, "new")))
    store.make_durable()
    assert old.version_id is not None
    store.tree.rename(ROOT_INO, b"tmp", ROOT_INO, b"a", 9)
    assert store.index.version(old.version_id) is None
    copy = place.path.with_name("copy")
    shutil.copytree(place.path, copy)
    store.close()

    reopened = place.open_store(copy)
    assert tree(reopened) == {"a": image(20, "new")}
    reopened.close()


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("stopped", [False, True])
def test_sync_threads_finish_everything_before_they_tell(failing: int, stopped: bool) -> None:
    """A sync that fails is raised, and none is still under way then; so it is after the threads ended."""
    threads = SyncThreads()
    if stopped:
        threads.stop()
    done = []

    def sync(number: int) -> None:
        if number == failing:
            raise OSError(errno.EIO, "failed")
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(OSError, match="failed"):
        threads.run([partial(sync, number) for number in range(3)])
    settled = list(done)
    assert stopped or len(settled) == 2
    threads.stop()
    assert done == settled
