"""What a check tells at its end: for people one line a problem, for programs one JSON object."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from pixstorefs.cli import console
from pixstorefs.errors import CorruptImage, CorruptStore
from pixstorefs.index.findings import Finding, Reaction

_EXIT_TIDY = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_EXIT_STATUS = {
    Reaction.NOTE: 0,
    Reaction.TIDY: _EXIT_TIDY,
    Reaction.RESTORE: CorruptImage.exit_code,
    Reaction.MEND: CorruptStore.exit_code,
}


@dataclass(slots=True)
class CheckReport:
    """Counts and findings of one check.

    `done`: what a repair did; `left`: what is still wrong after it; `not_remembered`: why an interrupted
    check cannot be resumed.
    """

    findings: list[Finding] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    left: list[Finding] | None = None
    images: int = 0
    total_images: int = 0
    verified_bytes: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    not_remembered: str | None = None
    _since_s: float = field(default_factory=time.monotonic)

    def stop_clock(self) -> float:
        """The check has ended, or is interrupted; returns the seconds it took in all."""
        self.seconds += time.monotonic() - self._since_s
        self._since_s = time.monotonic()
        return self.seconds

    @property
    def exit_status(self) -> int:
        """What the command ends with: the worst there is, as `--help` lists them."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        found = self.findings if self.left is None else self.left
        return _EXIT_STATUS[max((finding.reaction for finding in found), key=_rank, default=Reaction.NOTE)]

    def show_text(self) -> None:
        """For people, on stdout."""
        for finding in self.findings:
            console.result(_line(finding))
        for line in self.done:
            console.result(f"repaired: {line}")
        for finding in self.left or ():
            if finding.reaction is not Reaction.NOTE:
                console.result(f"not repaired: {_line(finding)}")
        rate = self.verified_bytes / self.seconds / 1e9 if self.seconds else 0.0
        problems = sum(finding.reaction is not Reaction.NOTE for finding in self.findings)
        how_many = f"{self.images} images"
        if self.interrupted:
            # Not counted yet where it was interrupted in the index.
            how_many = f"{self.images} of {self.total_images or 'all'} images so far"
        console.result(
            f"verified {how_many}, {self.verified_bytes / 1e6:.1f} MB, in {self.seconds:.1f} s "
            f"({rate:.2f} GB/s); {problems or 'no'} problem{'' if problems == 1 else 's'}"
        )

    def show_json(self) -> None:
        """For programs, on stdout."""
        content: dict[str, Any] = {
            "images": self.images,
            "bytes": self.verified_bytes,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "problems": [_fields(found) for found in self.findings if found.reaction is not Reaction.NOTE],
            "notes": [_fields(found) for found in self.findings if found.reaction is Reaction.NOTE],
        }
        if self.left is not None:
            content["repaired"] = self.done
            content["not_repaired"] = [
                _fields(found) for found in self.left if found.reaction is not Reaction.NOTE
            ]
        console.result(json.dumps(content))


def _rank(reaction: Reaction) -> int:
    return int(reaction.value)


def _line(finding: Finding) -> str:
    note = "note: " if finding.reaction is Reaction.NOTE else ""
    path = f"{finding.path}: " if finding.path else ""
    return note + path + finding.message


def _fields(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "path": finding.path,
        "image_id": finding.image_id.hex() if finding.image_id else None,
        "version_id": finding.version_id,
        "message": finding.message,
    }
