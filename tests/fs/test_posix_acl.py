"""Access control lists on a mount and on the machine's own file system: the same."""

import os
import struct
import subprocess

import pytest
from sides import ALICE, BOB, FAMILY, FRIENDS, Case, Sides, look, times_moved, tried, user
from support import program

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NO_ID = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32

Line = tuple[int, int, int]


def _list(*named: Line, mode: int = 0o640, mask: int = 7) -> bytes:
    """A list of the mode's three entries and named ones, with a mask if there are any."""
    entries = [
        (USER_OBJ, mode >> 6, NO_ID),
        (GROUP_OBJ, mode >> 3 & 7, NO_ID),
        (OTHER, mode & 7, NO_ID),
        *named,
    ]
    if named:
        entries.append((MASK, mask, NO_ID))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))


def _lists(path: str) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}


def _file(name: str = "f", mode: int = 0o640) -> str:
    with open(name, "wb") as file:
        file.write(b"content")
    os.chmod(name, mode)
    return name


def _set_and_read() -> object:
    _file()
    os.setxattr("f", ACCESS, _list((USER, 6, ALICE), mask=6))
    return look("f"), _lists("f")


def _minimal_list_is_a_mode() -> object:
    _file()
    os.setxattr("f", ACCESS, _list((USER, 6, ALICE)))
    os.setxattr("f", ACCESS, _list(mode=0o751))
    return look("f"), _lists("f"), tried(lambda: os.getxattr("f", ACCESS))


def _removed() -> object:
    _file()
    os.setxattr("f", ACCESS, _list((USER, 7, ALICE)))
    os.removexattr("f", ACCESS)
    again = tried(lambda: os.removexattr("f", ACCESS)), tried(lambda: os.removexattr(".", DEFAULT))
    return look("f"), _lists("f"), again


def _chmod_changes_the_mask() -> object:
    _file()
    os.setxattr("f", ACCESS, _list((USER, 7, ALICE), (GROUP, 6, FAMILY)))
    os.chmod("f", 0o604)
    narrow = look("f"), _lists("f")
    os.chmod("f", 0o4775)
    return narrow, look("f"), _lists("f")


def _chmod_while_open() -> object:
    with open("f", "wb") as file:
        os.setxattr(file.fileno(), ACCESS, _list((USER, 7, ALICE)))
        os.fchmod(file.fileno(), 0o620)
        file.write(b"content")
        unsaved = look(file.fileno()), _lists("f")
    return unsaved, look("f"), _lists("f")


def _open_and_unlinked() -> object:
    with open("f", "wb") as file:
        os.unlink("f")
        os.setxattr(file.fileno(), ACCESS, _list((USER, 7, ALICE)))
        os.fchmod(file.fileno(), 0o620)
        return look(file.fileno()), os.getxattr(file.fileno(), ACCESS)


def _may(uid: int, *groups: int) -> object:
    with user(uid, *groups):
        return [
            tried(lambda flags=flags: os.close(os.open("f", flags))) for flags in (os.O_RDONLY, os.O_RDWR)
        ]


def _enforced() -> object:
    _file(mode=0o600)
    os.setxattr("f", ACCESS, _list((USER, 6, ALICE), (GROUP, 4, FAMILY), mode=0o600))
    allowed = [_may(ALICE, ALICE), _may(BOB, BOB, FAMILY), _may(BOB, FAMILY), _may(BOB, FRIENDS)]
    os.chmod("f", 0o600)
    bounded = [_may(ALICE, ALICE), _may(BOB, BOB, FAMILY)]
    os.chmod("f", 0o660)
    return allowed, bounded, _may(ALICE, ALICE)


def _only_the_owner_sets_them() -> object:
    _file(mode=0o666)
    os.chown("f", ALICE, FAMILY)
    results = []
    for uid in (ALICE, BOB):
        with user(uid, FAMILY):
            results.append(tried(lambda: os.setxattr("f", ACCESS, _list((USER, 4, BOB)))))
    return results, look("f"), _lists("f")


def _set_group_id_of_a_stranger() -> object:
    results = []
    for name, groups in (("f", (FRIENDS,)), ("g", (FRIENDS, FAMILY))):
        _file(name)
        os.chown(name, ALICE, FAMILY)
        os.chmod(name, 0o2770)
        with user(ALICE, *groups):
            os.setxattr(name, ACCESS, _list((USER, 4, BOB), mode=0o770))
        results.append((look(name), _lists(name)))
    return results


