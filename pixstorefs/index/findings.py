"""What a check finds: plain data, in the words of the person whose images they are."""

from dataclasses import dataclass
from enum import Enum


class Reaction(Enum):
    """What a finding asks for; its value orders them, the worst last."""

    NOTE = 0  # nothing is wrong, or the next mount sees to it
    TIDY = 1  # no image is affected: space is wasted
    RESTORE = 2  # an image is damaged or lost
    MEND = 3  # index, header or key slots are damaged: `check --repair`, or a backup of the store


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `path` is inside the mount, where it is known."""

    kind: str
    reaction: Reaction
    message: str
    path: str | None = None
    ino: int | None = None
    image_id: bytes | None = None
    version_id: int | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A row of the index that breaks one of its invariants: which one, and which row."""

    kind: str
    what: str
    ino: int | None = None
    parent: int | None = None
    name: bytes | None = None
    version_id: int | None = None
    reaction: Reaction = Reaction.MEND
