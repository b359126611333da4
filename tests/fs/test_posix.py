"""POSIX call by call: the same cases on a mount and on the machine's own file system, with equal results.

What is compared: errnos, modes, owners, link counts, sizes, content, and which times a call moves.
"""

import ctypes
import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable

import pytest
from differential_machine import RENAME_EXCHANGE, RENAME_NOREPLACE, link_open, rename, set_times
from sides import ALICE, BOB, FAMILY, FRIENDS, Case, Sides, look, times_moved, tried, user
from support import Mount

RENAME_WHITEOUT = 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FICLONE = 0x40049409
LONG, TOO_LONG = "n" * 255, "n" * 256
DEEP = "d/" * 2047 + "f"  # 4095 bytes: the longest path there is


def _file(name: str = "f", content: bytes = b"content", mode: int = 0o644) -> str:
    with open(name, "wb") as file:
        file.write(content)
    os.chmod(name, mode)
    return name


def _content(name: str = "f") -> bytes:
    with open(name, "rb") as file:
        return file.read()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def _each(*calls: Callable[[], object]) -> list[object]:
    return [tried(call) for call in calls]


# Who may do what


def _modes_are_enforced() -> object:
    _file("mine", mode=0o600)
    _file("ours", mode=0o660)
    os.chown("ours", ALICE, FAMILY)
    _file("run", mode=0o644)
    os.mkdir("closed", 0o700)
    _file("closed/f", mode=0o666)
    results = []
    for groups in ((BOB,), (FAMILY,), (BOB, FAMILY)):
        with user(BOB, *groups):
            results.append(
                _each(
                    lambda: _content("mine"),
                    lambda: _content("ours"),
                    lambda: _content("closed/f"),
                    lambda: os.listdir("closed"),
                    lambda: os.chmod("mine", 0o666),
                    lambda: os.chown("mine", BOB, BOB),
                    lambda: os.utime("mine"),
                    lambda: os.utime("ours"),
                    lambda: os.utime("ours", ns=(1, 1)),
                    lambda: os.truncate("mine", 0),
                    lambda: os.execv("./run", ["run"]),
                    lambda: os.setxattr("mine", "user.a", b"x"),
                    lambda: os.getxattr("mine", "user.a"),
                )
            )
    return results


def _a_sticky_directory_protects_what_others_own() -> object:
    os.mkdir("tmp")
    os.chmod("tmp", 0o1777)
    os.mkdir("open", 0o777)
    os.chmod("open", 0o777)
    for name in ("tmp/alice", "tmp/target", "open/alice"):
        os.chown(_file(name, mode=0o666), ALICE, ALICE)
    os.mkdir("tmp/sub")
    os.chown("tmp/sub", ALICE, ALICE)
    with user(BOB, BOB):
        _file("tmp/bob")
        return _each(
            lambda: os.unlink("tmp/alice"),
            lambda: os.rename("tmp/alice", "tmp/other"),
            lambda: os.rename("tmp/bob", "tmp/target"),
            lambda: os.rmdir("tmp/sub"),
            lambda: os.rename("tmp/bob", "tmp/bob2"),
            lambda: os.unlink("tmp/bob2"),
            lambda: os.unlink("open/alice"),
        )


def _set_group_id_directories_hand_down() -> object:
    os.mkdir("d")
    os.chown("d", 0, FAMILY)
    os.chmod("d", 0o2777)
    with user(ALICE, FRIENDS):
        _file("d/f")
        os.mkdir("d/sub")
        os.mkfifo("d/pipe")
        os.symlink("f", "d/link")
        os.mknod("d/made", 0o2755)
        os.close(os.open("d/run", os.O_CREAT | os.O_WRONLY, 0o2755))
    names = ("d/f", "d/sub", "d/pipe", "d/link", "d/made", "d/run")
    os.rename("d/f", "f")
    os.mkdir("d/sub/deeper")
    return [look(name) for name in (*names[1:], "f", "d/sub/deeper")]


