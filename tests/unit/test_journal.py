"""The journal gives back what was added, whole or not at all."""

import os
from pathlib import Path

from pixstorefs.disk.folder import Folder
from pixstorefs.objects import journal
from pixstorefs.objects.journal import Journal, OpenObject


def _object(folder: Path, number: int, size_bytes: int) -> tuple[int, bytes]:
    content = os.urandom(size_bytes)
    (folder / str(number)).write_bytes(content)
    return number, content


def _journal(folder: Path) -> tuple[Journal, OpenObject]:
    """A journal, not open yet, and how the objects beside it are opened."""

    def open_object(number: int) -> tuple[int, int]:
        fd = os.open(folder / str(number), os.O_RDONLY)
        return fd, os.fstat(fd).st_size

    return Journal(Folder.at(str(folder))), open_object


def test_entries_come_back(tmp_path: Path) -> None:
    """The newest ones whole; of those they were written over what is left, which nobody takes for whole."""
    written, open_object = _journal(tmp_path)
    assert not written.add(1, open_object)
    written.open()
    assert written.add(1, open_object)
    laps = []
    for lap in range(3):
        objects = [_object(tmp_path, 10 * lap + n, 100_000 * (n + 1) - lap) for n in range(1, 6)]
        for number, _ in objects:
            assert written.add(number, open_object)
        written.sync()
        written.rewind()
        laps.append(dict(objects))
    written.close()
    found = dict(journal.entries(str(tmp_path)))
    for number, content in laps[-1].items():
        assert found[number] == content
    assert set(found) <= {number for lap in laps for number in lap}


def test_room(tmp_path: Path) -> None:
    """What is too long, or finds no room any more, is refused; an old journal is used again."""
    for _ in range(2):
        written, open_object = _journal(tmp_path)
        written.open()
        number, _ = _object(tmp_path, 1, journal.LARGEST_OBJECT_SIZE_BYTES + 1)
        assert not written.add(number, open_object)
        number, _ = _object(tmp_path, 2, journal.LARGEST_OBJECT_SIZE_BYTES - 5000)
        fitting = journal.JOURNAL_SIZE_BYTES // journal.LARGEST_OBJECT_SIZE_BYTES
        assert [written.add(number, open_object) for _ in range(fitting + 1)] == [True] * fitting + [False]
        written.rewind()
        assert written.add(number, open_object)
        written.close()
        assert not written.usable
    assert os.stat(tmp_path / journal.JOURNAL_FILE).st_size == journal.JOURNAL_SIZE_BYTES


def test_no_journal_at_all() -> None:
    """A store that never had one has nothing to put back."""
    assert list(journal.entries("/nonexistent")) == []
