"""Numbers: none is given out twice, whether the store was closed or killed."""

from dataclasses import astuple

import pytest

from pixstorefs.index.rows import State
from pixstorefs.store.numbers import BLOCK, Numbers

KINDS = ["ino", "cookie", "version_id", "token"]
FRESH = State(2, 3, 1, 1, 0, 1, clean=True)


def take(numbers: Numbers, kind: str) -> int:
    number = getattr(numbers, kind)()
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("kind", KINDS)
def test_counts_upward(kind):
    """The first number is the one in the state, and each is one more than the last."""
    numbers = Numbers(FRESH)
    first = getattr(FRESH, f"next_{kind}")
    assert [take(numbers, kind) for _ in range(4)] == list(range(first, first + 4))


@pytest.mark.parametrize("kind", KINDS)
def test_clean_close_wastes_none(kind):
    """After a clean close the next number is the next one."""
    numbers = Numbers(FRESH)
    last = [take(numbers, kind) for _ in range(5)][-1]
    assert take(Numbers(numbers.exact(FRESH)), kind) == last + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [0, 1, BLOCK // 2, BLOCK // 2 + 1, BLOCK - 1])
def test_never_twice_after_a_kill(kind, used):
    """Whatever was handed out since the bound was written, a killed store goes on above it."""
    numbers = Numbers(FRESH)
    state = numbers.bounded(FRESH)
    handed_out = [take(numbers, kind) for _ in range(used)]
    reopened = Numbers(state)
    assert take(reopened, kind) > max(handed_out, default=0)


def test_bound_is_raised_half_a_block_ahead():
    """A bound stays as it is while half a block is left, and is a whole block ahead after that."""
    numbers = Numbers(FRESH)
    state = numbers.bounded(FRESH)
    assert state.next_token == FRESH.next_token + BLOCK
    for _ in range(BLOCK // 2 - 1):
        numbers.token()
    assert numbers.bounded(state).next_token == state.next_token
    numbers.token()
    assert numbers.bounded(state).next_token == numbers.last_token + 1 + BLOCK


def test_last_token_and_next_version():
    """Nothing that was given out is above the last token or at the next version id."""
    numbers = Numbers(FRESH)
    assert numbers.last_token == 0
    assert numbers.token() == numbers.last_token == 1
    assert numbers.next_version_id == numbers.version_id() == 1
    assert numbers.next_version_id == 2


def test_states_are_not_changed():
    """Bounds and exact numbers come as new states."""
    numbers = Numbers(FRESH)
    numbers.token()
    numbers.bounded(FRESH)
    numbers.exact(FRESH)
    assert astuple(FRESH) == (2, 3, 1, 1, 0, 1, True)