def _umask() -> object:
    seen = []
    for mask in (0, 0o022, 0o777):
        os.umask(mask)
        for number, mode in enumerate((0o666, 0o7777)):
            name = f"{mask}-{number}"
            os.close(os.open(f"f{name}", os.O_CREAT | os.O_WRONLY, mode))
            os.mkdir(f"d{name}", mode)
            os.mkfifo(f"p{name}", mode)
            os.mknod(f"n{name}", mode)
            os.symlink("f", f"l{name}")
            seen += [look(f"{kind}{name}") for kind in "fdpnl"]
    return seen


def _writers_take_set_id_bits_away() -> object:
    def write() -> None:
        with open("f", "r+b") as file:
            file.write(b"x")

    def write_nothing() -> None:
        with open("f", "r+b") as file:
            os.write(file.fileno(), b"")

    def look_while_open() -> None:
        with open("f", "r+b", buffering=0) as file:
            file.write(b"x")
            seen.append(look("f"))
            seen.append(look(file.fileno()))

    seen: list[object] = []
    everybody, all_but_root = (0, ALICE, BOB), (ALICE, BOB)
    for mode in (0o6777, 0o2767, 0o4666):
        for call, users in (
            # On a mount also root's writes take them, and chown(-1, -1) does not: see docs/posix.md.
            (write, all_but_root),
            (look_while_open, all_but_root),
            (write_nothing, everybody),
            (lambda: os.truncate("f", 3), everybody),
            (lambda: os.truncate("f", 9), everybody),
            (lambda: open("f", "wb").close(), everybody),
            (lambda: os.chown("f", -1, FAMILY), everybody),
            (lambda: os.utime("f"), everybody),
        ):
            for uid in users:
                _file("f")
                os.chown("f", ALICE, FRIENDS)
                os.chmod("f", mode)
                with user(uid, FRIENDS, FAMILY):
                    seen.append((tried(call), look("f")))
    return seen


def _chown_of_what_is_no_file_keeps_them() -> object:
    os.mkdir("d")
    os.chmod("d", 0o6777)
    os.chown("d", ALICE, FAMILY)
    os.mkfifo("p")
    os.chmod("p", 0o6777)
    os.chown("p", ALICE, FAMILY)
    return look("d"), look("p")


def _chmod_by_who_is_not_of_the_group() -> object:
    results = []
    for name, groups in (("f", (FRIENDS,)), ("g", (FRIENDS, FAMILY)), ("h", (FAMILY,))):
        _file(name)
        os.chown(name, ALICE, FAMILY)
        with user(ALICE, *groups):
            os.chmod(name, 0o6755)
            results.append(look(name))
            results.append(tried(lambda name=name: os.chown(name, -1, FRIENDS)))
            results.append(look(name))
            results.append(tried(lambda name=name: os.chown(name, BOB, -1)))
    return results


# Which times a call moves


