"""Sealing: how the plaintext of one version becomes segments of ciphertext, and back.

Format 1 (docs/format.md). A version has a random 256-bit key and a random 96-bit IV that no other
version shares. Segment i is AES-256-GCM (NIST SP 800-38D) under the nonce IV XOR i, the construction of
TLS 1.3 (RFC 8446 section 5.3), so no counter has to be stored and no nonce repeats under a key.
The associated data binds a segment to its object, store, image, place and to whether it is the last one:
swapped, moved, truncated or extended objects do not open.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pixstorefs.errors import InvalidInput
from pixstorefs.format import IV_SIZE_BYTES, KEY_SIZE_BYTES, SEGMENT_SIZE_LOG2

MAGIC = b"PXSO"
FORMAT = 1
CIPHER_AES_256_GCM = 1
_HEADER = struct.Struct(">4sBBBxQ")
_PLACE = struct.Struct(">QB")

Buffer = bytes | bytearray | memoryview


class BrokenSeal(Exception):
    """A tag does not match: the segment is damaged or does not belong here."""


@dataclass(frozen=True, slots=True)
class VersionKey:
    """What seals one version; never reused for another one."""

    version_id: int
    key: bytes
    iv: bytes

    def __repr__(self) -> str:
        return f"VersionKey(version_id={self.version_id})"


def flat(data: Buffer) -> memoryview:
    """All bytes of a buffer, in the order in which they lie in memory, whatever its items and dimensions.

    len() counts items, of four bytes perhaps, or rows. Until the view is released, a bytearray keeps its
    size. Raises InvalidInput: no buffer, or one whose bytes do not lie one behind the other.
    """
    try:
        view = memoryview(data)
        if view.nbytes == 0:
            return memoryview(b"")  # which cannot be cast
        return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InvalidInput(
            f"content is given as bytes, or as a buffer of them without gaps, and this is of the type "
            f"{type(data).__name__} ({error}). Nothing was saved"
        ) from None


def new_version_key(version_id: int, random: Callable[[int], bytes]) -> VersionKey:
    """A fresh key for one version; `random(n)` gives n unpredictable bytes (os.urandom)."""
    material = random(KEY_SIZE_BYTES + IV_SIZE_BYTES)
    return VersionKey(version_id, material[:KEY_SIZE_BYTES], material[KEY_SIZE_BYTES:])


def object_header(version_id: int) -> bytes:
    """The 16 bytes in front of every object: magic, format, cipher, log2(segment size), version id."""
    return _HEADER.pack(MAGIC, FORMAT, CIPHER_AES_256_GCM, SEGMENT_SIZE_LOG2, version_id)


class Sealer:
    """Seals and opens the segments of one version."""

    __slots__ = ("_binding", "_cipher", "_iv")

    def __init__(self, key: VersionKey, store_id: bytes, image_id: bytes) -> None:
        self._cipher = AESGCM(key.key)
        self._iv = int.from_bytes(key.iv, "big")
        self._binding = object_header(key.version_id) + store_id + image_id

    def seal_into(self, index: int, last: bool, plaintext: Buffer, out: memoryview) -> None:
        """Seal segment `index`; `out` takes len(plaintext) + 16 bytes."""
        nonce = (self._iv ^ index).to_bytes(IV_SIZE_BYTES, "big")
        self._cipher.encrypt_into(nonce, plaintext, self._binding + _PLACE.pack(index, last), out)

    def open_into(self, index: int, last: bool, sealed: Buffer, out: memoryview) -> None:
        """Open segment `index` into `out` (len(sealed) - 16 bytes).

        Raises BrokenSeal where the tag does not match; `out` then holds nothing that may be used.
        """
        nonce = (self._iv ^ index).to_bytes(IV_SIZE_BYTES, "big")
        try:
            self._cipher.decrypt_into(nonce, sealed, self._binding + _PLACE.pack(index, last), out)
        except InvalidTag:
            raise BrokenSeal from None
