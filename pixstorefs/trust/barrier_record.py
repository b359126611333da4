"""The barrier record: what is known to be on the disk, kept outside the index and its log.

SQLite reads a log up to the first frame that does not fit and calls the rest unwritten. That is right after
a power loss, and wrong for a log that was damaged, replaced or deleted: rows that an fsync vouched for are
gone then, and the index itself tells nothing. So every barrier writes down how far index and log have to
reach, after both were synced. What they do not reach any more was lost, not unwritten.

The record is not synced by itself: an older one claims less, and nothing that is false. Only who empties the
log syncs it first. There are two slots, written in turn, each authenticated: a write that is cut off leaves
the other one.
"""

import errno
import hmac
import logging
import os
import struct
import threading
from dataclasses import dataclass, replace

from pixstorefs.disk.files import FULL_ERRNOS, fill_with_zeros
from pixstorefs.disk.folder import Folder, OddFile
from pixstorefs.index.log import Position
from pixstorefs.index.rows import State
from pixstorefs.keys import keyring

log = logging.getLogger(__name__)

RECORD_FILE = "barrier"
_PURPOSE = "barrier"
_SLOT_SIZE_BYTES = 4096
_SLOTS = 2
_SALTS_SIZE_BYTES = 8
# Magic, sequence; durable token, noted token, salts and frames of the log; clean, and the numbers then.
_CLAIM = struct.Struct(">8sQ QQ8sQ B 4Q")
_MAGIC = b"PXSB\x01\x00\x00\x00"
_TAG_SIZE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """What is on the disk. `token`: every save and delete up to it. `noted_token`: the newest state row's.

    `log`: how far the log has to reach; no place where all of it is in the database. `numbers`: after a clean
    close the next inode number, cookie, version id and token; else None. `withdrawals`: how often the record
    had taken back what it said of the log when the claim was made; it is not written.
    """

    token: int
    noted_token: int
    log: Position
    numbers: tuple[int, int, int, int] | None = None
    withdrawals: int = 0


def clean_claim(state: State) -> Claim:
    """What is on the disk after a clean close that left this state."""
    numbers = (state.next_ino, state.next_cookie, state.next_version_id, state.next_token)
    return Claim(state.durable_token, state.durable_token, Position(), numbers)


