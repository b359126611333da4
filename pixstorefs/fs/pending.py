"""Pending names: files that were created and never saved. They exist in the mount and nowhere on disk.

A pending file hides the saved names it was renamed over, also when it was renamed on since: the index keeps
them until the pending file is saved, so a crash before leaves the old images. Directories remember here when
a pending name changed them; the next save or change in them writes it down.
"""

from collections import Counter

from pixstorefs.fs.open_image import OpenImage
from pixstorefs.records import Entry


class PendingNames:
    """The pending names of a mount, by directory."""

    def __init__(self) -> None:
        self._directories: dict[int, dict[bytes, OpenImage]] = {}
        self._changed_ns: dict[int, int] = {}
        # Saved names that the mount does not show: whose they are in the index, and who hides them.
        self._hidden: dict[tuple[int, bytes], tuple[int, OpenImage]] = {}
        self._hidden_of: Counter[int] = Counter()

    def get(self, parent: int, name: bytes) -> OpenImage | None:
        """The pending file of this name."""
        names = self._directories.get(parent)
        return names.get(name) if names else None

    def has(self, parent: int) -> bool:
        """Whether a directory has pending names."""
        return bool(self._directories.get(parent))

    def add(self, image: OpenImage) -> None:
        """A file with a pending name appeared."""
        entry = _entry(image)
        self._directories.setdefault(entry.parent, {})[entry.name] = image

    def discard(self, image: OpenImage) -> None:
        """The pending name is saved, renamed or removed."""
        entry = _entry(image)
        names = self._directories.get(entry.parent, {})
        if names.get(entry.name) is image:
            del names[entry.name]
        if not names:
            self._directories.pop(entry.parent, None)

    def behind(self, parent: int, cookie: int) -> list[tuple[int, bytes, OpenImage]]:
        """Pending names of a directory behind a cookie, in cookie order."""
        names = self._directories.get(parent)
        if not names:
            return []
        found = [(_entry(image).cookie, name, image) for name, image in names.items()]
        return sorted(item for item in found if item[0] > cookie)

    def hide(self, parent: int, name: bytes, ino: int, by: OpenImage) -> None:
        """A pending file was renamed over a saved name."""
        assert by.pending is not None
        self._hidden[parent, name] = (ino, by)
        self._hidden_of[ino] += 1
        by.pending.hides.add((parent, name))

    def hand_over(self, parent: int, name: bytes, to: OpenImage) -> None:
        """A hidden name is another pending file's now: it goes when that one is saved."""
        ino, _ = self._hidden[parent, name]
        self.uncover(parent, name)
        self.hide(parent, name, ino, to)

    def uncover(self, parent: int, name: bytes) -> int | None:
        """A name is hidden no more, for it is gone or shown again; whose it was."""
        ino, by = self._hidden.pop((parent, name), (None, None))
        if ino is None or by is None:
            return None
        self._hidden_of[ino] -= 1
        if not self._hidden_of[ino]:
            del self._hidden_of[ino]
        if by.pending is not None:
            by.pending.hides.discard((parent, name))
        return ino

    def hides(self, parent: int, name: bytes) -> bool:
        """Whether a saved name is hidden."""
        return (parent, name) in self._hidden

    def hidden_in(self, parent: int) -> list[bytes]:
        """The hidden names of a directory."""
        return [name for directory, name in self._hidden if directory == parent]

    def hidden_of(self, ino: int) -> int:
        """How many names of an inode are hidden."""
        return self._hidden_of[ino] if self._hidden_of else 0

    def touch(self, parent: int, now_ns: int) -> None:
        """A pending name changed a directory, which the index does not know."""
        self._changed_ns[parent] = now_ns

    def changed_ns(self, parent: int) -> int | None:
        """When a pending name last changed a directory, if the index does not know it."""
        return self._changed_ns.get(parent)

    def take_changed_ns(self, parent: int) -> int | None:
        """The same, and it is the caller's to write down."""
        return self._changed_ns.pop(parent, None)

    def all_changed(self) -> dict[int, int]:
        """All directories with a change that the index does not know."""
        return dict(self._changed_ns)


def _entry(image: OpenImage) -> Entry:
    assert image.pending is not None
    return image.pending.entry
