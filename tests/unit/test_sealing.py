"""Sealing: what was sealed opens only where it belongs, and no number is given out twice."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixstorefs.format import HEADER_SIZE_BYTES, SEGMENT_SIZE_BYTES, TAG_SIZE_BYTES, sealed_size
from pixstorefs.objects.sealing import BrokenSeal, Sealer, VersionKey, new_version_key, object_header

DETERMINISTIC = settings(derandomize=True, database=None, deadline=None)
KEY = VersionKey(7, bytes(range(32)), bytes(range(12)))
STORE_ID, IMAGE_ID = b"s" * 16, b"i" * 16


def seal(sealer: Sealer, index: int, last: bool, plaintext: bytes) -> bytes:
    out = bytearray(len(plaintext) + TAG_SIZE_BYTES)
    sealer.seal_into(index, last, plaintext, memoryview(out))
    return bytes(out)


def opens(sealer: Sealer, index: int, last: bool, sealed: bytes) -> bytes | None:
    out = bytearray(len(sealed) - TAG_SIZE_BYTES)
    try:
        sealer.open_into(index, last, sealed, memoryview(out))
    except BrokenSeal:
        return None
    return bytes(out)


@pytest.mark.parametrize("size_bytes", [1, 2, 1000, SEGMENT_SIZE_BYTES])
def test_round_trip(size_bytes):
    """A sealed segment has 16 bytes more, shows nothing of the plaintext, and opens to it."""
    sealer = Sealer(KEY, STORE_ID, IMAGE_ID)
    plaintext = b"p" * size_bytes
    sealed = seal(sealer, 3, True, plaintext)
    assert len(sealed) == size_bytes + 16
    assert b"pppp" not in sealed
    assert opens(sealer, 3, True, sealed) == plaintext


def test_opens_only_in_its_place():
    """With any part of its place changed a segment does not open."""
    sealed = seal(Sealer(KEY, STORE_ID, IMAGE_ID), 1, False, b"content")
    keys = [
        KEY,
        VersionKey(8, KEY.key, KEY.iv),
        VersionKey(7, KEY.key[::-1], KEY.iv),
        VersionKey(7, KEY.key, KEY.iv[::-1]),
    ]
    places = itertools.product(keys, (STORE_ID, b"t" * 16), (IMAGE_ID, b"j" * 16), (1, 0, 2), (False, True))
    opened = [
        place
        for place in places
        if opens(Sealer(place[0], place[1], place[2]), place[3], place[4], sealed) is not None
    ]
    assert opened == [(KEY, STORE_ID, IMAGE_ID, 1, False)]


@given(position=st.integers(0, 115), bit=st.integers(0, 7))
@DETERMINISTIC
def test_every_bit_counts(position, bit):
    """One flipped bit anywhere in ciphertext or tag, and the segment does not open."""
    sealer = Sealer(KEY, STORE_ID, IMAGE_ID)
    sealed = bytearray(seal(sealer, 0, True, b"x" * 100))
    sealed[position] ^= 1 << bit
    assert opens(sealer, 0, True, bytes(sealed)) is None


def test_nonces_of_a_version_differ():
    """The nonces of all segments of a version differ, also where the counter meets the ones of the IV."""
    key = VersionKey(1, bytes(32), b"\xff" * 12)
    plaintext = bytes(16)
    sealed = {seal(Sealer(key, STORE_ID, IMAGE_ID), index, False, plaintext)[:16] for index in range(2000)}
    assert len(sealed) == 2000


def test_version_keys_come_from_the_random_source():
    """Key and IV are taken from the source and nothing else, and are not shown by repr."""
    source = itertools.count()
    key = new_version_key(5, lambda size: bytes(next(source) for _ in range(size)))
    assert (key.key, key.iv) == (bytes(range(32)), bytes(range(32, 44)))
    assert repr(key) == "VersionKey(version_id=5)"


def test_header():
    """A header is 16 bytes and differs from version to version only in the version id."""
    one, other = object_header(1), object_header(1 << 63)
    assert len(one) == HEADER_SIZE_BYTES == 16
    assert one[:8] == other[:8] == b"PXSO\x01\x01\x11\x00"
    assert int.from_bytes(other[8:]) == 1 << 63


@pytest.mark.parametrize(
    ("stored", "sealed"),
    [(0, 0), (1, 33), (131_072, 131_104), (131_073, 131_121), (1 << 20, (1 << 20) + 144)],
)
def test_sealed_size(stored, sealed):
    """An object has its header, its payload, and a tag for each segment; nothing where nothing is stored."""
    assert sealed_size(stored) == sealed
