"""Serve one mount from opening the store to its clean end, in this process.

How it ends, in order: the kernel hands over what it caches, the event loop stops, open drafts are saved,
the store gets its last barrier, and only then the mountpoint is free. A crash leaves out the last step on
purpose: a dead mount stops programs, an empty directory would let them write beside the store.
"""

import errno
import gc
import logging
import os
import shlex

import pyfuse3
import trio

from pixstorefs.check.rescue import open_for_reading
from pixstorefs.daemon import linux, mounts, owner, session
from pixstorefs.daemon.idle import IdleWatch
from pixstorefs.daemon.plan import MountPlan
from pixstorefs.daemon.process import EXIT_UNEXPECTED, Starter
from pixstorefs.daemon.signals import StopRequest
from pixstorefs.disk.owner_note import OwnedElsewhere
from pixstorefs.errors import CorruptStore, PixstoreError, StoreInUse
from pixstorefs.fs.owners import owners_of
from pixstorefs.fuse.event_loop import Turns, poll_for_requests
from pixstorefs.fuse.operations import Operations
from pixstorefs.index.rows import ROOT_INO
from pixstorefs.keys.secrets import Secret
from pixstorefs.printable import ReportLine
from pixstorefs.records import Inode
from pixstorefs.store import Store, open_unlocked

log = logging.getLogger(__name__)

# Idle workers kept: each owns a request buffer of 1 MiB, and giving it back means page faults on the next
# write. The kernel sends at most 12 background requests at once (its default max_background).
_MIN_WORKERS = 12
# Requests served at once; more wait in the kernel. Bounds the memory for request buffers to 64 MiB.
_MAX_WORKERS = 64

# A daemon whose mount is gone is saving its last drafts; a new mount waits that long for it.
_PREDECESSOR_TIMEOUT_S = 10.0
# systemd kills a service 90 s after asking it to stop, so everything here must fit in that.
_UNMOUNT_TIMEOUT_S = 40.0
_LOOP_END_TIMEOUT_S = 5.0

_EXIT_NOT_SAVED = 1


def serve(plan: MountPlan, secret: Secret, starter: Starter) -> int:
    """Mount, serve, save everything; returns the exit status. `starter` is told when the mount answers."""
    stop = StopRequest()
    stop.install()
    store = _open_store(plan, secret)
    turns = Turns()
    try:
        root = _root(store)
        owners = owners_of(root, mounter=plan.mounter, uid=plan.uid, gid=plan.gid, umask=plan.umask)
        operations = Operations(
            store,
            turns,
            owners,
            read_only=plan.read_only,
            kernel_checks=plan.kernel_checks,
            durable_close=plan.durable_close,
            log_names=plan.log_names,
            now_ns=linux.FileClock().now_ns,
        )
        idle = IdleWatch(plan.idle_unmount_s, operations.has_open_files) if plan.idle_unmount_s else None
        watched = idle.watching(operations) if idle else operations
        handshake = session.start(watched, plan.mountpoint, session.options(plan))
        poll_for_requests(turns, plan.busy_poll_s, handshake.finish)
    except BaseException:
        store.close()
        raise
    notes = [*_told(store.report, plan), *_about_the_owner(plan, root)]
    failure = _run_loop(plan, stop, starter, notes, operations, idle)
    stop.forget_loop()
    starter.ending()
    saved = _save_everything(operations, store)
    pyfuse3.close(unmount=failure is None)
    if failure is not None:
        log.critical(
            "the mount broke and is left dead on %s: mount it again, or clean it away with pixstorefs umount",
            plan.mountpoint,
            exc_info=failure,
        )
        return EXIT_UNEXPECTED
    log.info("ended: %s is unmounted from %s", plan.store_path, plan.mountpoint)
    return 0 if saved else _EXIT_NOT_SAVED


def _told(report: list[ReportLine], plan: MountPlan) -> list[str]:
    """What is to be told of the recovery, which is logged as well."""
    for line in report:
        log.warning("recovery: %s", line.told(named=plan.log_names))
    return [line.told(named=plan.tell_names) for line in report]


def _root(store: Store) -> Inode:
    root = store.tree.inode(ROOT_INO)
    if root is None:
        raise CorruptStore(
            f"the index of the store {store.folder.path} has no root directory, so nothing can be shown. "
            f"The images are untouched: pixstorefs check --repair {shlex.quote(store.folder.path)}"
        )
    return root


def _about_the_owner(plan: MountPlan, root: Inode) -> list[str]:
    """A line for who lets others in: owners are shown as they are stored then, and he may be none of them."""
    me = os.geteuid()
    if not plan.allow_other or plan.uid is not None or me in (0, root.uid):
        return []
    note = (
        f"the images belong to user {root.uid}, and you are user {me}: what you may not read or change is "
        f"theirs. To have all of it shown as yours: mount with -o uid={me},gid={os.getegid()}"
    )
    log.info(note)
    return [note]


