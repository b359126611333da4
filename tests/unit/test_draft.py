"""Drafts hold what was written, whatever the order, and never seal twice under one key and nonce."""

import array
import contextlib
import hashlib
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pixstorefs.errors import InvalidInput
from pixstorefs.format import (
    HEADER_SIZE_BYTES,
    MAX_IMAGE_SIZE_BYTES,
    SEALED_SEGMENT_SIZE_BYTES,
    SEGMENT_SIZE_BYTES,
)
from pixstorefs.index.rows import State
from pixstorefs.objects import sealing
from pixstorefs.objects.directory import ObjectDirectory
from pixstorefs.objects.layout import Content
from pixstorefs.objects.reader import ObjectReader
from pixstorefs.store import draft as draft_module
from pixstorefs.store.allocation import Allocator
from pixstorefs.store.draft import Draft
from pixstorefs.store.numbers import Numbers

SEGMENT = SEGMENT_SIZE_BYTES
IMAGE_ID = b"an image's id 16"
# One source for all examples, so that keys only repeat where pixstorefs repeats them.
KEYS = random.Random(1)
DETERMINISTIC = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class RecordingAESGCM:
    """AESGCM, and a note of everything that was sealed: nothing may share key and nonce with another."""

    sealed: dict[tuple[bytes, bytes], bytes]

    def __init__(self, key: bytes) -> None:
        self._key = bytes(key)
        self._cipher = AESGCM(key)

    def encrypt_into(self, nonce, plaintext, aad, out):
        what = hashlib.sha256(bytes([len(aad)]) + aad + bytes(plaintext)).digest()
        assert self.sealed.setdefault((self._key, bytes(nonce)), what) == what, (
            "a (key, nonce) pair was used twice"
        )
        return self._cipher.encrypt_into(nonce, plaintext, aad, out)

    def decrypt_into(self, nonce, sealed, aad, out):
        return self._cipher.decrypt_into(nonce, sealed, aad, out)


@pytest.fixture(autouse=True)
def small_and_recorded(monkeypatch):
    """Little memory, so that spilling is the rule, and a record of everything sealed."""
    monkeypatch.setattr(draft_module, "SEGMENTS_PER_DRAFT", 3)
    monkeypatch.setattr(draft_module, "SEGMENTS_OF_ALL_DRAFTS", 4)
    monkeypatch.setattr(RecordingAESGCM, "sealed", {}, raising=False)
    monkeypatch.setattr(sealing, "AESGCM", RecordingAESGCM)


