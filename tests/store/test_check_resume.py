"""An interrupted check: what it says of itself, and what is counted when it goes on."""

from contextlib import closing

import pytest
from stores import Place, image, save_file

from pixstorefs.check.check import Check, Progress
from pixstorefs.check.view import StoreView
from pixstorefs.cli.check_progress import Bookmark
from pixstorefs.cli.check_report import CheckReport
from pixstorefs.keys.secrets import secret_from_keyfile

# Of a longer one than this a check says after each segment how far it is.
_LONG_SIZE_BYTES = 17 << 20


def test_an_image_in_which_a_check_was_interrupted_is_counted_once(place: Place) -> None:
    """Bytes and images are in the end what a check without interruption tells, however often it stops."""
    place.open().close()
    with closing(place.open_store()) as store:
        for name, size_bytes in (("a", 1000), ("b", _LONG_SIZE_BYTES), ("c", 2000)):
            content = image(size_bytes, name)
            save_file(store, name, lambda draft, content=content: draft.write(0, content))  # type: ignore[misc]
    with StoreView(str(place.path), secret_from_keyfile(place.keyfile)) as view:
        whole = Progress()
        assert list(Check(view, whole).run()) == []
        bookmark = Bookmark(view.store_id)
        progress = Progress()
        for stop_at_bytes in (5 << 20, 9 << 20):
            with pytest.raises(KeyboardInterrupt):
                _check_until(view, progress, stop_at_bytes)
            assert (progress.images, progress.verified_bytes > 5 << 20) == (1, True)
            bookmark.save(progress, 1.0)
            progress = Progress()
            assert bookmark.load(progress) == 1.0
        assert list(Check(view, progress).run()) == []
    assert (progress.images, progress.verified_bytes) == (whole.images, whole.verified_bytes)


def _check_until(view: StoreView, progress: Progress, stop_at_bytes: int) -> None:
    def moved() -> None:
        if progress.verified_bytes > stop_at_bytes:
            raise KeyboardInterrupt

    progress.moved = moved
    list(Check(view, progress).run())


def test_an_interrupted_check_does_not_speak_for_all_images(capsys: pytest.CaptureFixture[str]) -> None:
    """No problem was found so far, in what was looked at."""
    CheckReport(images=249, total_images=404, interrupted=True).show_text()
    assert capsys.readouterr().out.startswith("verified 249 of 404 images so far, 0.0 MB")
    CheckReport(images=404, total_images=404).show_text()
    assert capsys.readouterr().out.startswith("verified 404 images, 0.0 MB")