def _handed_down() -> object:
    os.mkdir("d")
    os.setxattr("d", DEFAULT, _list((USER, 7, ALICE), (GROUP, 5, FAMILY), mode=0o750, mask=7))
    for name, mode in (("wide", 0o666), ("narrow", 0o604), ("run", 0o755)):
        os.close(os.open(f"d/{name}", os.O_CREAT | os.O_WRONLY, mode))
    os.mkdir("d/sub")
    os.mkdir("d/sub/deeper", 0o700)
    os.mkfifo("d/pipe", 0o666)
    os.mknod("d/made", 0o640)
    os.symlink("wide", "d/link")
    os.link("d/wide", "second")
    os.rename("d/run", "moved")
    names = ("wide", "narrow", "sub", "sub/deeper", "pipe", "made", "../moved")
    return [(name, look(f"d/{name}"), _lists(f"d/{name}")) for name in names], look("d/link")


def _minimal_default() -> object:
    os.mkdir("d")
    os.setxattr("d", DEFAULT, _list(mode=0o751))
    os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir("d/sub")
    return look("d"), _lists("d"), look("d/f"), _lists("d/f"), look("d/sub"), _lists("d/sub")


def _refused() -> object:
    _file()
    os.symlink("f", "l")
    good = _list((USER, 6, ALICE))
    return [
        tried(lambda: os.setxattr("f", DEFAULT, good)),
        tried(lambda: os.setxattr("l", ACCESS, good, follow_symlinks=False)),
        tried(lambda: os.setxattr("f", ACCESS, good[:-1])),
        tried(lambda: os.setxattr("f", ACCESS, good[:-8])),
        tried(lambda: os.setxattr("f", ACCESS, b"\x01" + good[1:])),
        tried(lambda: os.setxattr("f", "system.other", b"x")),
        tried(lambda: os.getxattr(".", DEFAULT)),
        look("f"),
        _lists("f"),
    ]


def _times() -> object:
    _file()
    os.mkdir("d")
    value = _list((USER, 6, ALICE))
    return [
        times_moved(lambda: os.setxattr("f", ACCESS, value), "f", "."),
        times_moved(lambda: os.removexattr("f", ACCESS), "f", "."),
        times_moved(lambda: os.setxattr("d", DEFAULT, value), "d", "."),
    ]


CASES_OF_USERS = [
    _enforced,
    _only_the_owner_sets_them,
    _set_group_id_of_a_stranger,
]
CASES_OF_ROOT = [
    _set_and_read,
    _minimal_list_is_a_mode,
    _removed,
    _chmod_changes_the_mask,
    _chmod_while_open,
    _open_and_unlinked,
    _handed_down,
    _minimal_default,
    _refused,
    _times,
]


@pytest.mark.parametrize("case", CASES_OF_USERS + CASES_OF_ROOT, ids=lambda case: case.__name__.strip("_"))
def test_lists_are_as_elsewhere(sides: Sides, case: Case) -> None:
    """Every call about lists, and every call that they change the meaning of, answers the same."""
    mounted, plain = sides.outcomes(case)
    assert mounted == plain


@pytest.mark.parametrize("case", CASES_OF_ROOT, ids=lambda case: case.__name__.strip("_"))
def test_so_are_lists_in_a_mount_for_root_alone(private_sides: Sides, case: Case) -> None:
    """The kernel does not know them there, and shows the mode that they make all the same."""
    mounted, plain = private_sides.outcomes(case)
    assert mounted == plain


def _programs() -> object:
    run = [program(name) for name in ("setfacl", "getfacl", "cp", "rsync")]
    setfacl, getfacl, cp, rsync = run

    def do(*arguments: str) -> str:
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

    os.mkdir("d")
    do(setfacl, "-d", "-m", f"u:{ALICE}:rwx,g:{FAMILY}:r-x", "d")
    _file("d/f")
    os.mkdir("d/sub")
    do(setfacl, "-m", f"u:{BOB}:rw", "d/f")
    do(cp, "-a", "d", "copied")
    do(rsync, "-aA", "d/", "synced")
    do(setfacl, "-R", "-m", f"g:{FRIENDS}:r", "synced")
    do(setfacl, "-b", "copied/f")
    return [sorted(do(getfacl, "-nRp", name).split("\n\n")) for name in ("d", "copied", "synced")]


def test_programs_copy_lists(sides: Sides) -> None:
    """setfacl, getfacl, cp -a and rsync -A leave the same behind."""
    mounted, plain = sides.outcomes(_programs)
    assert mounted == plain


def test_programs_copy_lists_for_root_alone(private_sides: Sides) -> None:
    """The same where the kernel passes them through."""
    mounted, plain = private_sides.outcomes(_programs)
    assert mounted == plain