class Image:
    """One image as the store works on it: a draft, now and then saved, and what it should hold."""

    def __init__(self, folder: str, *, padding: bool = True) -> None:
        (Path(folder) / "objects").mkdir()
        state = State(2, 3, 1, 1, 0, 1, clean=False)
        self.directory = ObjectDirectory(folder, b"the store's id16")
        self.allocator = Allocator(self.directory, Numbers(state), padding=padding, random=KEYS.randbytes)
        self.folder = Path(folder)
        self.reader: ObjectReader | None = None
        self.draft = Draft(self.allocator, IMAGE_ID)
        self.model = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        self.draft.write(offset, data)
        self.note(offset, data)

    def note(self, offset: int, data: bytes) -> None:
        if data:
            self.model.extend(bytes(max(0, offset + len(data) - len(self.model))))
            self.model[offset : offset + len(data)] = data

    def write_failing(self, offset: int, data: bytes, room_segments: int) -> None:
        """A write while files cannot grow beyond some segments; what fails is repeated with room."""
        before = bytes(self.model)
        try:
            with largest_file(HEADER_SIZE_BYTES + room_segments * SEALED_SEGMENT_SIZE_BYTES + 7):
                self.draft.write(offset, data)
        except OSError:
            held = self.read(0, self.draft.size_bytes)
            end = offset + len(data)
            assert len(before) <= len(held) <= max(len(before), end)
            unwritten = before.ljust(len(held), b"\0")
            assert held[:offset] == unwritten[:offset]
            assert held[end:] == unwritten[end:]
            self.draft.write(offset, data)
        self.note(offset, data)

    def truncate(self, size_bytes: int) -> None:
        self.draft.truncate(size_bytes)
        del self.model[size_bytes:]
        self.model.extend(bytes(size_bytes - len(self.model)))

    def prepare(self) -> None:
        self.draft.prepare()

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(length)
        self.draft.read_into(offset, memoryview(out))
        return bytes(out)

    def check(self) -> None:
        assert self.draft.size_bytes == len(self.model)
        assert self.read(0, len(self.model)) == self.model

    def check_sealed(self, content: Content) -> None:
        """The object on disk is whole, and holds the image."""
        assert content.size_bytes == len(self.model)
        reader = ObjectReader(self.directory, content.sealed, IMAGE_ID)
        reader.verify()
        out = memoryview(bytearray(SEGMENT))
        for start in range(0, content.size_bytes, SEGMENT):
            reader.read_segment(start // SEGMENT, out)
            expected = self.model[start : start + SEGMENT]
            assert out[: len(expected)] == expected
        reader.close()

    def save(self) -> None:
        """Seal, and go on with a draft that starts from the saved version."""
        content = self.draft.seal_at_once()
        self.check_sealed(content)
        self.allocator.saved_object(content.sealed.key.version_id)
        self.draft.close()
        self._drop_reader()
        self.reader = ObjectReader(self.directory, content.sealed, IMAGE_ID)
        self.draft = Draft(self.allocator, IMAGE_ID, self.reader, content.size_bytes)

    def fail_to_save(self) -> None:
        """Seal, but the transaction fails."""
        content = self.draft.seal_at_once()
        self.check_sealed(content)
        self.draft.resume(content)

    def give_up_sealing(self, after_steps: int) -> None:
        """A seal that is abandoned half way."""
        steps = self.draft.seal()
        try:
            for _ in range(after_steps):
                next(steps)
        except StopIteration as finished:
            self.draft.resume(finished.value)
        steps.close()

    def objects(self) -> list[str]:
        """Names of all objects."""
        return sorted(path.name for path in (self.folder / "objects").rglob("*") if path.is_file())

    def close(self) -> None:
        """Drop everything; only the saved object may be left."""
        self.draft.close()
        expected = [str(self.reader._sealed.key.version_id)] if self.reader and self.reader.runs else []
        assert self.objects() == expected
        assert self.allocator.segments_in_memory == 0
        self._drop_reader()
        self.directory.close()

    def _drop_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.directory.unlink([self.reader._sealed.key.version_id])


@contextlib.contextmanager
def new_image(*, padding: bool = True) -> Iterator[Image]:
    """An image in a folder of its own; checks that no descriptor is left open."""
    descriptors = os.listdir("/proc/self/fd")
    with tempfile.TemporaryDirectory() as folder:
        image = Image(folder, padding=padding)
        yield image
        image.close()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond this (EFBIG): a disk that really fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def pattern(length: int, seed: int) -> bytes:
    """Bytes that differ from seed to seed and from segment to segment."""
    return b"".join(
        hashlib.sha256(b"%d %d" % (seed, start)).digest()[:1] * min(SEGMENT, length - start)
        for start in range(0, length, SEGMENT)
    )


# Near the borders of segments is where mistakes are.
BORDERS = st.builds(
    lambda segments, step: max(0, segments * SEGMENT + step),
    st.integers(0, 8),
    st.sampled_from([0, 0, 0, -1, 1, 1000, 65536]),
)
LENGTHS = st.sampled_from(
    [0, 1, 1000, 65536, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 3 * SEGMENT + 5, 5 * SEGMENT]
)
# Programs mostly append: so that front-to-back sealing is met often enough, "append" has no offset.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), LENGTHS),
        st.tuples(st.just("append"), LENGTHS),
        st.tuples(st.just("write"), BORDERS, LENGTHS),
        st.tuples(st.just("write_failing"), BORDERS, LENGTHS, st.integers(0, 4)),
        st.tuples(st.just("truncate"), BORDERS),
        st.tuples(st.just("prepare")),
        st.tuples(st.just("save")),
        st.tuples(st.just("fail_to_save")),
        st.tuples(st.just("give_up_sealing"), st.integers(0, 3)),
    ),
    max_size=14,
)


def run(image: Image, steps) -> None:
    for number, (name, *arguments) in enumerate(steps):
        match name:
            case "append":
                image.write(len(image.model), pattern(arguments[0], number))
            case "write":
                image.write(arguments[0], pattern(arguments[1], number))
            case "write_failing":
                image.write_failing(arguments[0], pattern(arguments[1], number), arguments[2])
            case _:
                getattr(image, name)(*arguments)
        image.check()
    image.save()
    image.check()


