"""Recovery codes: passphrases that we choose, to be kept on paper and typed in when all else is lost.

160 random bits as 32 digits of Crockford's base 32 (https://www.crockford.com/base32.html: without I, L, O
and U) in groups of four. To the format a code is a passphrase like any other, these 39 characters. A kind of
its own would save an argon2id that so many random bits do not need, but every reader of format 1 would have
to refuse the whole store for it. What paper and typing do to a code is undone here instead.
"""

import base64
from collections.abc import Callable

from pixstorefs.keys.secrets import Secret

_RANDOM_BYTES = 20
_GROUP_DIGITS = 4
_CROCKFORD = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FROM_RFC_4648 = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", _CROCKFORD)
_LOOK_ALIKES = bytes.maketrans(b"OIL", b"011")
_DIGITS = _RANDOM_BYTES * 8 // 5


def new_code(random: Callable[[int], bytes]) -> str:
    """A new code, as it is shown and as it is the passphrase of its slot; `random(20)` gives its bits."""
    return _grouped(base64.b32encode(random(_RANDOM_BYTES)).translate(_FROM_RFC_4648)).decode("ascii")


def as_typed(secret: Secret) -> Secret | None:
    """The code that somebody meant who typed it in other groups, small letters or look-alikes; else None."""
    if secret.kind != "passphrase":
        return None
    digits = secret.material.upper().translate(_LOOK_ALIKES, b" -")
    if len(digits) != _DIGITS or set(digits) - set(_CROCKFORD):
        return None
    meant = Secret("passphrase", _grouped(digits))
    return meant if meant != secret else None


def _grouped(digits: bytes) -> bytes:
    groups = [digits[start : start + _GROUP_DIGITS] for start in range(0, len(digits), _GROUP_DIGITS)]
    return b"-".join(groups)
