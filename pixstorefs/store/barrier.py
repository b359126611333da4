"""The barrier: the moment everything saved before it is durable against power loss.

First objects, their folders and the log of the index are synced, all at once: recovery verifies whatever is
newer than the last barrier, so it does not matter which of them the disk has first. Only when it has all of
them the objects that were retired before are unlinked. So at every moment an image has at least one version
whose object and row are both durable. The barrier runs at most one second after the first unsynced save, in a
thread of its own, and on request; requests that come while one runs share the next (group commit). An
fsync(2) waits for less: copies of its objects in the journal, and the log. What a snapshot holds (see `hold`)
is not unlinked but stays for a later barrier.
"""

import logging
import threading
from collections.abc import Callable

from pixstorefs.disk.sync_threads import SyncThreads
from pixstorefs.errors import NoSpace, PixstoreError
from pixstorefs.index.rows import Index
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.journal import Journal
from pixstorefs.store.ledger import Ledger
from pixstorefs.trust.barrier_record import BarrierRecord, Claim

log = logging.getLogger(__name__)

INTERVAL_S = 1.0


class Barrier:
    """Makes a store durable. `lock` is the store's."""

    def __init__(
        self,
        lock: "threading.RLock | threading._RLock",
        objects: ObjectDirectory,
        index: Index,
        ledger: Ledger,
        journal: Journal,
        record: BarrierRecord,
        follow: Callable[[], object],
        require_owner: Callable[[], None],
    ) -> None:
        """`follow` is called before files of the index are looked for: the store may have been renamed.

        `require_owner` raises ReadOnlyStore when the store is another owner's, before anything is written.
        """
        self._lock = lock
        self._objects = objects
        self._index = index
        self._ledger = ledger
        self._record = record
        self._follow = follow
        self._require_owner = require_owner
        self._threads = SyncThreads()
        self._unsynced: list[int] = []
        # Of the unsynced objects those that the journal has.
        self._journal = journal
        self._journaled: set[int] = set()
        self._group = threading.Condition()
        self._requested = 0
        # The newest request that is done; and the newest one for the whole barrier.
        self._completed = {False: 0, True: 0}
        self._running = False
        self._ended = False
        self._failure: BaseException | None = None
        # Token and object floor of the newest barrier behind which nothing was unlinked yet.
        self._untidied: tuple[int, int] | None = None
        self._tidying = threading.Lock()
        # One condition for both reasons to wake: with an event for each, a barrier that cleared the first
        # after `stop` had set it left the thread asleep and the close waiting for it, for ever.
        self._wake = threading.Condition()
        self._changed = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run_at_intervals, name="barrier", daemon=True)
        self._thread.start()

    def note_object(self, version_id: int) -> None:
        """An object was finished (with the store's lock held)."""
        self._unsynced.append(version_id)

    def note_change(self) -> None:
        """A transaction was committed: a barrier is due within a second."""
        if not self._changed:
            with self._wake:
                self._changed = True
                self._wake.notify_all()

    def make_durable(self) -> None:
        """Return when everything saved before the call is durable. What was retired may still be there.

        Raises OSError or PixstoreError where it could not be made so. After such a failure nobody can tell
        what of the page cache reached the disk (fsync(2) reports an error once), so every later call
        raises it again until the store is opened anew and verifies what it has.
        """
        self._in_turn(whole=False)

    def _in_turn(self, *, whole: bool, last: bool = False) -> None:
        with self._group:
            self._requested += 1
            ticket = self._requested
            while self._running and self._completed[whole] < ticket:
                self._group.wait()
            if self._ended or self._completed[whole] >= ticket:
                return self._raise_failure()
            self._running = True
            covers = self._requested
        try:
            if self._failure is None:
                self._require_owner()
                if whole or not self._run_through_journal():
                    self._run()
        except (OSError, PixstoreError) as error:
            self._fail(error)
        finally:
            with self._group:
                self._running = False
                self._ended = last
                self._completed[False] = covers
                if whole:
                    self._completed[True] = covers
                self._group.notify_all()
        return self._raise_failure()

    def sync(self, *, last: bool = False) -> None:
        """The whole barrier: everything saved before is durable, what was retired before is unlinked.

        Raises as `make_durable` does.
        """
        self._changed = False
        self._in_turn(whole=True, last=last)
        with self._tidying:
            with self._group:
                untidied, self._untidied = self._untidied, None
            try:
                if untidied is not None:
                    self._tidy(*untidied)
            except (OSError, PixstoreError) as error:
                self._fail(error)
                raise

    def make_room(self) -> None:
        """The disk is full: give back what was retired, now, with the lock held throughout.

        Not through `sync`: whoever meets the full disk may hold the lock that a running barrier waits for.
        One that runs may have objects in hand that it has not synced yet, hence all of them are. Nor does a
        hold count: saving goes before a snapshot, which notices and begins anew.
        Raises OSError, ReadOnlyStore.
        """
        with self._lock:
            if self._failure is not None:
                return
            self._require_owner()
            token, floor = self._ledger.mark()
            self._objects.sync_all()
            self._sync_log()
            self._tidy(token, floor, full=True)

    def end(self) -> None:
        """End the thread, with a whole barrier that is the last one. Raises as `sync`.

        Whoever asks later finds everything durable; the files that a barrier needs may be closed then.
        """
        self.stop()
        self.sync(last=True)

    def stop(self) -> None:
        """End the thread, without a last barrier."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        self._thread.join()
        self._threads.stop()

    def _fail(self, error: BaseException) -> None:
        log.error("what was saved last could not be made durable: %s", error)
        self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        with self._lock:
            objects, self._unsynced = self._unsynced, []
            token, floor = self._ledger.mark()
            claim = self._claim(token)
        self._threads.run([*self._objects.syncs(objects), self._sync_log])
        self._record.write(claim)
        # All that the journal has was among the objects: nothing is added to it while this runs.
        self._journaled.clear()
        self._journal.rewind()
        with self._lock:
            self._ledger.durable(token)
        with self._group:
            self._untidied = token, floor

    def _sync_log(self) -> None:
        self._follow()
        self._index.sync_log()

    def _run_through_journal(self) -> bool:
        """Make everything durable by copies in the journal; whether that was possible.

        The objects stay unsynced, and nothing is unlinked on the strength of it: the whole barrier follows.
        """
        with self._lock:
            waiting = [version_id for version_id in self._unsynced if version_id not in self._journaled]
            token, _ = self._ledger.mark()
            claim = self._claim(token)
        added = (self._journal.add(version_id, self._objects.open_file) for version_id in waiting)
        if not all(added):
            return False
        # The log's sync may raise, and nobody may hide that: the next one would succeed and prove nothing.
        self._threads.run([*([self._journal.sync] if waiting else []), self._sync_log])
        if waiting and not self._journal.usable:
            return False
        self._record.write(claim)
        self._journaled.update(waiting)
        with self._lock:
            self._ledger.durable(token)
        return True

    def _claim(self, token: int) -> Claim:
        """What will be on the disk when everything of this moment is synced (with the lock held)."""
        return Claim(
            token,
            self._ledger.noted_token,
            self._index.log_position(),
            withdrawals=self._record.withdrawals,
        )

    def _tidy(self, token: int, floor: int, *, full: bool = False) -> None:
        try:
            self._forget_retired(token, floor, full=full)
        except NoSpace as error:
            # Everything is durable; only the note of it found no room. The next barrier tries again.
            log.info("no room to tidy up after a barrier: %s", error)

    def _forget_retired(self, token: int, floor: int, *, full: bool) -> None:
        with self._lock:
            retired = self._ledger.retired(token)
            leftovers = self._ledger.leftovers()
        unlinked = self._unlink(retired, even_if_held=full)
        self._objects.unlink(leftovers)
        # Before their rows go: an object that came back after power loss would have nobody to remove it.
        self._objects.sync_unlinked()
        with self._lock:
            self._ledger.passed(token, floor, unlinked=unlinked)
        if not unlinked:
            self.note_change()  # looks again in a second
        if self._index.checkpoint_is_due():
            self._shorten_log()

    def _shorten_log(self) -> None:
        self._follow()
        with self._index.log_unread() as unread:
            if not unread:
                return  # the next barrier tries again
            if not self._index.log_seems_whole():
                with self._lock:
                    self._index.require_whole_log(self._record.withdraw_log)
            checkpointed = self._index.checkpoint()
            if not (checkpointed and self._index.keep_log()):
                with self._lock:
                    self._index.empty_log(checkpointed=checkpointed, withdraw=self._record.withdraw_log)
                    if self._objects.has_reserve():
                        self._index.prepare_log()

    def _unlink(self, retired: list[int], *, even_if_held: bool) -> bool:
        """Unlink retired objects, all or, where a snapshot holds them, none; returns which.

        A snapshot that begins after they were retired does not want them, so there is no need to find out
        what was retired under the hold's lock.
        """
        if not retired:
            return True
        if even_if_held:
            self._objects.unlink(retired)
            return True
        with self._objects.unless_held() as free:
            if free:
                self._objects.unlink(retired)
            return free

    def _run_at_intervals(self) -> None:
        while self._wait_for_change():
            try:
                self.sync()
            except (OSError, PixstoreError):
                return  # logged, and told to everyone who asks for durability; not tried again: see sync

    def _wait_for_change(self) -> bool:
        """Wait for a change and then for the interval; False once stopped."""
        with self._wake:
            self._wake.wait_for(lambda: self._changed or self._stopped)
            self._wake.wait_for(lambda: self._stopped, timeout=INTERVAL_S)
            return not self._stopped
