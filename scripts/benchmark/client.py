"""The programs that use a mount. Each runs in a process of its own, as an application would.

A client prepares (imports, lists its files), says "ready", and works when it reads a line: so the start of
the interpreter is never part of a measurement, and caches are dropped when everything but the work is done.
"""

import os
import random
import sys
from collections.abc import Callable

COPY_BLOCK = 128 * 1024  # what cp and cat use


def files_below(paths: tuple[str, ...]) -> list[str]:
    """Every regular file below the paths, in a fixed order."""
    found = []
    for path in paths:
        if os.path.isfile(path):
            found.append(path)
        for folder, folders, names in os.walk(path):
            folders.sort()
            found += [os.path.join(folder, name) for name in sorted(names)]
    return found


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read(block: str, *paths: str) -> Callable[[], None]:
    """Read every file from start to end."""
    files, buffer = files_below(paths), [bytearray(int(block))]

    def work() -> None:
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            while os.readv(descriptor, buffer):
                pass
            os.close(descriptor)

    return work


def heads(size: str, *paths: str) -> Callable[[], None]:
    """Read the first bytes of every file: what an EXIF reader or a thumbnailer does."""
    files, buffer = files_below(paths), [bytearray(int(size))]

    def work() -> None:
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            os.readv(descriptor, buffer)
            os.close(descriptor)

    return work


def write(path: str, total: str, block: str) -> Callable[[], None]:
    """Write one file in equal blocks of random bytes."""
    size, step = int(total), int(block)
    pool = memoryview(random.Random(path.rsplit("/", 1)[-1]).randbytes(min(size, 64 * 1024 * 1024)))

    def work() -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        done = 0
        while done < size:
            start = done % len(pool)
            piece = pool[start : min(start + step, start + size - done)]
            write_all(descriptor, piece)
            done += len(piece)
        os.close(descriptor)

    return work


def stat(passes: str, path: str) -> Callable[[], None]:
    """Ask for the attributes of every file, several times over."""
    files = files_below((path,))

    def work() -> None:
        for _ in range(int(passes)):
            for name in files:
                os.stat(name)

    return work


def rename(path: str) -> Callable[[], None]:
    """Give every file a new name in its directory. The names change sides, so that it can be repeated."""
    pairs = []
    for name in files_below((path,)):
        folder, base = os.path.split(name)
        target = base.removeprefix("renamed-") if base.startswith("renamed-") else f"renamed-{base}"
        pairs.append((name, os.path.join(folder, target)))

    def work() -> None:
        for old, new in pairs:
            os.rename(old, new)

    return work


def fsync(path: str, count: str, size: str) -> Callable[[], None]:
    """Write, fsync and close each file: what a careful importer does."""
    data = random.Random("fsync").randbytes(int(size))

    def work() -> None:
        for index in range(int(count)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptor = os.open(os.path.join(path, f"{index:05}.jpg"), flags, 0o644)
            write_all(descriptor, data)
            os.fsync(descriptor)
            os.close(descriptor)

    return work


def copy_and_read(source: str, target: str, part: str, parts: str) -> Callable[[], None]:
    """Copy one part of a directory, then read the copies."""
    files = files_below((source,))[int(part) :: int(parts)]
    block = memoryview(bytearray(COPY_BLOCK))

    def work() -> None:
        copies = []
        for path in files:
            copies.append(os.path.join(target, os.path.basename(path)))
            reader = os.open(path, os.O_RDONLY)
            writer = os.open(copies[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            while count := os.readv(reader, [block]):
                write_all(writer, block[:count])
            os.close(reader)
            os.close(writer)
        for path in copies:
            reader = os.open(path, os.O_RDONLY)
            while os.readv(reader, [block]):
                pass
            os.close(reader)

    return work


def tree(path: str, folders: str, files: str) -> Callable[[], None]:
    """Make directories of files that are almost empty."""

    def work() -> None:
        for folder in range(int(folders)):
            os.makedirs(os.path.join(path, f"{folder:03}"))
            for index in range(int(files)):
                with open(os.path.join(path, f"{folder:03}", f"{index:05}.jpg"), "wb", buffering=0) as file:
                    file.write(b"%d/%d" % (folder, index))

    return work


JOBS: dict[str, Callable[..., Callable[[], None]]] = {
    "read": read,
    "heads": heads,
    "write": write,
    "stat": stat,
    "rename": rename,
    "fsync": fsync,
    "copy-and-read": copy_and_read,
    "tree": tree,
}


def main() -> None:
    work = JOBS[sys.argv[1]](*sys.argv[2:])
    print("ready", flush=True)
    sys.stdin.readline()
    work()
    print("done", flush=True)


if __name__ == "__main__":
    main()
