"""Text that others chose (names, paths, what a file says), made fit for a terminal and for a log."""


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