def _open_store(plan: MountPlan, secret: Secret) -> Store:
    """Open the store; if the mount that has it is just ending, wait for that first."""

    def attempt() -> Store:
        return open_unlocked(
            plan.store_path,
            secret,
            read_only=plan.read_only,
            mountpoint=plan.mountpoint,
            break_lock=plan.break_lock,
        )

    try:
        return open_for_reading(plan.store_path, secret, attempt) if plan.read_only else attempt()
    except OwnedElsewhere:
        raise
    except StoreInUse:
        holder = owner.read(plan.store_path)
        if not _is_ending(holder, plan.store_path):
            raise
        predecessor = owner.watch(plan.store_path)
        if predecessor is not None and not predecessor.wait(_PREDECESSOR_TIMEOUT_S):
            raise StoreInUse(
                f"the store {plan.store_path} is not mounted here, but process {predecessor.pid} has it: "
                "it saves, or serves the mount in another mount namespace, a container for one. "
                f"End it there, or end it for all: kill {predecessor.pid}"
            ) from None
    return attempt()


def _is_ending(holder: owner.Owner | None, store_path: str) -> bool:
    """Whether the mount of an owner is already gone (fusermount3 -u a moment ago), while it still saves."""
    if holder is None:
        return True  # it gave the store free just now
    return holder.mountpoint is not None and not any(
        entry.is_ours and entry.source == store_path for entry in mounts.mounted()
    )


def _run_loop(
    plan: MountPlan,
    stop: StopRequest,
    starter: Starter,
    notes: list[str],
    operations: Operations,
    idle: IdleWatch | None,
) -> BaseException | None:
    """Run the event loop until the mount has ended; returns what broke it, if anything."""
    try:
        trio.run(_serve_until_end, plan, stop, starter, notes, operations, idle)
    except BaseException as error:  # noqa: BLE001  drafts have to be saved whatever happened
        return error
    return None


async def _serve_until_end(
    plan: MountPlan,
    stop: StopRequest,
    starter: Starter,
    notes: list[str],
    operations: Operations,
    idle: IdleWatch | None,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer_requests, nursery.cancel_scope)
        # The first request is our own: when it is answered, so will be everybody's. From a thread, because
        # this loop has to answer it.
        await trio.to_thread.run_sync(os.stat, plan.mountpoint, abandon_on_cancel=True)
        session.raise_read_ahead(plan.mountpoint)
        mode = "read-only " if plan.read_only else ""
        log.info("mounted %s %son %s, process %d", plan.store_path, mode, plan.mountpoint, os.getpid())
        # What is alive now stays alive; the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        starter.ready(notes)
        if idle is not None:
            nursery.start_soon(_end_when_idle, idle, plan.mountpoint)
        await stop.wait()
        log.info("%s: ending the mount on %s", stop.name, plan.mountpoint)
        await _end_mount(plan, operations)


async def _end_when_idle(idle: IdleWatch, mountpoint: str) -> None:
    if await idle.end_when_idle(mountpoint):
        pyfuse3.terminate()


async def _answer_requests(everything_else: trio.CancelScope) -> None:
    """pyfuse3's loop. It returns when the mount is gone and every request has been answered."""
    await pyfuse3.main(_MIN_WORKERS, _MAX_WORKERS)
    everything_else.cancel()


async def _end_mount(plan: MountPlan, operations: Operations) -> None:
    """Unmount while the loop still answers, so that the kernel can hand over what it caches.

    Where programs keep the mount busy, their data is written back first and the loop ended under them:
    from then on they get errors, and what they had written until the signal is saved. Those in another
    mount namespace do not keep it busy here, so what is open is written back before.
    """
    try:
        with trio.move_on_after(_UNMOUNT_TIMEOUT_S):
            if operations.has_open_files():
                await trio.to_thread.run_sync(session.write_back, plan.mountpoint, abandon_on_cancel=True)
            if await trio.to_thread.run_sync(_unmount_or_write_back, plan, abandon_on_cancel=True):
                # The kernel tells the loop, which ends and cancels us. It does not where a copy of this
                # mount lives on in another mount namespace.
                await trio.sleep(_LOOP_END_TIMEOUT_S)
    except OSError as error:
        log.warning("the kernel could not hand over all it caches: %s", error)
    pyfuse3.terminate()


def _unmount_or_write_back(plan: MountPlan) -> bool:
    """Unmount, or, where that is refused, get everything the kernel has. Returns whether it is unmounted."""
    try:
        mounts.unmount(plan.mountpoint)
    except OSError as error:
        if error.errno == errno.EBUSY:
            # A folder of the store may be mounted on, and a program be started from it.
            users = mounts.users(plan.mountpoint) if plan.log_names else []
            log.info("%s is in use by %s", plan.mountpoint, ", ".join(users) or "programs")
        else:
            log.warning("%s could not be unmounted: %s", plan.mountpoint, error.strerror)
        session.write_back(plan.mountpoint)
        return False
    return True


class _Complaints(logging.Handler):
    """Whether anybody logged an error: saving a draft reports its failure there and goes on to the next."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.any = False

    def emit(self, record: logging.LogRecord) -> None:
        self.any = True


def _save_everything(operations: Operations, store: Store) -> bool:
    """Save open drafts, then the last barrier. One failing must not keep the next from its try."""
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)

    for step, what in (
        (operations.close, "open drafts"),
        (operations.write_directory_times, "the times of directories"),
        (store.close, "the store"),
    ):
        try:
            step()
        except (PixstoreError, OSError) as error:
            log.error("%s could not be saved: %s", what, error)
        except Exception:
            log.exception("%s could not be saved", what)
    return not complaints.any
