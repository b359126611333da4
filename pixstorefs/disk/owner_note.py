"""The owner note: who owns a store, told to machines that no lock of the kernel reaches.

flock(2) keeps out whoever uses the same kernel and a file system that has its locks from it. A network file
system may take it for one machine alone (sshfs, SMB, NFS without locks), and then two machines would write to
one index. So the owner also makes a file, by O_EXCL, which all of them do for one machine only. The file goes
when the store is given free. One that is still there names a machine, a process and its last sign of life.

Nobody takes a store from an owner that may be alive, except on the word of a person (`break_lock`). An owner
looks at its note before it writes, and writes nothing more once the note is not its own. Who breaks a lock
waits for longer than an owner writes without looking. Rejected: a note that expires by itself. The clocks of
two machines differ, and a machine that was cut off for an hour has not given its images up.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import pwd
import secrets
import socket
import time
from dataclasses import asdict, dataclass, fields, replace

from pixstorefs.disk.files import write_fully
from pixstorefs.disk.folder import Folder
from pixstorefs.errors import StoreInUse
from pixstorefs.printable import printable

OWNER_FILE = "owner"
# There from the moment a lock is broken until the store is opened: see `trust.fence`.
FENCE_FILE = "fence"
# The owner tells that often that it is alive.
HEARTBEAT_S = 10.0
# An owner that has not looked for so long looks before it writes; who breaks its lock waits for longer.
LOOK_AGAIN_S = 2.0
BREAK_WAIT_S = 10.0
# So long nobody heard from an owner that this machine had before it was started anew.
_SILENCE_S = 2.5 * HEARTBEAT_S
# So long a network file system may believe what it knew of a file before another machine changed or removed
# it (sshfs: 20 s).
_CACHED_S = 30.0
# Of the last owner stays an empty file with this name and its identity. No machine can have an outdated view
# of a name that it has never seen, as it may of a file's content.
_WAS = "owner-was-"
_POLL_S = 0.5
# Always as long: a network file system may believe for a while that the file is as long as it was.
_SIZE_BYTES = 2048
_LIMIT_BYTES = 1 << 16

# f_type of statfs(2), of file systems that only one machine has mounted: a flock(2) keeps everybody out.
_OF_ONE_MACHINE = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
        0x2FC12FC1,  # ZFS
        0xCA451A4E,  # bcachefs
        0xF2F52010,  # F2FS
        0x4D44,  # FAT
        0x2011BAB0,  # exFAT
        0x7366746E,  # NTFS (ntfs3)
        0x3434,  # NILFS2
        0x3153464A,  # JFS
        0x52654973,  # ReiserFS
        0xF15F,  # eCryptfs
    }
)

log = logging.getLogger(__name__)

_sleep = time.sleep
_libc = ctypes.CDLL(None, use_errno=True)


class OwnedElsewhere(StoreInUse):
    """The lock is free, and the note tells of another owner: nobody here can wait for its end."""


class DamagedNote(Exception):
    """The note cannot be read: it is being written, or whoever wrote it died meanwhile."""


@dataclass(frozen=True, slots=True)
class OwnerNote:
    """One owner of a store. Times are seconds of its own clock (time(2)).

    `started`: when its process began, in clock ticks after the boot (proc_pid_stat(5)), because a pid is
    given to another process one day. `folder`: device and inode of the store's folder, as its kernel tells.
    """

    token: str
    machine: str
    host: str
    user: str
    boot: str
    pid_namespace: str
    pid: int
    started: int
    folder: str
    since_s: int
    alive_s: int

    @classmethod
    def of_us(cls, store: Folder) -> "OwnerNote":
        """A new note of this process."""
        status = os.fstat(store.fd)
        now_s = int(time.time())
        return cls(
            token=secrets.token_hex(16),
            machine=_machine(),
            host=socket.gethostname(),
            user=_user(),
            boot=_content("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            folder=f"{status.st_dev}:{status.st_ino}",
            since_s=now_s,
            alive_s=now_s,
        )

    @classmethod
    def from_json(cls, content: bytes) -> "OwnerNote":
        """Raises DamagedNote."""
        try:
            told = json.loads(content)
            note = cls(**{field.name: told[field.name] for field in fields(cls)})
        # RecursionError is for deep nesting.
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DamagedNote from None
        if not all(
            type(value) is field.type for field, value in zip(fields(cls), asdict(note).values(), strict=True)
        ):
            raise DamagedNote
        return note

    @property
    def identity(self) -> str:
        """Of the mount of the file system that this owner used: what it wrote, the next one there sees."""
        device = self.folder.partition(":")[0]
        return hashlib.sha256(f"{self.machine} {self.boot} {device}".encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """The content of the file."""
        return json.dumps(asdict(self)).encode().ljust(_SIZE_BYTES)

    def who(self) -> str:
        """For people: who it is, since when, and when there was a last sign of life."""
        since, alive = (_local_time(at_s) for at_s in (self.since_s, self.alive_s))
        return (
            f"by {printable(self.user)} on {printable(self.host)} (process {self.pid}) since {since}, "
            f"and gave a last sign of life at {alive} (by the clock there)"
        )


def take(store: Folder, *, break_lock: bool) -> OwnerNote:
    """Make this process the owner, by its note. The caller has the flock(2) of the store.

    `break_lock`: a person says that no other owner is alive. Raises StoreInUse, OddFile, OSError.
    """
    note = OwnerNote.of_us(store)
    broke = False
    before: set[str] = set()
    while not create(store, note):
        try:
            other = _read_if_whole(store)
        except FileNotFoundError:
            _wait_until_forgotten(store)
            continue
        if _may_be_alive(store, other, note):
            if not break_lock:
                raise _in_use(store, other)
            broke = True
            _raise_fence(store)
        _put_away(store, other)
        before.add(other.identity if other else "unknown")
    _settle(store, note, before, broke=broke)
    return note


def _settle(store: Folder, note: OwnerNote, before: set[str], *, broke: bool) -> None:
    """Wait until everybody sees who owns the store, and we what the owners before us wrote."""
    before = before | {name.removeprefix(_WAS) for name in store.names() if name.startswith(_WAS)}
    if broke:
        # An owner that lives looks before it writes, and has seen by then that it is none any more.
        _sleep(BREAK_WAIT_S)
    if before - {note.identity} and not flock_is_true(store):
        log.info("the store was last used from elsewhere: waiting %.0f s to see what was written", _CACHED_S)
        _sleep(_CACHED_S)
    if not _is_ours(store, note):
        raise _in_use(store, None)


def _wait_until_forgotten(store: Folder) -> None:
    """The note is gone, but not what a network file system remembers of its name. Raises StoreInUse."""
    for _ in range(round(_CACHED_S / _POLL_S)):
        _sleep(_POLL_S)
        # Not a question for the file, which would not be asked of the server either.
        if OWNER_FILE not in store.names():
            return
    raise _in_use(store, None)


def _is_ours(store: Folder, note: OwnerNote) -> bool:
    try:
        return read(store).token == note.token
    except (FileNotFoundError, DamagedNote):
        return False


def create(store: Folder, note: OwnerNote) -> bool:
    """Make the file, with this note in it; False if there is one. Raises OSError."""
    try:
        fd = store.create(OWNER_FILE)
    except FileExistsError:
        return False
    try:
        write_fully(fd, memoryview(note.to_json()), lambda: None)
    except BaseException:
        store.unlink_if_there(OWNER_FILE)
        raise
    finally:
        os.close(fd)
    return True


def read(store: Folder) -> OwnerNote:
    """Raises FileNotFoundError, DamagedNote, OddFile, OSError."""
    return OwnerNote.from_json(store.read(OWNER_FILE, _LIMIT_BYTES))


def tell_alive(store: Folder, note: OwnerNote) -> None:
    """Give a sign of life, if the note is still ours. Raises DamagedNote, OddFile, OSError."""
    fd = store.open_own(OWNER_FILE, os.O_RDWR)
    try:
        # Of what was just opened, not of what has the name by now: nobody else's note is written over.
        if OwnerNote.from_json(os.pread(fd, _LIMIT_BYTES, 0)).token == note.token:
            os.pwrite(fd, replace(note, alive_s=int(time.time())).to_json(), 0)
    finally:
        os.close(fd)


def give_up(store: Folder, note: OwnerNote) -> None:
    """Remove the note, if it is still ours; an empty file tells who was the last owner. Raises OSError."""
    if not _is_ours(store, note):
        return
    was = _WAS + note.identity
    with contextlib.suppress(FileExistsError):
        os.close(store.create(was))
    for name in store.names():
        if name.startswith(_WAS) and name != was:
            store.unlink_if_there(name)
    store.unlink_if_there(OWNER_FILE)


def is_about_owners(name: str) -> bool:
    """Whether a file of this name in the folder of a store tells of owners, and of nothing else."""
    return name in (OWNER_FILE, FENCE_FILE) or name.startswith((_WAS, f"{OWNER_FILE}."))


def flock_is_true(store: Folder) -> bool:
    """Whether a flock(2) keeps out everybody who reaches this folder; False if nobody knows."""
    buffer = ctypes.create_string_buffer(512)  # struct statfs begins with f_type, a long
    if _libc.fstatfs(store.fd, buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value in _OF_ONE_MACHINE


def _may_be_alive(store: Folder, other: OwnerNote | None, here: OwnerNote) -> bool:
    """Whether the owner that a note names, None for a damaged one, may still have the store.

    May wait to see whether it gives a sign of life. Raises OddFile, OSError.
    """
    kernel_tells = flock_is_true(store)
    if other is None:
        return not kernel_tells
    if here.boot and (other.boot, other.pid_namespace) == (here.boot, here.pid_namespace):
        if _started(other.pid) != other.started:
            return False
        # A copy of a store in use has the note of the original; elsewhere the numbers mean nothing.
        return not kernel_tells or other.folder == here.folder
    if kernel_tells:
        return False
    if other.machine != here.machine or other.boot == here.boot:  # of another container
        return True
    # Machines that were cloned have one id. A sign of life tells them from one that was started anew.
    return _gives_sign(store, other)


def _gives_sign(store: Folder, other: OwnerNote) -> bool:
    for _ in range(round(_SILENCE_S / _POLL_S)):
        _sleep(_POLL_S)
        try:
            if read(store) != other:
                return True
        except FileNotFoundError:
            return False
        except DamagedNote:
            return True
    return False


def _read_if_whole(store: Folder) -> OwnerNote | None:
    """The note, None for a damaged one. Raises FileNotFoundError, OddFile, OSError."""
    try:
        return read(store)
    except DamagedNote:
        return None


def _raise_fence(store: Folder) -> None:
    try:
        os.close(store.create(FENCE_FILE))
    except FileExistsError:
        pass
    store.sync()


def _put_away(store: Folder, judged: OwnerNote | None) -> None:
    """Remove the note of an owner that is gone. By another name first: of two who do it, one has it."""
    name = f"{OWNER_FILE}.{secrets.token_hex(4)}"
    try:
        store.rename(OWNER_FILE, name)
    except FileNotFoundError:
        return
    try:
        got = OwnerNote.from_json(store.read(name, _LIMIT_BYTES))
    except DamagedNote:
        got = None
    if got is not None and (judged is None or got.token != judged.token):
        # Somebody took the store since it was looked at: that is the owner.
        if store.status(OWNER_FILE) is None:
            store.rename(name, OWNER_FILE)
        raise _in_use(store, got)
    store.unlink_if_there(name)


def _in_use(store: Folder, other: OwnerNote | None) -> OwnedElsewhere:
    who = (
        f"in use {other.who()}"
        if other is not None
        else "being taken by another process or machine at this moment, or one died while it did so"
    )
    return OwnedElsewhere(
        f"the store {store.path} is {who}. Nothing was changed. Unmount it there. If that machine is off, or "
        "has not got the store any more, take it over: pixstorefs mount --break-lock STORE MOUNTPOINT. An "
        "owner that is alive all the same loses what it has not written yet"
    )


def _machine() -> str:
    # machine-id(5): not to be shown to others as it is.
    return hashlib.sha256(b"pixstorefs\0" + _content("/etc/machine-id").encode()).hexdigest()[:32]


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _content(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _started(pid: int) -> int:
    """When a process began; -1 if there is none, or nothing left of it but its exit status."""
    # Its name, in parentheses, may hold any character. Behind it stand fields 3, its state, and on.
    state, *numbers = _content(f"/proc/{pid}/stat").rpartition(") ")[2].split() or [""]
    return int(numbers[18]) if len(numbers) > 18 and state not in ("Z", "X") else -1


def _local_time(at_s: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
