"""Programs that replace an image by rename, and programs that read it meanwhile.

Run as a program it is one of them. Every version tells by a digest whether it is whole. Caches are dropped on
both sides, for what the kernel still holds of a file it would read without asking the mount.
"""

import errno
import hashlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

NAME = "photo.jpg"
_SIZES_BYTES = (100, 5_000, 140_000, 300_000)
_DIGEST_SIZE_BYTES = 32


def content(number: int) -> bytes:
    """A version of the image: the digest of a body, and the body."""
    body = hashlib.shake_256(b"%d" % number).digest(_SIZES_BYTES[number % len(_SIZES_BYTES)])
    return hashlib.sha256(body).digest() + body


def is_whole(data: bytes) -> bool:
    """Whether this is a version of the image."""
    return hashlib.sha256(data[_DIGEST_SIZE_BYTES:]).digest() == data[:_DIGEST_SIZE_BYTES]


def replace_until(directory: Path, end_s: float, *, before_close: bool) -> Counter[str]:
    """Replace the image again and again, by a file that is saved or by one that is not closed yet."""
    counts: Counter[str] = Counter()
    temporary = directory / f"tmp-{os.getpid()}"
    while time.monotonic() < end_s:
        counts["replaced"] += 1
        with open(temporary, "wb", buffering=0) as file:
            file.write(content(os.getpid() + counts["replaced"]))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if before_close:
                temporary.rename(directory / NAME)
        if not before_close:
            temporary.rename(directory / NAME)
    return counts


def read_until(directory: Path, end_s: float) -> Counter[str]:
    """Open, read, stat and list the image again and again; counts everything that must not happen."""
    counts: Counter[str] = Counter()
    for turn in itertools.count():
        if time.monotonic() >= end_s:
            return counts
        try:
            counts["read"] += 1
            if not is_whole(_read(directory / NAME)):
                counts["torn"] += 1
            os.stat(directory / NAME)
            if turn % 4 == 0 and NAME not in os.listdir(directory):
                counts["missing in the listing"] += 1
        except OSError as error:
            counts[errno.errorcode[error.errno or 0]] += 1
    raise AssertionError


def _read(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        data = file.readall()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return data


if __name__ == "__main__":
    role, directory, end_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    if role == "read":
        result = read_until(directory, end_s)
    else:
        result = replace_until(directory, end_s, before_close=role == "replace-before-close")
    print(json.dumps(result))
