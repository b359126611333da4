"""Text that others chose (names, paths, what a file says), made fit for a terminal and for a log."""

from typing import Self


class ReportLine(str):
    """A line for a person, which may name images. `for_log` says the same with their inode numbers.

    A log lies on the disk in the clear, and the names in a store do not. It is a string, because most who get
    one only show it. Who has to choose takes ReportLine, so that mypy refuses a line nobody thought about.
    """

    for_log: str

    def __new__(cls, text: str, for_log: str | None = None) -> Self:
        """Without `for_log` the line names no image."""
        line = super().__new__(cls, text)
        line.for_log = text if for_log is None else for_log
        return line

    @classmethod
    def about(cls, path: str, ino: int, what: str) -> Self:
        """What is to be said of one image."""
        return cls(f"{path}: {what}", f"inode {ino}: {what}")

    def told(self, *, named: bool) -> str:
        """The line with names of images, or without."""
        return str(self) if named else self.for_log


def printable(text: str) -> str:
    """The text in one line: what is no printable character becomes its escape, a newline `\\n`.

    So a name can neither forge another line nor steer a terminal (ESC), nor turn the reading direction of
    what follows (U+202E). Bytes that are no UTF-8, which Python keeps as surrogates, show as `\\udcff`.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
