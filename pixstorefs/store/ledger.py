"""The ledger: what is durable, as the row `state` of the index and the barrier keep it.

Called with the store's lock held.
"""

from collections.abc import Callable
from dataclasses import replace

from pixstorefs.index.displaced import settle
from pixstorefs.index.rows import Index, State
from pixstorefs.records import Inode
from pixstorefs.store.allocation import Allocator
from pixstorefs.store.numbers import Numbers
from pixstorefs.store.transactions import Transactions


class Ledger:
    """What barrier and store have to know from each other."""

    def __init__(
        self,
        transactions: Transactions,
        numbers: Numbers,
        allocator: Allocator,
        opened: State,
        passed: Callable[[int], None],
    ) -> None:
        """`opened` is the state the index was opened with; `passed` is told the token of each barrier."""
        self._transactions = transactions
        self._index = transactions.index
        self._numbers = numbers
        self._allocator = allocator
        self._state = opened
        self._passed = passed
        # The durable token of the newest state row that is committed.
        self._noted_token = opened.durable_token

    def begin(self) -> None:
        """The store is written to from now on: until the clean end it is to be recovered."""
        self._state = replace(self._numbers.bounded(self._state), clean=False)
        self._put_state()

    def end(self) -> None:
        """Everything is durable, and the next opening has nothing to recover."""
        self._state = replace(self._numbers.exact(self._state), clean=True)
        self._put_state()

    def mark(self) -> tuple[int, int]:
        """What a barrier that begins now covers: the newest token and the object floor."""
        return self._numbers.last_token, self._allocator.object_floor()

    @property
    def noted_token(self) -> int:
        """The durable token that the index itself tells of, once its log is synced."""
        return self._noted_token

    @property
    def state(self) -> State:
        """The state row as it is, or will be with the next barrier."""
        return self._state

    def durable(self, token: int) -> None:
        """Everything up to `token` is durable."""
        # Noted on the disk with the unlinking; until then recovery verifies more than it has to.
        self._state = replace(self._state, durable_token=max(token, self._state.durable_token))

    def retired(self, token: int) -> list[int]:
        """Ids of versions that nobody needs once everything up to `token` is durable."""
        if self._index.displaced(token):
            self._transactions.with_reserve(lambda: self._settle(token))
        return self._index.retired(token)

    def leftovers(self) -> list[int]:
        """Ids of objects that never had a row and could not be removed so far."""
        return self._allocator.leftovers()

    def passed(self, token: int, floor: int, *, unlinked: bool) -> None:
        """What was retired up to `token` is `unlinked`, if nobody held it: note the barrier."""
        state = replace(
            self._numbers.bounded(self._state),
            # make_room may have recorded a later barrier than the one that ends now.
            durable_token=max(token, self._state.durable_token),
            object_floor=max(floor, self._state.object_floor),
        )

        def note() -> None:
            with self._index.transaction():
                if unlinked:
                    self._index.forget_retired(token)
                self._index.put_state(state)

        self._transactions.with_reserve(note)
        self._state = state
        self._noted_token = state.durable_token
        self._transactions.reserve.take()
        self._passed(token)

    def may_be_lost(self, index: Index, inode: Inode) -> bool:
        """Whether a power loss now could take the content of an image: no barrier has covered it yet."""
        version = index.version(inode.version_id) if inode.version_id is not None else None
        return version is not None and bool(version.runs) and version.token > self._state.durable_token

    def _settle(self, token: int) -> None:
        with self._index.transaction():
            settle(self._index, token)

    def _put_state(self) -> None:
        def put() -> None:
            with self._index.transaction():
                self._index.put_state(self._state)

        self._transactions.with_reserve(put)
        self._noted_token = self._state.durable_token
