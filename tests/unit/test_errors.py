"""One class of error for each reaction: scripts tell them apart by exit status."""

from pixstorefs import errors
from pixstorefs.errors import PixstoreError


def test_exit_codes_tell_errors_apart() -> None:
    """No two classes of error end a command with the same status."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PixstoreError)
    ]
    codes = {kind.exit_code: kind.__name__ for kind in kinds}
    assert len(kinds) > 10
    assert len(codes) == len(kinds)
