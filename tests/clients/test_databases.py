"""SQLite databases, the catalogues of photo managers: locks, journals and shared memory between processes.

Every script runs on the mount and on the disk and prints the same, and the database is whole after a remount.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import TIMEOUT_S, environment, require, run
from support import Mount

JOURNALS = ["delete", "truncate", "persist", "wal"]
WRITERS = 2
ROWS_EACH = 15


def sql(database: Path, *statements: str, status: int = 0) -> str:
    """One process of the shell; other writers are waited for."""
    return run("sqlite3", "-cmd", ".timeout 60000", database, *statements, status=status, quiet=status == 0)


@pytest.fixture
def catalogues(places: tuple[Path, Path]) -> tuple[Path, Path]:
    """Where the same database is made twice."""
    require("sqlite3")
    return places[0] / "catalogue.db", places[1] / "catalogue.db"


@pytest.mark.parametrize("journal", JOURNALS)
def test_two_processes_write_one_database(shared: Mount, catalogues: tuple[Path, Path], journal: str) -> None:
    """Each row in a transaction of its own, from both in turns as the locks have it; none is lost."""
    totals = []
    for catalogue in catalogues:
        made = "CREATE TABLE photo(id INTEGER PRIMARY KEY, writer INTEGER, number INTEGER, thumbnail BLOB)"
        assert sql(catalogue, f"PRAGMA journal_mode={journal}", made) == f"{journal}\n"
        insert = "INSERT INTO photo(writer, number, thumbnail) VALUES({}, {}, zeroblob(3000));"
        writers = []
        for writer in range(WRITERS):
            lines = [".timeout 60000"] + [insert.format(writer, number) for number in range(ROWS_EACH)]
            writers.append(in_background(catalogue, "\n".join(lines)))
        for writer_process, lines_text in writers:
            said, _ = writer_process.communicate(lines_text, timeout=TIMEOUT_S)
            assert (writer_process.returncode, said) == (0, "")
        totals.append(look(catalogue))
    assert totals[0] == totals[1]
    assert f"{WRITERS}|{WRITERS * ROWS_EACH}|" in totals[0]
    shared.remount()
    assert look(catalogues[0]) == totals[1]


def look(catalogue: Path) -> str:
    """All of it but the order in which the writers came to their turns."""
    counts = "SELECT count(DISTINCT writer), count(*), sum(number), sum(length(thumbnail)) FROM photo"
    return sql(catalogue, "PRAGMA journal_mode", "PRAGMA integrity_check", counts)


def in_background(catalogue: Path, lines: str) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        ["sqlite3", "-bail", catalogue],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, lines


@contextmanager
def session(catalogue: Path) -> Iterator["subprocess.Popen[str]"]:
    """A shell that stays in the middle of what it does, as a photo manager that is running."""
    process, _ = in_background(catalogue, "")
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def tell(process: "subprocess.Popen[str]", *lines: str) -> str:
    """Let it do something; returns what it printed until all of it was done."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n".join((*lines, ".print done", "")))
    process.stdin.flush()
    said = ""
    while not said.endswith("done\n"):
        line = process.stdout.readline()
        assert line, f"sqlite3 ended: {said}"
        said += line
    return said.removesuffix("done\n")


@pytest.mark.parametrize("journal", JOURNALS)
def test_locks_and_a_killed_writer(shared: Mount, catalogues: tuple[Path, Path], journal: str) -> None:
    """Who comes while another writes is told so; what a killed writer left is rolled back by the next."""
    told = []
    for catalogue in catalogues:
        sql(catalogue, f"PRAGMA journal_mode={journal}", "CREATE TABLE photo(name TEXT, pixels BLOB)")
        sql(catalogue, "INSERT INTO photo VALUES('first', zeroblob(100000))")
        with session(catalogue) as writer:
            # A cache of a few pages, so that half of the transaction is in the file when it is killed.
            tell(writer, "PRAGMA cache_size=5;", "PRAGMA cache_spill=5;", "BEGIN IMMEDIATE;")
            tell(
                writer, "UPDATE photo SET pixels=randomblob(400000);", "INSERT INTO photo VALUES('lost', 1);"
            )
            busy = run("sqlite3", catalogue, "DELETE FROM photo", status=5, errors_too=True, quiet=False)
        told.append((busy, sql(catalogue, "SELECT name, hex(pixels)=hex(zeroblob(100000)) FROM photo")))
    assert told[0] == told[1]
    assert "database is locked" in told[0][0]
    assert told[0][1] == "first|1\n"
    shared.remount()
    assert sql(catalogues[0], "PRAGMA integrity_check", "SELECT count(*) FROM photo") == "ok\n1\n"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_that_was_copied_while_it_is_open(
    shared: Mount, catalogues: tuple[Path, Path], journal: str
) -> None:
    """Backup, VACUUM and mmap, with a reader that keeps its snapshot meanwhile."""
    told = []
    for catalogue in catalogues:
        backup = catalogue.with_name("backup.db")
        sql(
            catalogue,
            f"PRAGMA journal_mode={journal}",
            "CREATE TABLE photo(id INTEGER PRIMARY KEY, size INTEGER)",
        )
        count = "WITH RECURSIVE n(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM n WHERE x<5000) "
        sql(catalogue, f"{count} INSERT INTO photo SELECT x, x*7 FROM n")
        with session(catalogue) as reader:
            before = tell(reader, "PRAGMA mmap_size=100000000;", "BEGIN;", "SELECT sum(size) FROM photo;")
            sql(catalogue, f".backup '{backup}'")
            if journal == "wal":
                sql(catalogue, "DELETE FROM photo WHERE id % 3 = 0")
            assert tell(reader, "SELECT sum(size) FROM photo;", "COMMIT;") in before
        sql(catalogue, "DELETE FROM photo WHERE id % 2 = 0", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)")
        told.append([sql(path, ".sha3sum", "PRAGMA integrity_check") for path in (catalogue, backup)])
    assert told[0] == told[1]
    shared.remount()
    folder = catalogues[0].parent
    assert [
        sql(folder / name, ".sha3sum", "PRAGMA integrity_check") for name in ("catalogue.db", "backup.db")
    ] == told[1]
