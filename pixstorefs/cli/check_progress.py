"""How far a check is: a bar on a terminal, and a small file from which an interrupted one goes on.

The file lies in the user's state directory and holds numbers only: what was bad is looked at again.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import platformdirs

from pixstorefs.check.check import Progress
from pixstorefs.disk.folder import Folder

SAVE_INTERVAL_S = 30.0
_BAR_INTERVAL_S = 0.1


class Bookmark:
    """Where a check of one store was interrupted."""

    def __init__(self, store_id: bytes) -> None:
        self._folder = platformdirs.user_state_dir("pixstorefs", appauthor=False)
        self._path = os.path.join(self._folder, f"check-{store_id.hex()}.json")

    def load(self, progress: Progress) -> float | None:
        """Set `progress` to where the last check stopped; returns the seconds it took until then.

        None where no check was interrupted, or the file is not what we wrote.
        """
        try:
            with open(self._path, encoding="utf-8") as file:
                fields = json.load(file)
            loaded = [int(fields[name]) for name in ("after_version_id", "images", "bytes")]
            bad = [int(version_id) for version_id in fields["bad_version_ids"]]
            seconds = float(fields["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        progress.after_version_id, progress.images, progress.verified_bytes = loaded
        progress.finished_bytes = progress.verified_bytes
        progress.bad_version_ids = bad
        return seconds

    def save(self, progress: Progress, seconds: float) -> None:
        """Remember `progress`. Raises OSError."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        content = {
            "after_version_id": progress.after_version_id,
            "bad_version_ids": progress.bad_version_ids,
            "images": progress.images,
            "bytes": progress.finished_bytes,
            "seconds": seconds,
        }
        with closing(Folder.at(self._folder)) as folder:
            folder.replace(os.path.basename(self._path), json.dumps(content).encode())

    def remove(self) -> None:
        """The check reached its end."""
        try:
            os.unlink(self._path)
        except OSError:
            pass  # none was written; or nothing can be, and then none is


class Regularly:
    """Calls something, but not more often than an interval allows."""

    def __init__(self, interval_s: float, action: Callable[[], None]) -> None:
        self._interval_s = interval_s
        self._action = action
        self._next_s = time.monotonic() + interval_s

    def __call__(self) -> None:
        if time.monotonic() >= self._next_s:
            self._action()
            self._next_s = time.monotonic() + self._interval_s


@contextmanager
def bar(progress: Progress, *, shown: bool, label: str = "verifying") -> Iterator[Callable[[], None]]:
    """A progress bar on stderr while the block runs; gives what has to be called to move it."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    columns = (
        TextColumn(label),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)

        def update() -> None:
            total_bytes = max(progress.total_bytes, progress.verified_bytes)
            bars.update(task, completed=progress.verified_bytes, total=total_bytes)

        yield Regularly(_BAR_INTERVAL_S, update)
