"""What others chose, as it reaches a terminal or a log."""

import pytest

from pixstorefs.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe & Übermut.jpg", "Größe & Übermut.jpg"),
        ("a\nb", r"a\nb"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("gpj.\u202ecod", r"gpj.\u202ecod"),
        ("one\u2028two", r"one\u2028two"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """Letters stay; controls, line and direction marks and stray bytes become escapes."""
    assert printable(text) == shown
    assert printable(shown) == shown
