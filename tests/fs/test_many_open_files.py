"""As many open files as the system allows, not as few as a shell's soft limit says."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from support import Mount

_FILES = 1600
_HARD = 20_000
_SIZE_BYTES = 140_000  # more than one segment: a draft that has an object


@contextmanager
def _allowed(descriptors: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, max(limits[1], descriptors)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_more_files_than_the_soft_limit(unmounted: Mount) -> None:
    """1,600 files that are written at the same time under a soft limit of 1024: all are saved."""
    unmounted.with_descriptors(1024, _HARD)
    unmounted.mount()
    content = os.urandom(_SIZE_BYTES)
    with _allowed(2 * _FILES):
        paths = [unmounted.mountpoint / f"{number}.jpg" for number in range(_FILES)]
        descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in paths]
        for descriptor in descriptors:
            assert os.write(descriptor, content) == len(content)
        for descriptor in descriptors:
            os.close(descriptor)
    unmounted.remount()
    assert sorted(os.listdir(unmounted.mountpoint)) == sorted(path.name for path in paths)
    assert all(path.read_bytes() == content for path in paths)