def _times() -> object:
    for name in ("d", "e", "d/sub", "d/empty"):
        os.mkdir(name)
    for name in ("f", "d/old", "d/moving", "d/replaced", "d/by", "d/removed", "d/linked"):
        _file(name)
    os.link("d/linked", "second")
    os.symlink("f", "l")

    def append() -> None:
        with open("f", "ab") as file:
            file.write(b"x")

    def append_nothing() -> None:
        with open("f", "ab") as file:
            os.write(file.fileno(), b"")

    calls: list[tuple[Callable[[], object], tuple[str, ...]]] = [
        (lambda: _file("d/new"), ("d", ".")),
        (lambda: os.mkdir("d/made"), ("d", ".")),
        (lambda: os.mkfifo("d/pipe"), ("d",)),
        (lambda: os.symlink("x", "d/link"), ("d",)),
        (lambda: os.link("d/old", "d/other"), ("d", "d/old")),
        (lambda: os.mkdir("d/made"), ("d", "d/made")),
        (lambda: os.unlink("second"), (".", "d/linked")),
        (lambda: os.unlink("d/removed"), ("d", ".")),
        (lambda: os.rmdir("d/empty"), ("d", ".")),
        (lambda: os.rmdir("d"), ("d", ".")),
        (lambda: os.rename("d/moving", "d/moved"), ("d",)),
        (lambda: os.rename("d/moved", "e/moved"), ("d", "e", ".")),
        (lambda: os.rename("e/moved", "e/moved2"), ("e", "e/moved")),
        (lambda: os.rename("d/sub", "e/sub"), ("d", "e", "d/sub")),
        (lambda: os.rename("e/sub", "e/sub2"), ("e", "e/sub2")),
        (lambda: os.rename("d/by", "d/replaced"), ("d", "d/replaced")),
        (lambda: os.rename("d/old", "d/other"), ("d", "d/old", "d/other")),
        (lambda: rename(b"d/old", b"f", RENAME_EXCHANGE), ("d", ".", "d/old", "f")),
        (lambda: rename(b"d/old", b"f", RENAME_NOREPLACE), ("d", ".", "d/old", "f")),
        (append, ("f", ".")),
        (append_nothing, ("f",)),
        (lambda: open("f", "ab").close(), ("f",)),
        (lambda: open("f", "wb").close(), ("f", ".")),
        (lambda: open("f", "wb").close(), ("f", ".")),
        (lambda: os.truncate("f", 5), ("f", ".")),
        (lambda: os.truncate("f", 2), ("f", ".")),
        (lambda: os.chmod("f", 0o600), ("f", ".")),
        (lambda: os.chmod("f", 0o600), ("f", ".")),
        (lambda: os.chown("f", 5, 5), ("f", ".")),
        (lambda: os.chown("f", -1, -1), ("f", ".")),
        (lambda: os.utime("f", ns=(5, 5)), ("f",)),
        (lambda: set_times(b"f", "omit", 7), ("f",)),
        (lambda: set_times(b"f", 7, "omit"), ("f",)),
        (lambda: set_times(b"f", "omit", "omit"), ("f",)),
        (lambda: set_times(b"f", "now", "now"), ("f",)),
        (lambda: set_times(b"l", 9, 9, follow_symlinks=False), ("l", "f")),
        (lambda: os.setxattr("f", "user.a", b"1"), ("f", ".")),
        (lambda: os.setxattr("f", "user.a", b"2"), ("f", ".")),
        (lambda: os.removexattr("f", "user.a"), ("f", ".")),
        (lambda: os.chmod("d", 0o755), ("d", ".")),
        (lambda: os.stat("f"), ("f", ".")),
        (lambda: os.getxattr("f", "user.a"), ("f", ".")),
    ]
    return [times_moved(call, *paths) for call, paths in calls]


def _times_of_unsaved_files() -> object:
    os.mkdir("d")
    with open("d/f", "wb", buffering=0) as file:
        file.write(b"x")
        results = [
            times_moved(lambda: file.write(b"x"), "d/f", "d"),
            times_moved(lambda: os.fchmod(file.fileno(), 0o600), "d/f", "d"),
            times_moved(lambda: os.rename("d/f", "d/g"), "d"),
            times_moved(lambda: os.rename("d/g", "g"), "d", "."),
            times_moved(lambda: os.ftruncate(file.fileno(), 7), "g"),
            times_moved(lambda: os.chmod("d", 0o700), "d"),
            times_moved(lambda: file.write(b"y"), "g"),
            times_moved(lambda: os.unlink("g"), "."),
        ]
    return results, look("d")


def _times_far_from_now() -> object:
    moments = (-1, 0, -(10**9), (1 << 31) * 10**9, (1 << 32) * 10**9 + 5, 7_258_118_400_123_456_789)
    results = []
    for at in (*moments, 1 - (1 << 31) * 10**9 + 10**9):
        _file("f")
        os.utime("f", ns=(at, at + 1))
        found = os.stat("f")
        results.append((found.st_atime_ns, found.st_mtime_ns))
    return results


# Links and directories