@given(steps=STEPS, padding=st.booleans())
@DETERMINISTIC
@example(steps=[("write", 2 * SEGMENT, 1000), ("write", 0, 5 * SEGMENT)], padding=True)
@example(steps=[("append", 5 * SEGMENT), ("truncate", 3 * SEGMENT), ("append", 1)], padding=True)
@example(steps=[("append", 3 * SEGMENT + 5), ("truncate", 1), ("truncate", 5 * SEGMENT)], padding=True)
@example(
    steps=[("append", 1000), ("write_failing", 1000, 5 * SEGMENT, 1), ("truncate", 8 * SEGMENT)], padding=True
)
def test_draft_is_a_bytearray(steps, padding):
    """Whatever is done to a draft, it reads and saves like a bytearray; no (key, nonce) is used twice."""
    with new_image(padding=padding) as image:
        run(image, steps)
    assert RecordingAESGCM.sealed or not image.model.strip(b"\0")


@pytest.mark.parametrize(
    "step_bytes", [1, SEGMENT // 2, SEGMENT - 1, SEGMENT, SEGMENT + 1, 100_000, 8 * SEGMENT]
)
@pytest.mark.parametrize("size_bytes", [SEGMENT - 1, SEGMENT, SEGMENT + 1, 9 * SEGMENT])
def test_appending_seals_as_it_goes(size_bytes, step_bytes):
    """What is written front to back, in steps of any size, is sealed once and never spilled."""
    if step_bytes == 1:
        size_bytes = min(size_bytes, SEGMENT + 1)
        step_bytes = 1021
    with new_image(padding=False) as image:
        content = pattern(size_bytes, 5)
        for start in range(0, size_bytes, step_bytes):
            image.write(start, content[start : start + step_bytes])
            sealed_segments = len(RecordingAESGCM.sealed)
            behind = start // SEGMENT
            assert sealed_segments >= behind
            assert image.allocator.segments_in_memory <= 2 + step_bytes // SEGMENT
        image.save()
        assert len({key for key, _ in RecordingAESGCM.sealed}) == 1
        assert len(RecordingAESGCM.sealed) == -(-size_bytes // SEGMENT)


@pytest.mark.parametrize("size_bytes", [0, 4000, SEGMENT, 3 * SEGMENT, 3 * SEGMENT + 4000])
def test_buffers_of_any_shape(size_bytes):
    """Wide items and dimensions are the bytes that they lie in memory as; what is scattered is refused."""
    content = random.Random(size_bytes).randbytes(size_bytes)
    kinds = [array.array("I", content)]
    if size_bytes % 500 == 0 and size_bytes:
        kinds.append(memoryview(content).cast("B", (size_bytes // 500, 500)))
    for data in kinds:
        with new_image() as image:
            image.draft.write(0, data)
            image.note(0, content)
            image.check()
            if size_bytes:
                with pytest.raises(InvalidInput):
                    image.draft.write(0, memoryview(content)[::2])
            image.save()


def test_object_made_ahead_is_the_one_that_is_written():
    """Nothing is left over: not of what nobody wrote to, nor where there was no room for it."""
    with new_image() as image:
        image.prepare()
        image.prepare()
        assert len(image.objects()) == 1
        image.draft.close()
        assert image.objects() == []
        image.draft = Draft(image.allocator, IMAGE_ID)
        image.prepare()
        made = image.objects()
        image.write(0, b"content")
        image.save()
        assert image.objects() == made


def test_not_many_objects_are_made_ahead():
    """Each is a descriptor of the process."""
    with new_image() as image:
        drafts = [Draft(image.allocator, IMAGE_ID) for _ in range(100)]
        for draft in drafts:
            draft.prepare()
        assert len(image.objects()) == 32
        for draft in drafts:
            draft.write(0, b"all the same")
            draft.resume(draft.seal_at_once())
            draft.close()


def test_object_that_cannot_be_made_ahead_is_made_later():
    """A disk that is full for a moment costs nothing but the time that would have been saved."""
    with new_image() as image:
        (image.folder / "objects").rmdir()
        image.prepare()
        (image.folder / "objects").mkdir()
        image.write(0, b"content")
        image.save()


def test_memory_is_bounded():
    """All drafts together keep no more segments in memory than allowed; the rest is spilled, encrypted."""
    with new_image() as image:
        others = [Draft(image.allocator, IMAGE_ID) for _ in range(3)]
        for index in range(12, 0, -1):
            image.write(index * SEGMENT, pattern(SEGMENT, index))
            for draft in others:
                draft.write(index * SEGMENT, pattern(SEGMENT, index))
            # One segment each is what a draft needs to work at all.
            assert image.allocator.segments_in_memory <= draft_module.SEGMENTS_OF_ALL_DRAFTS + len(others)
        image.check()
        image.save()
        for draft in others:
            draft.close()


def test_spill_is_bounded_by_what_the_draft_holds():
    """Segments rewritten in random order, a hundred times as many as there are: their room is used again."""
    order = random.Random(7)
    segments = 12
    with new_image() as image:
        image.write(0, pattern(segments * SEGMENT, 0))
        for number in range(100 * segments):
            image.write(order.randrange(segments) * SEGMENT + 5, pattern(100, number))
        image.check()
        image.truncate(2 * SEGMENT + 5)
        image.write(2 * SEGMENT, pattern(segments * SEGMENT, 3))
        image.check()
        assert spilled_bytes(image) <= segments * SEALED_SEGMENT_SIZE_BYTES
        image.save()
        image.check()


def spilled_bytes(image):
    """The length of the file without a name that the draft spills into."""
    files = [f"/proc/self/fd/{descriptor}" for descriptor in os.listdir("/proc/self/fd")]
    [spill] = [file for file in files if os.path.lexists(file) and "/objects/spill-" in os.readlink(file)]
    return os.stat(spill).st_size


def test_slot_that_could_not_be_written_stays_free():
    """A disk that fails while a segment is spilled loses neither the segment nor room."""
    with new_image() as image:
        for index in range(8):
            image.write(index * SEGMENT + 1, pattern(SEGMENT - 1, index))
        for number in range(20):
            image.write_failing(number % 8 * SEGMENT + 3, pattern(50, number), 2)
        image.check()
        assert spilled_bytes(image) <= 8 * SEALED_SEGMENT_SIZE_BYTES
        image.save()
        image.check()


def test_nothing_is_on_disk_in_the_clear():
    """Neither the object under construction nor the spill holds what was written; the spill has no name."""
    secret = b"Nobody should read this. " * 8
    with new_image() as image:
        image.write(0, secret * 2000)
        for index in range(20, 5, -1):
            image.write(index * SEGMENT + 5, secret)
        names = [path.name for path in (image.folder / "objects").iterdir()]
        assert names == ["0"]
        checked = 0
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(image.folder)):
                    held = os.pread(int(descriptor), 8 << 20, 0)
                    assert secret[:25] not in held
                    checked += len(held)
        assert checked > 10 * SEGMENT


def test_beyond_the_largest_image():
    """16 TiB is the end: one byte more is EFBIG, and the draft is what it was."""
    with new_image() as image:
        image.write(0, b"before")
        for refused in (
            lambda: image.draft.write(MAX_IMAGE_SIZE_BYTES, b"x"),
            lambda: image.draft.truncate(MAX_IMAGE_SIZE_BYTES + 1),
        ):
            with pytest.raises(OSError, match="too large"):
                refused()
            image.check()
        image.draft.truncate(MAX_IMAGE_SIZE_BYTES)
        content = image.draft.seal_at_once()
        assert content.size_bytes == MAX_IMAGE_SIZE_BYTES
        assert content.sealed.runs == ((0, 1),)
        image.allocator.discard_finished(content.sealed.key.version_id)


@pytest.mark.parametrize("room_segments", range(9))
def test_failure_while_sealing(room_segments):
    """A disk that fails while the object is finished leaves the draft as it was, ready to be sealed again."""
    with new_image() as image:
        image.write(3 * SEGMENT, pattern(5 * SEGMENT + 9, 1))
        image.write(0, pattern(3 * SEGMENT, 2))
        with (
            largest_file(room_segments * SEALED_SEGMENT_SIZE_BYTES),
            pytest.raises(OSError, match="too large"),
        ):
            image.draft.seal_at_once()
        image.check()
        image.write(10, b"changed since")
        image.save()
        image.check()
