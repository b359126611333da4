"""Is this index the newest one? What can be proven of it before anybody believes it.

An index that opens may still be an old one: put back by a sync tool or a person, or cut short because its log
is damaged or missing. Whoever believes it takes what was saved since for drafts, and images that it does not
know for deleted. Three witnesses tell: the record of the last barrier, the copies of the index, and the
frames of the log behind the last one that SQLite reads. A witness that is missing proves nothing, and so does
one that is older than the index.
"""

from dataclasses import dataclass

from pixstorefs.disk.folder import Folder
from pixstorefs.errors import CorruptStore
from pixstorefs.index.log import Position, Run, newest_run
from pixstorefs.index.rows import Index, State
from pixstorefs.trust.barrier_record import Claim, read_claim
from pixstorefs.trust.copies import Copy, newest_copy


@dataclass(frozen=True, slots=True)
class Proof:
    """What the witnesses say of an index. `doubt`: why it is not the newest one, None where nothing says so.

    `acknowledged_token`: saves and deletes up to it were called durable, and the index has them all; None
    where there is no record. `unread_frames`: frames of the newest run of the log that SQLite does not read:
    a transaction that a crash cut off, or a part of the log that is damaged. `owner_may_live`: a lock was
    broken, and what looks like a draft may be saved by its owner all the same.
    """

    doubt: str | None
    acknowledged_token: int | None
    unread_frames: int
    owner_may_live: bool = False

    @property
    def knows_every_object(self) -> bool:
        """Whether an object without a row is one of a draft that was never saved."""
        proven = self.doubt is None and self.acknowledged_token is not None
        return proven and not self.unread_frames and not self.owner_may_live


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What is known of the newest index, apart from the index itself."""

    claim: Claim | None
    copy: Copy | None
    run: Run

    @property
    def log_is_older(self) -> bool:
        """Whether the log ends before what the record tells of: an old file in the place of a newer one."""
        claimed = self.claim.log if self.claim else Position()
        if not claimed.salts or not self.run.salts or self.run.salts == claimed.salts:
            return False
        return not self.run.position.is_newer_run(claimed)

    @property
    def newest_from_token(self) -> int | None:
        """From which durable token on what can be read of the index is the newest state; None: nothing tells.

        But for pages that are lost, and if the log was read up to its end.
        """
        return self.claim.noted_token if self.claim and self._log_reaches_far_enough(self.claim) else None

    def _log_reaches_far_enough(self, claim: Claim) -> bool:
        claimed = claim.log
        if not claimed.salts:
            return True
        if self.run.salts == claimed.salts:
            return len(self.run.frames) >= claimed.frames
        return bool(self.run.salts) and not self.log_is_older


def witnesses(store: Folder, index_path: str, index_key: bytes, store_id: bytes) -> Witnesses:
    """Read the witnesses, before SQLite or anybody else changes the log. Raises OSError."""
    return Witnesses(
        read_claim(store, index_key, store_id),
        newest_copy(store.reachable_path() or store.path, index_key, store_id),
        newest_run(index_path + "-wal"),
    )


def prove(index: Index, found: Witnesses, *, has_log: bool = True, owner_may_live: bool = False) -> Proof:
    """Hold an index that was just opened against its witnesses; `owner_may_live`: see `Proof`.

    Raises CorruptStore.

    `has_log`: its log counts, and nobody has written to it since the witnesses were read.
    """
    state = index.state()
    frames = index.readable_frames() if has_log else 0
    doubt = _doubt_of_log(found, frames) if has_log else None
    doubt = doubt or _doubt_of_rows(found.claim, state) or _doubt_of_copy(found.copy, state)
    unread = max(len(found.run.frames) - frames, 0) if has_log else 0
    return Proof(doubt, found.claim.token if found.claim else None, unread, owner_may_live)


def require(proof: Proof, store_path: str) -> None:
    """Raises CorruptStore where the index is not the newest one."""
    if proof.doubt is None:
        return
    raise CorruptStore(
        f"the index of the store {store_path} is older than its images: {proof.doubt}. It may be from a "
        "backup, or its log was damaged or left out of a copy. Nothing was changed. `pixstorefs check "
        "--repair` brings back what the copies of the index and the rest of the log know; "
        "`pixstorefs mount --read-only` shows it without changing anything"
    )


def _doubt_of_log(found: Witnesses, readable_frames: int) -> str | None:
    if found.run.is_foreign:
        return "its log is no log: it holds something else"
    if found.claim is None:
        # What was exchanged for the log may be the record. SQLite reads nothing of a log without a header.
        headless = found.run.frames and not found.run.has_header
        return "its log is damaged at its beginning, or no log" if headless else None
    claimed = found.claim.log
    if not claimed.salts:
        return None
    if not found.run.salts:
        return f"its log, which had {claimed.frames} pages, is missing, empty, or no log"
    if not found.run.has_header:
        return f"its log, which had {claimed.frames} pages, is damaged at its beginning"
    if found.run.salts == claimed.salts:
        if readable_frames >= claimed.frames:
            return None
        return f"its log can be read up to page {readable_frames} only, of {claimed.frames} at least"
    # One that was begun anew since: all that is claimed went into the database before.
    return "its log is an older one" if found.log_is_older else None


def _doubt_of_rows(claim: Claim | None, state: State) -> str | None:
    if claim is None:
        return None
    if state.durable_token < claim.noted_token:
        return f"it ends at change {state.durable_token}, and change {claim.noted_token} was durable"
    numbers = (state.next_ino, state.next_cookie, state.next_version_id, state.next_token)
    if claim.numbers is not None and any(has < had for has, had in zip(numbers, claim.numbers, strict=True)):
        return "it is not the one that the last clean close left"
    return None


def _doubt_of_copy(copy: Copy | None, state: State) -> str | None:
    # Before a copy gets its name, the log that it was taken from is synced: an index is never behind it.
    if copy is None or copy.state.durable_token <= state.durable_token:
        return None
    return (
        f"it ends at change {state.durable_token}, and its own copy {copy.path} has change "
        f"{copy.state.durable_token}"
    )