def _link_counts() -> object:
    os.mkdir("d")
    os.mkdir("d/a")
    os.mkdir("d/b")
    os.mkdir("e")
    counts = [look("d"), look("d/a"), look(".")]
    os.rename("d/a", "e/a")
    counts += [look("d"), look("e")]
    os.rename("d/b", "e/a")
    counts += [look("d"), look("e"), look("e/a")]
    _file("f")
    os.link("f", "e/f")
    os.link("f", "e/g")
    counts += [look("f")]
    rename(b"f", b"e/a", RENAME_EXCHANGE)
    counts += [look("e"), look("."), look("e/a"), look("f")]
    os.unlink("e/a")
    os.rmdir("f")
    return [*counts, look("e/f"), look("."), sorted(os.listdir("e"))]


def _open_and_unlinked() -> object:
    _file("f")
    with open("f", "r+b", buffering=0) as file:
        os.unlink("f")
        first = look(file.fileno()), file.read()
        file.seek(0)
        file.write(b"other")
        os.fchmod(file.fileno(), 0o600)
        os.fchown(file.fileno(), ALICE, FAMILY)
        os.setxattr(file.fileno(), "user.a", b"1")
        os.ftruncate(file.fileno(), 20)
        file.seek(0)
        again = look(file.fileno()), file.read(), os.getxattr(file.fileno(), "user.a")
        linked = tried(lambda: link_open(file.fileno(), b"back"))
        os.fsync(file.fileno())
    directory = os.open(".", os.O_RDONLY)
    os.mkdir("d")
    inner = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    gone = (
        look(inner)[:1],
        os.listdir(inner),
        tried(lambda: os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=inner))),
        tried(lambda: os.mkdir("sub", dir_fd=inner)),
        tried(lambda: os.stat(".", dir_fd=inner)),
    )
    os.close(inner)
    os.close(directory)
    return first, again, linked, gone, os.listdir()


def _replaced_while_open() -> object:
    _file("old", b"old")
    with open("old", "rb", buffering=0) as file:
        os.rename(_file("new", b"new"), "old")
        found = look(file.fileno()), file.read()
    os.mkdir("d")
    os.mkdir("e")
    inner = os.open("e", os.O_RDONLY)
    os.rename("d", "e")
    found += (os.fstat(inner).st_nlink, look("e"), _content("old"))
    os.close(inner)
    return found


