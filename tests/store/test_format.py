"""Format 1 is what docs/format.md says: vectors, a second reader, and no damage that goes unnoticed."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import independent_reader
import pytest
from independent_reader import Refused, StoredVersion
from stores import HEADER, SEALED, SEGMENT, Place, image, save_file

import pixstorefs
from pixstorefs.api import ImageStore
from pixstorefs.errors import CorruptImage
from pixstorefs.format import padded_size
from pixstorefs.index.schema import APPLICATION_ID, FORMAT, SCHEMA
from pixstorefs.keys import keyring
from pixstorefs.keys.secrets import Secret
from pixstorefs.objects.directory import ObjectDirectory, object_path
from pixstorefs.objects.layout import slot_of
from pixstorefs.objects.sealing import VersionKey
from pixstorefs.objects.writer import ObjectWriter
from pixstorefs.records import ImageRecord, Inode
from pixstorefs.store.draft import Draft

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
VECTORS = json.loads(re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[-1])
OBJECT_VECTORS = {vector["name"]: vector for vector in VECTORS["objects"]}


def vector_image(vector) -> bytes:
    """The image an object vector stands for, holes and all."""
    if "plaintext" in vector:
        return bytes.fromhex(vector["plaintext"])
    content = bytearray(vector["size_bytes"])
    for index in independent_reader.stored_segments(bytes.fromhex(vector["runs"])):
        start, end = index * SEGMENT, min((index + 1) * SEGMENT, len(content))
        content[start:end] = bytes(offset % 251 for offset in range(start, end))
    return bytes(content)


def sealed_by_us(vector, folder: Path) -> bytes:
    """The object pixstorefs writes for a vector."""
    (folder / "objects").mkdir()
    directory = ObjectDirectory(str(folder), bytes.fromhex(vector["store_id"]))
    key = VersionKey(vector["version_id"], bytes.fromhex(vector["key"]), bytes.fromhex(vector["iv"]))
    writer = ObjectWriter(directory, key, bytes.fromhex(vector["image_id"]))
    content = vector_image(vector)
    *before, last = independent_reader.stored_segments(bytes.fromhex(vector["runs"]))
    for index in before:
        writer.append(index, memoryview(content)[index * SEGMENT : (index + 1) * SEGMENT])
    tail = content[last * SEGMENT : (last + 1) * SEGMENT]
    payload = len(before) * SEGMENT + len(tail)
    sealed = writer.finish(last, tail, padding=vector["stored_size_bytes"] != payload)
    directory.close()
    assert sealed.stored_size_bytes == vector["stored_size_bytes"]
    assert sealed.tag.hex() == vector["tag"]
    assert (
        b"".join(first.to_bytes(8) + count.to_bytes(8) for first, count in sealed.runs).hex()
        == vector["runs"]
    )
    return Path(object_path(str(folder / "objects"), key.version_id)).read_bytes()


@pytest.mark.parametrize("slot", VECTORS["keyring"]["slots"], ids=lambda slot: slot["secret_kind"])
def test_keyring_vector(slot):
    """Both readers get the master key and the index key of the document out of its keys.json."""
    vector = VECTORS["keyring"]
    header, keys_json = vector["store_json"].encode(), slot["keys_json"].encode()
    material = bytes.fromhex(slot["secret"])
    secret = Secret(slot["secret_kind"], material)
    theirs = independent_reader.unlock(keys_json, independent_reader.Secret(secret.kind, material), header)
    assert keyring.unlock(keys_json, secret, header).hex() == theirs.hex() == vector["master_key"]
    store_id = bytes.fromhex(json.loads(header)["store_id"])
    assert keyring.derive(theirs, store_id, "index").hex() == vector["index_key"]
    assert independent_reader.derive(theirs, store_id, "index").hex() == vector["index_key"]


@pytest.mark.parametrize("name", OBJECT_VECTORS)
def test_object_vector(name, tmp_path):
    """pixstorefs writes the object of the document byte for byte, and the second reader opens it."""
    vector = OBJECT_VECTORS[name]
    sealed = sealed_by_us(vector, tmp_path)
    assert hashlib.sha256(sealed).hexdigest() == vector["object_sha256"]
    assert sealed.hex() == vector.get("object", sealed.hex())
    version = StoredVersion(
        vector["version_id"],
        *(bytes.fromhex(vector[field]) for field in ("key", "iv", "tag")),
        vector["size_bytes"],
        vector["stored_size_bytes"],
        bytes.fromhex(vector["runs"]),
    )
    store_id, image_id = bytes.fromhex(vector["store_id"]), bytes.fromhex(vector["image_id"])
    assert independent_reader.open_object(sealed, version, store_id, image_id) == vector_image(vector)


def test_runs_vector():
    """Segments are in the slots the document says."""
    packed = bytes.fromhex(VECTORS["runs"]["runs"])
    numbers = [int.from_bytes(packed[at : at + 8]) for at in range(0, len(packed), 8)]
    runs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    segments = independent_reader.stored_segments(packed)
    for segment, slot in VECTORS["runs"]["slots"]:
        assert slot_of(runs, segment) == slot
        assert (segments.index(segment) if segment in segments else -1) == slot


def test_padme_vector():
    """Both implementations pad as the table of the document says."""
    for length, padded in VECTORS["padme"]:
        assert padded_size(length) == independent_reader.padme(length) == padded


def test_padme_limits():
    """Padding never shrinks, grows with the length, and stays within the overhead the document promises."""
    lengths = [*range(3000), *(2**exponent + step for exponent in range(12, 45) for step in (-1, 0, 1))]
    padded = [padded_size(length) for length in lengths]
    assert padded == [independent_reader.padme(length) for length in lengths]
    assert padded == sorted(padded)
    for length, size_bytes in zip(lengths, padded, strict=True):
        assert length <= size_bytes <= length * (1.032 if length >= 1 << 20 else 1.12)


def test_document_names_every_table_and_number():
    """The document speaks of every table, and of the numbers that mark the index."""
    text = DOCUMENT.read_text()
    for table in re.findall(r"CREATE TABLE (\w+)", SCHEMA):
        assert f"**`{table}`** has" in text
    assert f"`PRAGMA application_id` is {APPLICATION_ID:#x}" in text
    assert f"`PRAGMA user_version` is the format, {FORMAT}" in text


# The second reader

SIZES_BYTES = [3, 131071, 131072, 131073, 262144, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_500_000]


def fill_with_everything(place: Place, *, padding: bool) -> dict[bytes, bytes]:
    """A closed store with all kinds of content; what it should hold, by path."""
    expected: dict[bytes, bytes] = {}
    with place.open(padding=padding) as images:
        for size_bytes in SIZES_BYTES:
            record = images.save_image(image(size_bytes), directory="2026/größe")
            expected[record.path.encode()] = image(size_bytes)
        updated = images.save_image(image(500_000, "old"))
        images.update_image(updated.id, image(200_000, "new"))
        expected[updated.path.encode()] = image(200_000, "new")
        images.delete_image(images.save_image(image(70_000), directory="emptied").id)
        for name, (pieces, size_bytes) in PIECES.items():
            expected[name.encode()] = written(pieces, size_bytes)
            save_file(images._store, name, lambda draft, p=pieces, s=size_bytes: write_pieces(draft, p, s))
        link = Inode(images._store.numbers.ino(), 0o120777, 0, 0, 1, 5, 0, 0, 1, 1, 1)
        images._store.tree.add(link, 1, b"link", b"there")
    return expected | {b"link": b"there", b"2026/": b"", "2026/größe/".encode(): b"", b"emptied/": b""}


# Name -> ((offset, length) of what is written, in this order; the size at the end).
PIECES: dict[str, tuple[list[tuple[int, int]], int]] = {
    "empty": ([], 0),
    "one byte": ([(0, 1)], 1),
    "only a hole": ([], 5 * SEGMENT + 1),
    "hole in front": ([(3 * SEGMENT + 5, 100)], 3 * SEGMENT + 105),
    "hole behind": ([(0, 10)], 4 * SEGMENT),
    "holes between": ([(0, SEGMENT), (4 * SEGMENT - 1, 2), (9 * SEGMENT, 7)], 9 * SEGMENT + 7),
    "out of order": ([(5 * SEGMENT, SEGMENT), (SEGMENT, 2 * SEGMENT), (0, 10)], 6 * SEGMENT),
    "rewritten": ([(0, 6 * SEGMENT), (SEGMENT + 3, 5)], 6 * SEGMENT),
    "cut": ([(0, 6 * SEGMENT)], 2 * SEGMENT + 17),
    "cut at a border": ([(0, 6 * SEGMENT)], 2 * SEGMENT),
    "padded by slots": ([(0, 64 * SEGMENT + 1)], 64 * SEGMENT + 1),
    "holes, padded by slots": ([(0, SEGMENT), (3 * SEGMENT, 63 * SEGMENT + 1)], 66 * SEGMENT + 1),
}


def write_pieces(draft: Draft, pieces: list[tuple[int, int]], size_bytes: int) -> None:
    for offset, length in pieces:
        draft.write(offset, image(length + 3, offset)[3:])
    draft.truncate(size_bytes)


def written(pieces: list[tuple[int, int]], size_bytes: int) -> bytes:
    content = bytearray(max([size_bytes, *(offset + length for offset, length in pieces)]))
    for offset, length in pieces:
        content[offset : offset + length] = image(length + 3, offset)[3:]
    return bytes(content[:size_bytes])


@pytest.mark.parametrize("padding", [True, False])
def test_second_reader_reads_the_same(place, padding):
    """A reader written from the document alone reads everything pixstorefs wrote, padded or not."""
    expected = fill_with_everything(place, padding=padding)
    read = independent_reader.read_store(place.path, independent_reader.keyfile(place.keyfile))
    assert read.keys() == expected.keys()
    assert [path for path, content in expected.items() if read[path] != content] == []


def test_second_reader_opens_with_a_passphrase(tmp_path):
    """The same with a passphrase that is not ASCII."""
    with pixstorefs.open_store(str(tmp_path / "store"), passphrase="größe 写真") as images:
        record = images.save_image(image(1000))
    secret = independent_reader.passphrase("größe 写真")
    assert independent_reader.read_store(tmp_path / "store", secret) == {record.path.encode(): image(1000)}


def test_no_size_leaks_with_padding(place):
    """Every object's payload is a padded length, whatever was written."""
    fill_with_everything(place, padding=True)
    for path in place.objects().values():
        payload = path.stat().st_size - HEADER
        payload -= 16 * -(-payload // SEALED)
        assert padded_size(payload) == payload


def test_holes_are_not_stored(place):
    """A terabyte of nothing takes no object, and one byte at its end takes one segment."""
    with place.open(padding=False) as images:
        store = images._store
        save_file(store, "nothing", lambda draft: draft.truncate(1 << 40))
        assert place.objects() == {}
        save_file(store, "last byte", lambda draft: draft.write((1 << 40) - 1, b"x"))
        (path,) = place.objects().values()
        assert path.stat().st_size == HEADER + SEALED


# Tampering


@pytest.fixture
def album(images) -> tuple[ImageStore, list[ImageRecord]]:
    """Three images of the same size: two to tamper with, and one that must not notice."""
    return images, [images.save_image(image(3 * SEGMENT + 1000, seed)) for seed in "abc"]


def check_refused(place: Place, images: ImageStore, records: list[ImageRecord], refused: set[int]) -> None:
    """The images at these positions are refused by both readers; the others are as they were."""
    for position, record in enumerate(records):
        if position in refused:
            with pytest.raises(CorruptImage, match=record.id):
                images.read_image(record.id)
        else:
            assert images.read_image(record.id) == image(3 * SEGMENT + 1000, "abc"[position])
    assert {record.id for record in images.images()} == {record.id for record in records}
    images.sync()
    theirs = independent_reader.read_store(place.path, independent_reader.keyfile(place.keyfile))
    for position, record in enumerate(records):
        assert isinstance(theirs[record.path.encode()], Refused) == (position in refused)


def objects_in_order(place: Place) -> list[Path]:
    return [path for _, path in sorted(place.objects().items())]


def test_every_header_byte_counts(place, album):
    """Whichever byte of an object's header changes, the image is refused, and only this image."""
    images, records = album
    path = objects_in_order(place)[0]
    original = path.read_bytes()
    for position in range(HEADER):
        changed = bytearray(original)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CorruptImage, match=records[0].id):
            images.read_image(records[0].id)
    check_refused(place, images, records, {0})
    path.write_bytes(original)
    check_refused(place, images, records, set())


