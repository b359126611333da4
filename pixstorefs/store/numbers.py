"""The numbers a store hands out: inodes, cookies, version ids, tokens. None is ever used twice.

They count in memory; the index keeps an upper bound, raised a block at a time, so that handing one out costs
no write. The bound is raised half a block ahead, and so is durable, one barrier later, long before the
numbers above the old one are used.
"""

from dataclasses import replace

from pixstorefs.index.rows import State

BLOCK = 1 << 20


class Numbers:
    """Hands out numbers. `state` is the row of the index; numbers below its bounds may have been used."""

    def __init__(self, state: State) -> None:
        self._next_ino = state.next_ino
        self._next_cookie = state.next_cookie
        self._next_version_id = state.next_version_id
        self._next_token = state.next_token

    def ino(self) -> int:
        """A new inode number."""
        self._next_ino += 1
        return self._next_ino - 1

    def cookie(self) -> int:
        """A new directory cookie."""
        self._next_cookie += 1
        return self._next_cookie - 1

    def version_id(self) -> int:
        """A new version id."""
        self._next_version_id += 1
        return self._next_version_id - 1

    def token(self) -> int:
        """A new token."""
        self._next_token += 1
        return self._next_token - 1

    @property
    def last_token(self) -> int:
        """The newest token handed out."""
        return self._next_token - 1

    @property
    def next_version_id(self) -> int:
        """No object has this id or a higher one."""
        return self._next_version_id

    def bounded(self, state: State) -> State:
        """`state` with bounds that leave at least half a block to every number."""
        wanted = self.exact(state)
        for name in ("next_ino", "next_cookie", "next_version_id", "next_token"):
            used, bound = getattr(wanted, name), getattr(state, name)
            setattr(wanted, name, bound if bound - used > BLOCK // 2 else used + BLOCK)
        return wanted

    def exact(self, state: State) -> State:
        """`state` with the exact numbers, for a clean close."""
        return replace(
            state,
            next_ino=self._next_ino,
            next_cookie=self._next_cookie,
            next_version_id=self._next_version_id,
            next_token=self._next_token,
        )
