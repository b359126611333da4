"""Access control lists: their binary form, what they do to a mode and a mode to them."""

import struct

import pytest

from pixstorefs.fs.acl import ACCESS, DEFAULT, Acl, inherited

NO_ID = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
Line = tuple[int, int, int]


def _packed(*entries: Line, version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


MINIMAL = ((USER_OBJ, 6, NO_ID), (GROUP_OBJ, 4, NO_ID), (OTHER, 4, NO_ID))
NAMED = (
    (USER_OBJ, 7, NO_ID),
    (USER, 6, 1000),
    (USER, 0, 1001),
    (GROUP_OBJ, 5, NO_ID),
    (GROUP, 7, 100),
    (MASK, 6, NO_ID),
    (OTHER, 1, NO_ID),
)


@pytest.mark.parametrize("entries", [MINIMAL, NAMED], ids=["minimal", "named"])
def test_a_list_is_kept_byte_for_byte(entries: tuple[Line, ...]) -> None:
    """What was read is written again."""
    assert Acl.parse(_packed(*entries)).pack() == _packed(*entries)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x02\0\0",
        _packed(),
        _packed(*MINIMAL)[:-1],
        _packed(*MINIMAL) + b"\0",
        _packed(*MINIMAL, version=1),
        _packed(*MINIMAL[:2]),
        _packed(*reversed(MINIMAL)),
        _packed(MINIMAL[0], *MINIMAL),
        _packed((USER_OBJ, 8, NO_ID), *MINIMAL[1:]),
        _packed((64, 4, NO_ID), *MINIMAL),
        _packed(MINIMAL[0], (USER, 4, 1000), *MINIMAL[1:]),
        _packed(MINIMAL[0], (USER, 4, NO_ID), MINIMAL[1], (MASK, 4, NO_ID), MINIMAL[2]),
        _packed(*MINIMAL[:2], (MASK, 4, NO_ID), (MASK, 4, NO_ID), MINIMAL[2]),
    ],
    ids=[
        "nothing",
        "half a version",
        "no entry",
        "a byte short",
        "a byte more",
        "old version",
        "no other",
        "order",
        "two owners",
        "permission bits",
        "tag",
        "a named user without a mask",
        "a named user without id",
        "two masks",
    ],
)
def test_what_is_no_list_is_refused(value: bytes) -> None:
    """The same rules as posix_acl_valid() of Linux."""
    with pytest.raises(OSError, match="Invalid argument"):
        Acl.parse(value)


def test_the_mask_stands_for_the_group_in_the_mode() -> None:
    """With a mask the group bits of the mode are the mask's, without one the group's."""
    assert Acl.parse(_packed(*NAMED)).permission_bits == 0o761
    assert Acl.parse(_packed(*MINIMAL)).permission_bits == 0o644
    changed = Acl.parse(_packed(*NAMED)).with_mode(0o107540)
    assert changed.pack() == _packed((USER_OBJ, 5, NO_ID), *NAMED[1:5], (MASK, 4, NO_ID), (OTHER, 0, NO_ID))
    assert Acl.parse(_packed(*MINIMAL)).with_mode(0o750).permission_bits == 0o750


def test_what_is_new_gets_what_both_the_list_above_and_its_maker_allow() -> None:
    """Modes and default lists bound each other; directories hand the default list on."""
    default = _packed(*NAMED)
    mode, lists = inherited(default, 0o102640, directory=False)
    assert mode == 0o102640
    assert lists == {ACCESS: _packed((USER_OBJ, 6, NO_ID), *NAMED[1:5], (MASK, 4, NO_ID), (OTHER, 0, NO_ID))}
    assert inherited(default, 0o40777, directory=True) == (0o40761, {ACCESS: default, DEFAULT: default})
    assert inherited(_packed(*MINIMAL), 0o100777, directory=False) == (0o100644, {})
