"""Sizes and formulas of the store format (docs/format.md) that more than one layer needs."""

SEGMENT_SIZE_LOG2 = 17
SEGMENT_SIZE_BYTES = 1 << SEGMENT_SIZE_LOG2
TAG_SIZE_BYTES = 16
SEALED_SEGMENT_SIZE_BYTES = SEGMENT_SIZE_BYTES + TAG_SIZE_BYTES
KEY_SIZE_BYTES = 32
IV_SIZE_BYTES = 12
# In front of every object: magic, format, cipher, log2 of the segment size, a zero, version id.
HEADER_SIZE_BYTES = 16

# 2^44 bytes are 2^27 segments, far below GCM's 2^32 invocations a key; it is also ext4's largest file.
MAX_IMAGE_SIZE_BYTES = 1 << 44


def padded_size(size_bytes: int) -> int:
    """`size_bytes` rounded up by Padmé: at most 12 % more, 3.1 % for photos.

    Padmé (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs",
    PoPETs 2019) keeps only as many leading bits of the length as its exponent has digits, so that
    O(log log size) bits of a size leak instead of all.
    """
    if size_bytes < 2:
        return size_bytes
    exponent = size_bytes.bit_length() - 1
    dropped_bits = exponent - exponent.bit_length()
    mask = (1 << max(dropped_bits, 0)) - 1
    return (size_bytes + mask) & ~mask


def sealed_size(stored_size_bytes: int) -> int:
    """Bytes the object of a version occupies, header and tags included; 0 where nothing is stored."""
    if stored_size_bytes == 0:
        return 0
    segments = -(-stored_size_bytes // SEGMENT_SIZE_BYTES)
    return HEADER_SIZE_BYTES + stored_size_bytes + segments * TAG_SIZE_BYTES