class BarrierRecord:
    """The barrier record of one open store. Thread-safe: barriers take turns, who empties the log does not.

    A claim is made, then everything is synced, and then it is written. If the log was emptied in between, the
    claim says nothing of it any more: what it knew is in the database, and the next log is another one.
    """

    def __init__(self, store: Folder, index_key: bytes, store_id: bytes) -> None:
        self._store = store
        self._key = _key(index_key, store_id)
        self._fd = -1
        self._sequence = 0
        self._claim: Claim | None = None
        self._withdrawals = 0
        self._lock = threading.RLock()

    @property
    def withdrawals(self) -> int:
        """How often the log was withdrawn, for a new claim (with the lock held, as to empty the log)."""
        return self._withdrawals

    def open(self) -> None:
        """Open the record, making it where it is missing. Never fails: without one less can be proven."""
        if self._fd >= 0:
            return
        try:
            self._open()
        except (OSError, OddFile) as error:
            log.warning("no record of barriers is kept, so that a damaged log is not noticed: %s", error)
            self.close()

    def _open(self) -> None:
        self._fd = self._store.open_own(RECORD_FILE, os.O_RDWR | os.O_CREAT)
        if os.fstat(self._fd).st_size < _SLOTS * _SLOT_SIZE_BYTES:
            fill_with_zeros(self._fd, _SLOTS * _SLOT_SIZE_BYTES)
            os.fsync(self._fd)
            self._store.sync()
        self._sequence, self._claim = _newest(self._fd, self._key)

    def write(self, claim: Claim, *, synced: bool = False) -> bool:
        """Replace what is claimed, `synced` if need be. Returns whether nothing older is claimed any more.

        Where a full disk has no room (btrfs writes no block twice) the older claim stays: it is less, and
        still true. Otherwise a record that cannot be written is removed: what it claims may be false soon.
        """
        with self._lock:
            if claim.withdrawals < self._withdrawals:
                claim = replace(claim, log=Position())
            return self._write(claim, synced=synced)

    def _write(self, claim: Claim, *, synced: bool) -> bool:
        if self._fd < 0:
            return self._store.file_status(RECORD_FILE) is None
        try:
            content = self._packed(claim)
            place = (self._sequence + 1) % _SLOTS * _SLOT_SIZE_BYTES
            if os.pwrite(self._fd, content, place) != len(content):
                raise OSError(errno.EIO, "the write was cut short", RECORD_FILE)
            self._sequence += 1
            self._claim = claim
            if synced:
                os.fdatasync(self._fd)
        except OSError as error:
            full = error.errno in FULL_ERRNOS
            log.log(
                logging.INFO if full else logging.WARNING,
                "the record of barriers cannot be written: %s",
                error,
            )
            if full and not synced:
                return False
            self.close()
            return self._removed()
        return True

    def withdraw_log(self) -> bool:
        """Claim nothing of the log any more, durably; whether that is so. For who is about to empty it."""
        with self._lock:
            self._withdrawals += 1
            claim = self._claim
            return claim is None or self.write(replace(claim, log=Position()), synced=True)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _removed(self) -> bool:
        try:
            remove_record(self._store)
        except OSError:
            return False
        return True

    def _packed(self, claim: Claim) -> bytes:
        content = _CLAIM.pack(
            _MAGIC,
            self._sequence + 1,
            claim.token,
            claim.noted_token,
            claim.log.salts.ljust(_SALTS_SIZE_BYTES, b"\0"),
            claim.log.frames,
            claim.numbers is not None,
            *(claim.numbers or (0, 0, 0, 0)),
        )
        return content + _tag(self._key, content)


def remove_record(store: Folder) -> None:
    """Claim nothing any more: the index was replaced by another one. Raises OSError."""
    store.unlink_if_there(RECORD_FILE)
    store.sync()


def read_claim(store: Folder, index_key: bytes, store_id: bytes) -> Claim | None:
    """What the record of a store claims, None where there is none that can be read. Raises OSError."""
    try:
        fd, _ = store.open_file(RECORD_FILE)
    except (FileNotFoundError, OddFile) as error:
        log.info("there is no record of the last barrier: %s", error)
        return None
    try:
        return _newest(fd, _key(index_key, store_id))[1]
    finally:
        os.close(fd)


def _newest(fd: int, key: bytes) -> tuple[int, Claim | None]:
    """Sequence and claim of the newest slot; 0 and None where both are empty or damaged."""
    slots = (_unpacked(os.pread(fd, _SLOT_SIZE_BYTES, n * _SLOT_SIZE_BYTES), key) for n in range(_SLOTS))
    return max(slots, key=lambda slot: slot[0])


def _unpacked(slot: bytes, key: bytes) -> tuple[int, Claim | None]:
    content, tag = slot[: _CLAIM.size], slot[_CLAIM.size : _CLAIM.size + _TAG_SIZE_BYTES]
    if len(content) < _CLAIM.size or not hmac.compare_digest(tag, _tag(key, content)):
        return 0, None
    magic, sequence, token, noted_token, salts, frames, clean, *numbers = _CLAIM.unpack(content)
    if magic != _MAGIC:
        return 0, None
    position = Position(salts, frames) if frames else Position()
    ino, cookie, version_id, next_token = numbers
    return sequence, Claim(
        token, noted_token, position, (ino, cookie, version_id, next_token) if clean else None
    )


def _key(index_key: bytes, store_id: bytes) -> bytes:
    # Not the index key itself, which encrypts.
    return keyring.derive(index_key, store_id, _PURPOSE)


def _tag(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")