def segments_of(sealed: bytes) -> list[bytes]:
    return [sealed[start : start + SEALED] for start in range(HEADER, len(sealed), SEALED)]


def with_bit(sealed: bytes, position: int) -> bytes:
    changed = bytearray(sealed)
    changed[position] ^= 0x80
    return bytes(changed)


def reordered(sealed: bytes, *order: int) -> bytes:
    segments = segments_of(sealed)
    return sealed[:HEADER] + b"".join(segments[slot] for slot in order)


TAMPERINGS: dict[str, Callable[[bytes], bytes]] = {
    "first byte of ciphertext": lambda sealed: with_bit(sealed, HEADER),
    "a byte in the middle": lambda sealed: with_bit(sealed, HEADER + SEALED + 70_000),
    "first tag": lambda sealed: with_bit(sealed, HEADER + SEALED - 1),
    "last tag": lambda sealed: with_bit(sealed, len(sealed) - 1),
    "the padding": lambda sealed: with_bit(sealed, len(sealed) - 17),
    "empty": lambda sealed: b"",
    "header only": lambda sealed: sealed[:HEADER],
    "one byte short": lambda sealed: sealed[:-1],
    "last segment dropped": lambda sealed: reordered(sealed, 0, 1, 2),
    "first segment dropped": lambda sealed: reordered(sealed, 1, 2, 3),
    "one byte more": lambda sealed: sealed + b"\0",
    "a segment more": lambda sealed: sealed + segments_of(sealed)[0],
    "segments swapped": lambda sealed: reordered(sealed, 1, 0, 2, 3),
    "a segment twice": lambda sealed: reordered(sealed, 0, 0, 2, 3),
    "zeros": lambda sealed: bytes(len(sealed)),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_refused(place, album, tampering):
    """Changed, cut, extended and reordered objects are refused; the other images work."""
    images, records = album
    path = objects_in_order(place)[1]
    path.write_bytes(TAMPERINGS[tampering](path.read_bytes()))
    check_refused(place, images, records, {1})


def test_missing_object_is_refused(place, album):
    """An object that is gone costs its image and no other, and the image can be updated or deleted."""
    images, records = album
    for path in objects_in_order(place)[:2]:
        path.unlink()
    check_refused(place, images, records, {0, 1})
    images.update_image(records[0].id, image(10_000))
    assert images.read_image(records[0].id) == image(10_000)
    assert images.delete_image(records[1].id)


def test_swapped_objects_are_refused(place, album):
    """Two objects that changed places are of no use to each other's image."""
    images, records = album
    first, second, _ = objects_in_order(place)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    check_refused(place, images, records, {0, 1})
    # Not even with the header of the place they are in.
    first.write_bytes(one[:HEADER] + other[HEADER:])
    second.write_bytes(other[:HEADER] + one[HEADER:])
    check_refused(place, images, records, {0, 1})


def test_segment_of_another_version_is_refused(place, images):
    """A segment of an image's older version does not open in its newer one, nor does the whole old object."""
    record = images.save_image(image(3 * SEGMENT, "old"))
    (old,) = place.objects().values()
    before = old.read_bytes()
    images.update_image(record.id, image(3 * SEGMENT, "new"))
    new = objects_in_order(place)[-1]
    after = new.read_bytes()
    parts = segments_of(after)
    for slot in range(3):
        mixed = [*parts[:slot], segments_of(before)[slot], *parts[slot + 1 :]]
        new.write_bytes(after[:HEADER] + b"".join(mixed))
        with pytest.raises(CorruptImage):
            images.read_image(record.id)
    for whole in (before, after[:HEADER] + before[HEADER:]):
        new.write_bytes(whole)
        with pytest.raises(CorruptImage):
            images.read_image(record.id)
    new.write_bytes(after)
    assert images.read_image(record.id) == image(3 * SEGMENT, "new")


def test_object_of_another_store_is_refused(tmp_path):
    """The same image under the same version id in another store has another key and another store id."""
    places = []
    for name in "ab":
        (tmp_path / name).mkdir()
        places.append(Place(tmp_path / name))
        with places[-1].open() as images:
            images.save_image(image(1000))
    (mine,), (theirs,) = (list(place.objects().values()) for place in places)
    assert mine.name == theirs.name
    mine.write_bytes(theirs.read_bytes())
    with places[0].open() as images, pytest.raises(CorruptImage):
        images.read_image(next(images.images()).id)
