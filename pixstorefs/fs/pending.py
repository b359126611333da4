"""Pending names: files that were created and never saved. They exist in the mount and nowhere on disk.

A pending name hides the saved one it was renamed over: the index keeps that one until the pending file is
saved, so a crash before leaves the old image. Directories remember here when a pending name changed them;
the next save or change in them writes it down.
"""

from pixstorefs.fs.open_image import OpenImage
from pixstorefs.store.records import Entry


class PendingNames:
    """The pending names of a mount, by directory."""

    def __init__(self) -> None:
        self._directories: dict[int, dict[bytes, OpenImage]] = {}
        self._changed_ns: dict[int, int] = {}

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
