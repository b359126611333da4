"""Nothing of what is stored may lie on the disk in the clear, mounted or not: contents, names, metadata."""

import os
import random
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pictures
import pytest
from support import Mount

as_root = pytest.mark.skipif(not pictures.IS_ROOT, reason="the daemon lets nobody but root look at its files")

RUN_SIZE_BYTES = 16
_WORD_SIZE_BYTES = 8
# Runs of hardly any different bytes (zeros, a white area, FF FF FF 00) are no sign of a leak: the disk is
# full of them, and a disk that shows only them tells nothing about a picture.
_DISTINCT_BYTES = 5
_ONE_BYTE_WORDS = {byte * 0x0101010101010101 for byte in range(256)}
# Small, for chunks of zeros are passed over: most of journal and reserve, 20 MB in every store.
_CHUNK_SIZE_BYTES = 1 << 16
_OVERLAP_SIZE_BYTES = 4096
# Shorter names and values turn up in random bytes by chance.
_SHORTEST_TEXT_BYTES = 5


@dataclass
class Searcher:
    """Finds every run of 16 bytes that a file shares with any of the plaintexts, at any offset of both.

    Sixteen bytes of a plaintext, wherever they start, hold one whole word of eight bytes at an offset that
    is a multiple of eight. So the words at those offsets are looked for at every offset of the file, and
    where one is found, its neighbourhood is compared. Words of one repeated byte are left out: some pictures
    have many thousands of them.
    """

    plaintexts: Sequence[bytes]
    texts: Iterable[bytes] = ()
    _places: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, plaintext in enumerate(self.plaintexts):
            words = memoryview(plaintext)[: len(plaintext) // 8 * 8].cast("Q")
            for index, word in enumerate(words):
                if word in _ONE_BYTE_WORDS:
                    continue
                self._places.setdefault(word, []).append((number, index * _WORD_SIZE_BYTES))

    def leaks(self, path: Path) -> list[str]:
        """What a file shows, for a failing test to say."""
        found = set()
        with open(path, "rb", opener=_open_unless_gone) as file:
            before = b""
            while chunk := file.read(_CHUNK_SIZE_BYTES):
                data = before + chunk
                before = data[-_OVERLAP_SIZE_BYTES:]
                if data == bytes(len(data)):
                    continue  # nothing that is looked for is of so few different bytes
                found |= {f"{path}: plaintext {run!r}" for run in self.runs(data)}
                found |= {f"{path}: text {text!r}" for text in self.texts if text in data}
        return sorted(found)

    def runs(self, data: bytes) -> Iterator[bytes]:
        """Every place in `data` where a run of a plaintext lies."""
        for phase in range(_WORD_SIZE_BYTES):
            end = phase + (len(data) - phase) // _WORD_SIZE_BYTES * _WORD_SIZE_BYTES
            words = memoryview(data)[phase:end].cast("Q")
            if self._places.keys().isdisjoint(words):
                continue
            for index, word in enumerate(words):
                for number, at in self._places.get(word, ()):
                    run = _common_run(data, phase + index * _WORD_SIZE_BYTES, self.plaintexts[number], at)
                    if run:
                        yield run
                        break


def _open_unless_gone(path: str, flags: int) -> int:
    """The object of a replaced version may be unlinked between the listing and the look into it."""
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(os.devnull, flags)


def _common_run(data: bytes, at: int, plaintext: bytes, plain_at: int) -> bytes | None:
    """Sixteen or more equal bytes around two equal words, unless there is nothing to be seen in them."""
    start = 0
    while start < RUN_SIZE_BYTES and at - start > 0 and plain_at - start > 0:
        if data[at - start - 1] != plaintext[plain_at - start - 1]:
            break
        start += 1
    end = _WORD_SIZE_BYTES
    while end < RUN_SIZE_BYTES and at + end < len(data) and plain_at + end < len(plaintext):
        if data[at + end] != plaintext[plain_at + end]:
            break
        end += 1
    run = data[at - start : at + end]
    return run if len(run) >= RUN_SIZE_BYTES and len(set(run)) >= _DISTINCT_BYTES else None


def spellings(texts: Iterable[bytes]) -> list[bytes]:
    """Texts as they are and in UTF-16, both ways round."""
    found = set()
    for text in texts:
        if len(text) >= _SHORTEST_TEXT_BYTES:
            found.add(text)
            decoded = text.decode("utf-8", "surrogateescape")
            found |= {decoded.encode(f"utf-16-{end}", "surrogatepass") for end in ("le", "be")}
    return sorted(found)


EXIF_TEXTS = [
    text.encode()
    for text in (
        pictures.DESCRIPTION,
        pictures.ARTIST,
        pictures.CAMERA,
        pictures.COMMENT,
        pictures.DATE,
    )
]


def everything_in(tree: Path) -> Searcher:
    """A searcher for all contents, names, targets and attributes below a directory."""
    plaintexts, texts = [], list(EXIF_TEXTS)
    for folder, directories, files in os.walk(os.fsencode(tree)):
        for name in directories + files:
            path = folder + b"/" + name
            texts.append(name)
            if os.path.islink(path):
                texts.append(os.readlink(path))
                continue
            for attribute in os.listxattr(path):
                texts += [attribute.encode(), os.getxattr(path, attribute)]
            if os.path.isfile(path) and os.path.getsize(path) < 2_000_000:
                with open(path, "rb") as file:
                    plaintexts.append(file.read())
    return Searcher(plaintexts, [text for text in spellings(texts) if len(set(text)) >= _DISTINCT_BYTES])


def stored_files(mount: Mount) -> list[Path]:
    """Everything on the disk that this program wrote: the store, and logs, keys and caches of the user."""
    places = [mount.store, *mount.directory.glob("xdg-*")]
    return [path for place in places for path in place.rglob("*") if path.is_file()]


def open_files(pid: int) -> list[Path]:
    """Regular files that the daemon has open, also where they have no name any more; only root may know."""
    if not pictures.IS_ROOT:
        return []
    folder = Path(f"/proc/{pid}/fd")
    return [path for path in folder.iterdir() if os.path.isfile(path)]


def assert_no_leaks(searcher: Searcher, paths: list[Path]) -> None:
    assert paths
    leaks = [leak for path in paths for leak in searcher.leaks(path)]
    assert not leaks, f"{len(leaks)} leaks:\n" + "\n".join(leaks[:20])


class TestSearcher:
    """A searcher that finds nothing proves nothing until it has found something."""

    @pytest.mark.parametrize("at", range(17))
    def test_run_of_sixteen_is_found_at_every_offset(self, tmp_path: Path, at: int) -> None:
        plaintext, noise = pictures.jpeg(1, (64, 48)), random.Random(7).randbytes(10_000)
        searcher = Searcher([b"", b"short", plaintext])
        start = len(plaintext) // 2 + at
        file = tmp_path / "file"
        file.write_bytes(noise[: 5000 + 3 * at] + plaintext[start : start + 16] + noise[5000:])
        assert searcher.leaks(file)
        file.write_bytes(noise[: 5000 + 3 * at] + plaintext[start : start + 15] + noise[5000:])
        assert not searcher.leaks(file)

    @pytest.mark.parametrize("at", [0, _CHUNK_SIZE_BYTES - 8, _CHUNK_SIZE_BYTES - 1, _CHUNK_SIZE_BYTES + 100])
    def test_run_over_the_end_of_a_chunk(self, tmp_path: Path, at: int) -> None:
        plaintext = random.Random(3).randbytes(1000)
        noise = random.Random(8).randbytes(_CHUNK_SIZE_BYTES + 1000)
        (tmp_path / "file").write_bytes(noise[:at] + plaintext[501:517] + noise[at:])
        assert Searcher([plaintext]).leaks(tmp_path / "file")

    def test_zeros_are_no_leak(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(bytes(5000) + b"\xff\xff\xff\0" * 1000)
        assert not Searcher([bytes(1000) + b"\xff\xff\xff\0" * 100]).leaks(tmp_path / "file")

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
    def test_names_are_found_in_every_spelling(self, tmp_path: Path, encoding: str) -> None:
        (tmp_path / "file").write_bytes(b"\0" * 999 + "Größe — 写真 🌄.jpg".encode(encoding) + b"\0" * 999)
        assert Searcher([], spellings(["Größe — 写真 🌄.jpg".encode()])).leaks(tmp_path / "file")

    def test_canary_in_a_copy_of_a_store(self, mounted: Mount) -> None:
        """The same search as below, over the same files, finds what is planted in any one of them."""
        source = mounted.directory / "source"
        pictures.make_album(source)
        searcher = everything_in(source)
        canary = pictures.jpeg(42, (320, 200))[3001:3017]
        subprocess.run(["cp", "-a", source, mounted.mountpoint / "in"], check=True)
        mounted.unmount()
        for path in stored_files(mounted):
            assert not searcher.leaks(path)
            content = path.read_bytes()
            middle = len(content) // 2
            for planted in (canary, b"other directory.jpg", pictures.CAMERA.encode("utf-16-le")):
                copy = mounted.directory / "planted"
                copy.write_bytes(content[:middle] + planted + content[middle:])
                assert searcher.leaks(copy), (path, planted)
        mounted.mount()


def test_nothing_is_stored_in_the_clear(mounted: Mount) -> None:
    """While mounted, with the index in its log; after edits and deletes; after the end; after a crash."""
    source, inside = mounted.directory / "source", mounted.mountpoint / "Private Album"
    pictures.make_album(source)
    searcher = everything_in(source)
    searcher.texts = [*searcher.texts, *spellings([b"Private Album", b"renamed holiday.jpg"])]
    subprocess.run(["cp", "-a", source, inside], check=True)
    # What SQLite does with large sorts and old pages is worth looking at, too.
    (inside / "every format" / "baseline.jpg").rename(inside / "renamed holiday.jpg")
    (inside / "every format" / "animated.gif").unlink()
    for name in pictures.ODD_NAMES[::2]:
        os.unlink(os.fsencode(inside / "odd names") + b"/" + name)
    assert_no_leaks(searcher, [*stored_files(mounted), *open_files(mounted.pid)])
    mounted.unmount()
    assert_no_leaks(searcher, stored_files(mounted))
    mounted.mount()
    (inside / "renamed holiday.jpg").write_bytes(pictures.jpeg(1))
    mounted.kill()
    assert_no_leaks(searcher, stored_files(mounted))
    mounted.mount()
    assert (inside / "renamed holiday.jpg").read_bytes() == pictures.jpeg(1)
    assert_no_leaks(searcher, stored_files(mounted))


def test_sizes_times_and_number_of_names_are_hidden(mounted: Mount) -> None:
    """What is not text: raw 64-bit times and sizes, as a database would keep them, in both byte orders."""
    sizes, times_ns = [], []
    source = random.Random(4)
    for number in range(50):
        path = mounted.mountpoint / f"{number}.jpg"
        sizes.append(70_001 + 1009 * number)
        times_ns.append(1_234_567_890_123_456_789 + source.randrange(10**17))
        path.write_bytes(source.randbytes(sizes[-1]))
        os.utime(path, ns=(times_ns[-1], times_ns[-1]))
    values = [time_ns.to_bytes(8, order) for time_ns in times_ns for order in ("big", "little")]
    searcher = Searcher([], values)
    assert_no_leaks(searcher, [*stored_files(mounted), *open_files(mounted.pid)])
    mounted.unmount()
    assert_no_leaks(searcher, stored_files(mounted))
    # Padding: no object is as long as its picture, or tells its exact length in any constant way.
    object_sizes = sorted(
        path.stat().st_size for path in (mounted.store / "objects").rglob("*") if path.is_file()
    )
    assert len(object_sizes) == 50
    assert len({have - want for have, want in zip(object_sizes, sizes, strict=True)}) > 10
    mounted.mount()


@as_root
def test_large_file_under_construction(mounted: Mount) -> None:
    """Written out of order and still open: memory does not hold it, and what is spilled has no name.

    Each page repeats 64 bytes of its own, so that all of the file is searched for with few words.
    """
    size_bytes, page_size_bytes = 48 << 20, 4096
    source = random.Random(9)
    pages = [source.randbytes(64) for _ in range(size_bytes // page_size_bytes)]
    searcher = Searcher([page * 2 for page in pages], spellings([b"panorama in progress.tiff"]))
    order = list(range(size_bytes // (1 << 17)))
    source.shuffle(order)
    path = mounted.mountpoint / "panorama in progress.tiff"
    # The kernel would write its pages back in ascending order, which needs no scratch space.
    with open(path, "wb", buffering=0, opener=without_cache) as file:
        pages_each = (1 << 17) // page_size_bytes
        for segment in order:
            file.seek(segment << 17)
            file.write(
                b"".join(page * 64 for page in pages[segment * pages_each : (segment + 1) * pages_each])
            )
        spill = nameless_file(mounted.pid)
        assert spill.stat().st_size > 8 << 20
        assert_no_leaks(searcher, [*stored_files(mounted), *open_files(mounted.pid)])
        assert not list(mounted.store.rglob("spill*"))
    mounted.remount()
    assert path.read_bytes() == b"".join(page * 64 for page in pages)
    assert_no_leaks(searcher, stored_files(mounted))


@as_root
def test_spill_of_a_killed_daemon_is_gone(mounted: Mount) -> None:
    """The kernel frees a file without a name: a crash leaves no scratch space behind, and no object."""
    source = random.Random(10)
    with open(mounted.mountpoint / "lost.tiff", "wb", buffering=0, opener=without_cache) as file:
        for segment in reversed(range(384)):
            os.pwrite(file.fileno(), source.randbytes(1 << 17), segment << 17)
        assert nameless_file(mounted.pid).stat().st_size > 0
        mounted.kill()
        with pytest.raises(OSError, match=r"endpoint is not connected|connection abort"):
            file.close()
    mounted.mount()
    assert list(mounted.mountpoint.iterdir()) == []
    mounted.unmount()
    assert sum(path.stat().st_size for path in (mounted.store / "objects").rglob("*") if path.is_file()) == 0
    mounted.mount()


def without_cache(path: str, flags: int) -> int:
    """Every write goes to the daemon as it is made."""
    return os.open(path, flags | os.O_DIRECT, 0o600)


def nameless_file(pid: int) -> Path:
    """The scratch space of the daemon: below the store, large, and with no name any more."""
    [found] = [path for path in open_files(pid) if os.readlink(path).endswith(" (deleted)")]
    assert "/store/" in os.readlink(found)
    return found
