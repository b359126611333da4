"""The five ways in which Pixstore, the library that this grew from, loses or mixes up images."""

import threading
from pathlib import Path

import pytest
from stores import Place, image
from test_faults import run

from pixstorefs.api import ImageStore


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def _died_everywhere(scenario: str) -> dict[str, object]:
    counts = run("--scenario", scenario, "--kind", "die before", "--stride", "3")
    assert counts["problems"] == []
    assert counts["old"] > 0
    assert counts["new"] > 0
    return counts


def test_kill_between_object_and_record_on_update() -> None:
    """Pixstore overwrites the ciphertext before it writes the new key: killed in between, it is lost."""
    _died_everywhere("update")


def test_database_error_after_the_object_is_written() -> None:
    """Pixstore deletes the image's file when the database refuses: the old version must stay instead."""
    counts = run("--scenario", "update", "--kind", "EIO", "--kind", "ENOSPC", "--stride", "2")
    assert counts["problems"] == []
    assert counts["failed_and_told"] > 10


def test_delete_interrupted() -> None:
    """Pixstore deletes file and record one after the other: an image without a file, or the reverse."""
    _died_everywhere("delete")


def test_two_concurrent_updates(place: Place) -> None:
    """Pixstore can pair the file of one update with the key of another."""
    with place.open() as images:
        record = images.save_image(image(200_000, "first"))
        contents = {seed: image(200_000 + seed, seed) for seed in range(40)}

        def update(seeds: range) -> None:
            for seed in seeds:
                images.update_image(record.id, contents[seed])

        threads = [threading.Thread(target=update, args=(range(first, 40, 2),)) for first in (0, 1)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert images.read_image(record.id) in [image(200_000, "first"), *contents.values()]
        for thread in threads:
            thread.join()
        last = images.read_image(record.id)
        assert last in (contents[38], contents[39])
    with place.open() as images:
        assert images.read_image(record.id) == last


def test_two_saves_in_one_millisecond(place: Place) -> None:
    """Pixstore's token is a clock: two saves get the same one. Here the clock even stands still."""
    place.open().close()
    store = place.open_store()
    with ImageStore(store, now_ns=lambda: 1) as images:
        records = [images.save_image(image(100, seed)) for seed in range(20)]
        records += [images.update_image(records[0].id, image(100, "new")) for _ in range(20)]
    tokens = [record.token for record in records]
    assert tokens == sorted(set(tokens))