def _special_files() -> object:
    os.mkfifo("pipe", 0o640)
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("pipe", os.O_WRONLY)
    os.write(writer, b"through the pipe")
    passed = os.read(reader, 100)
    os.close(reader)
    os.close(writer)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
        accepted, _ = server.accept()
        client.send(b"through the socket")
        answer = accepted.recv(100)
        accepted.close()
    os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod("block", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    with open("null", "r+b", buffering=0) as null:
        swallowed = null.write(b"x"), null.read()
    with user(ALICE, ALICE):
        refused = tried(lambda: os.mknod("mine", 0o600 | stat.S_IFCHR, os.makedev(1, 3)))
    names = ("pipe", "socket", "null", "block")
    return passed, answer, swallowed, refused, [(look(name), os.lstat(name).st_rdev) for name in names]


# Errors


def _errors() -> object:
    _file("f")
    for name in ("d", "d/sub", "full", "full/in", "empty"):
        os.mkdir(name)
    os.symlink("loop", "loop")
    os.symlink("d", "to_d")
    os.symlink("absent", "dangling")
    target = "x" * 4095
    return _each(
        lambda: open(TOO_LONG, "wb"),
        lambda: os.mkdir(TOO_LONG),
        lambda: os.symlink("x", TOO_LONG),
        lambda: os.mkfifo(TOO_LONG),
        lambda: os.link("f", TOO_LONG),
        lambda: os.rename("f", TOO_LONG),
        lambda: os.rename(TOO_LONG, "f"),
        lambda: os.unlink(TOO_LONG),
        lambda: os.rmdir(TOO_LONG),
        lambda: os.stat(TOO_LONG),
        lambda: os.stat(DEEP),
        lambda: os.stat(DEEP + "f"),
        lambda: os.symlink(target, "long"),
        lambda: os.symlink(target + "x", "longer"),
        lambda: os.symlink("", "empty_target"),
        lambda: open("loop", "rb"),
        lambda: os.stat("loop/f"),
        lambda: os.open("to_d", os.O_NOFOLLOW),
        lambda: open("dangling", "rb"),
        lambda: os.open("dangling", os.O_CREAT | os.O_EXCL),
        lambda: os.rmdir("full"),
        lambda: os.rename("d", "full"),
        lambda: os.rename("d", "d/sub/deeper"),
        lambda: os.rename("d", "d/sub"),
        lambda: os.rename("d/sub", "d"),
        lambda: rename(b"d", b"d/sub", RENAME_EXCHANGE),
        lambda: rename(b"d/sub", b"d", RENAME_EXCHANGE),
        lambda: os.rename("f", "d"),
        lambda: os.rename("d", "f"),
        lambda: os.rename("absent", "d"),
        lambda: os.rename("f", "absent/f"),
        lambda: os.rename("f", "f/f"),
        lambda: os.rename("d", "."),
        lambda: os.rename(".", "d"),
        lambda: os.rename("d/..", "x"),
        lambda: rename(b"f", b"absent", RENAME_EXCHANGE),
        lambda: rename(b"f", b"d", RENAME_NOREPLACE),
        lambda: rename(b"f", b"g", RENAME_NOREPLACE | RENAME_EXCHANGE),
        lambda: os.unlink("d"),
        lambda: os.unlink("f/"),
        lambda: os.unlink("absent"),
        lambda: os.unlink("f/f"),
        lambda: os.rmdir("f"),
        lambda: os.rmdir("absent"),
        lambda: os.rmdir("d/."),
        lambda: os.rmdir("d/.."),
        lambda: os.rmdir("to_d"),
        lambda: os.mkdir("f"),
        lambda: os.mkdir("f/d"),
        lambda: os.mkdir("absent/d"),
        lambda: os.mkdir("d/."),
        lambda: os.mkdir("dangling"),
        lambda: os.link("d", "e"),
        lambda: os.link("f", "d"),
        lambda: os.link("absent", "e"),
        lambda: os.link("f", "/dev/shm/other-file-system"),
        lambda: os.rename("f", "/dev/shm/other-file-system"),
        lambda: os.open("d", os.O_WRONLY),
        lambda: os.open("d", os.O_CREAT),
        lambda: os.open("new/", os.O_CREAT),
        lambda: os.open("f", os.O_DIRECTORY),
        lambda: os.open("f/", os.O_RDONLY),
        lambda: os.open("f", os.O_CREAT | os.O_EXCL),
        lambda: os.open("absent", os.O_RDONLY),
        lambda: os.truncate("d", 0),
        lambda: os.truncate("f", -1),
        lambda: os.truncate("absent", 0),
        lambda: os.readlink("f"),
        lambda: os.listdir("f"),
        lambda: os.chdir("f"),
        lambda: os.getxattr("f", "user.absent"),
        lambda: os.setxattr("f", "user.a", b"", os.XATTR_REPLACE),
        lambda: os.setxattr("f", "user.b", b"", os.XATTR_CREATE),
        lambda: os.setxattr("f", "user.b", b"", os.XATTR_CREATE),
        lambda: os.setxattr("f", "user." + "n" * 250, b""),
        lambda: os.setxattr("f", "user." + "n" * 251, b""),
        lambda: os.setxattr("f", "nonsense", b""),
        lambda: os.setxattr("dangling", "user.a", b"", follow_symlinks=False),
    )


def _errors_of_descriptors() -> object:
    _file("f")
    reading, writing = os.open("f", os.O_RDONLY), os.open("f", os.O_WRONLY)
    directory = os.open(".", os.O_RDONLY)
    try:
        return _each(
            lambda: os.write(reading, b"x"),
            lambda: os.ftruncate(reading, 0),
            lambda: os.read(writing, 1),
            lambda: os.read(directory, 1),
            lambda: os.pread(reading, 1, -1),
            lambda: os.lseek(reading, -1, os.SEEK_SET),
            lambda: os.ftruncate(writing, 1 << 62),
            lambda: os.pwrite(writing, b"x", (1 << 63) - 1),
            lambda: mmap.mmap(reading, 7, mmap.MAP_SHARED, mmap.PROT_WRITE),
            lambda: os.fsync(directory),
        )
    finally:
        for fd in (reading, writing, directory):
            os.close(fd)


def _names_of_any_bytes() -> object:
    names = [bytes([byte]) for byte in range(1, 256) if byte not in (ord("."), ord("/"))]
    names += [
        b"...",
        b" ",
        b"..x",
        b"\xff" * 255,
        LONG.encode(),
        "e\u0301 and \u00e9".encode(),
        b"A",
        b"a" * 254,
    ]
    for name in set(names):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    return sorted(os.listdir(b".")), [look(name) for name in names]


# Content


def _many_append() -> object:
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            fd = os.open("f", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            for _ in range(50):
                os.write(fd, bytes([65 + number]) * 100)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    content = _content()
    lines = [content[at : at + 100] for at in range(0, len(content), 100)]
    return len(content), sorted(lines)


def _sparse() -> object:
    with open("f", "wb", buffering=0) as file:
        for offset in (0, (1 << 40) - 3, 1 << 30):
            file.seek(offset)
            file.write(b"xyz")
    found = look("f")
    with open("f", "rb") as file:
        file.seek((1 << 40) - 5)
        return found, file.read()


def _locks() -> object:
    """What another process is told of record locks, flock and open file description locks."""
    _file("f")
    answers: list[object] = []

    def another() -> list[object]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            fd = os.open("f", os.O_RDWR)
            told = _each(
                lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0),
                lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 0),
                lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10),
                lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
                lambda: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB),
            )
            os.write(writing, repr(told).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        return [told]

    with open("f", "r+b") as file:
        answers += another()
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        answers += another()
        fcntl.lockf(file, fcntl.LOCK_SH, 5, 0)
        fcntl.flock(file, fcntl.LOCK_SH)
        answers += another()
        with open("f", "rb"):
            pass  # closing any descriptor of a file lets go of the record locks on it
        answers += another()
        fcntl.flock(file, fcntl.LOCK_UN)
        answers += another()
    return answers


def _mapped() -> object:
    _file("f", b"a" * 10_000)
    with open("f", "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
        shared[5000:5003] = b"XYZ"
        private[0:3] = b"PPP"
        seen = _content()[4999:5004], private[5000:5003], _content()[:3]
        os.pwrite(file.fileno(), b"written", 6000)
        seen += (shared[6000:6007],)
        private.close()
    os.rename("f", "g")
    return seen, _content("g")


def _moved_by_the_kernel() -> object:
    _file("f", bytes(range(256)) * 1000)
    source, target = os.open("f", os.O_RDONLY), os.open("g", os.O_CREAT | os.O_RDWR)
    reading, writing = os.pipe()
    done = [
        os.copy_file_range(source, target, 100_000, 0, 0),
        os.copy_file_range(source, target, 1000, 255_500, 100_000),
        os.sendfile(target, source, 7, 5000),
        os.splice(source, writing, 3000, 10),
        os.splice(reading, target, 3000, None, 200_000),
        os.preadv(source, [bytearray(10), bytearray(10)], 255_995),
        os.pwritev(target, [b"one", b"two"], 300_000, os.RWF_DSYNC),
        os.pwritev(target, [b"end"], 0, os.RWF_APPEND),
    ]
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)
    for fd in (source, target, reading, writing):
        os.close(fd)
    return done, _content("g")


def _root_may_everything_but_execute_what_nobody_may() -> object:
    results: list[object] = []
    for mode in (0o000, 0o444, 0o111, 0o755):
        with open("program", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexit 3\n")
        os.chmod("program", mode)
        os.mkdir("d")
        os.chmod("d", mode)
        results += [
            [os.access(name, wanted) for name in ("program", "d") for wanted in (os.R_OK, os.W_OK, os.X_OK)],
            tried(lambda: subprocess.run(["./program"], check=False)),
            tried(lambda: os.chdir("d")),
            tried(lambda: os.chdir("..")),
            tried(lambda: _file("d/f", b"content")),
            tried(lambda: _file("program", b"more")),
            tried(lambda: shutil.rmtree("d")),
            tried(lambda: os.unlink("program")),
        ]
    return results


CASES_OF_USERS = [
    _modes_are_enforced,
    _a_sticky_directory_protects_what_others_own,
    _set_group_id_directories_hand_down,
    _writers_take_set_id_bits_away,
    _chmod_by_who_is_not_of_the_group,
    _special_files,
]
CASES_OF_ROOT = [
    _umask,
    _chown_of_what_is_no_file_keeps_them,
    _times,
    _times_of_unsaved_files,
    _times_far_from_now,
    _link_counts,
    _open_and_unlinked,
    _replaced_while_open,
    _errors,
    _errors_of_descriptors,
    _names_of_any_bytes,
    _many_append,
    _sparse,
    _locks,
    _mapped,
    _moved_by_the_kernel,
    _root_may_everything_but_execute_what_nobody_may,
]


@pytest.mark.parametrize("case", CASES_OF_USERS + CASES_OF_ROOT, ids=lambda case: case.__name__.strip("_"))
def test_a_mount_answers_like_any_other_file_system(sides: Sides, case: Case) -> None:
    """Every step of the case gives the same on both sides."""
    mounted, plain = sides.outcomes(case)
    assert mounted == plain


@pytest.mark.parametrize("case", CASES_OF_ROOT, ids=lambda case: case.__name__.strip("_"))
def test_so_does_a_mount_for_root_alone(private_sides: Sides, case: Case) -> None:
    """The kernel checks nothing there: what root may not do either is refused all the same."""
    mounted, plain = private_sides.outcomes(case)
    assert mounted == plain


def test_what_a_mount_cannot_do_is_refused(sides: Sides) -> None:
    """With the errors that make programs do without: see docs/posix.md."""

    def case() -> object:
        _file("f", b"x" * 5000)
        with open("f", "r+b") as file, open("g", "wb") as other:
            return [
                *_each(
                    lambda: fallocate(file.fileno(), 0, 0, 10_000),
                    lambda: fallocate(file.fileno(), FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 4096),
                    lambda: os.open(".", os.O_TMPFILE | os.O_RDWR),
                    lambda: fcntl.ioctl(other, FICLONE, file.fileno()),
                    lambda: rename(b"f", b"g", RENAME_WHITEOUT),
                ),
                os.lseek(file.fileno(), 0, os.SEEK_HOLE),
                os.stat(".").st_size,
                look("f")[-1],
            ]

    mounted, _ = sides.outcomes(case)
    assert mounted == ["ENOTSUP", "ENOTSUP", "ENOTSUP", "ENOTSUP", "EINVAL", 5000, 0, 5000]


def test_reading_moves_no_time(mounted: Mount) -> None:
    """A read would cost a transaction: atime is what was set, whatever is read and listed."""
    directory = mounted.mountpoint / "d"
    directory.mkdir()
    names = [directory, directory / "f"]
    names[1].write_bytes(b"content")
    for name in names:
        os.utime(name, ns=(5, 1_000_000_000_000_000_000))
    before = [os.stat(name) for name in names]
    assert names[1].read_bytes() == b"content"
    assert os.listdir(directory) == ["f"]
    assert [os.stat(name) for name in names] == before
    mounted.remount()
    assert names[1].read_bytes() == b"content"
    after = [os.stat(name) for name in names]
    assert [(found.st_ino, found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns) for found in after] == [
        (found.st_ino, found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns) for found in before
    ]
