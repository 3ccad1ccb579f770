"""`Report` collects the findings of a check; `put_aside` moves damaged files out of the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from treadle.server.storage.files import make_directory, remove, sync

DAMAGED = "damaged"
"""The directory for damaged files, since nothing that may be worth a look is deleted."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    what: str
    """What is wrong, as a sentence without its full stop."""
    where: Path
    """The file or directory."""
    action: str
    """What was done about it, what --repair would do, or what the reader can do."""

    def __str__(self) -> str:
        """Returns one line, whatever characters are in the names of files."""
        line = f"{self.where}: {self.what}; {self.action}"
        return "".join(c if c.isprintable() else _escaped(c) for c in line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", errors="surrogatepass").decode()


@dataclass
class Report:
    """What a check found."""

    may_repair: bool
    """Whether what is wrong is repaired as well."""
    findings: list[Finding] = field(default_factory=list)
    """Everything that is wrong, in the order in which it was found."""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def note(self, what: str, where: Path, advice: str) -> None:
        """Adds a finding that is not repaired.

        Args:
            what: What is wrong.
            where: The file or directory.
            advice: What the reader can do.
        """
        self.findings.append(Finding(what, where, advice))

    def repair(self, what: str, where: Path, action: str, work: Callable[[], object]) -> None:
        """Adds a finding, and repairs it where `may_repair` is set.

        Args:
            what: What is wrong.
            where: The file or directory.
            action: The repair, as a participle: `removed`.
            work: The repair; an OSError of it becomes part of the finding.
        """
        if not self.may_repair:
            self.findings.append(Finding(what, where, f"with --repair it is {action}"))
            return
        try:
            work()
        except OSError as error:
            action = f"it could not be {action}: {error}"
        self.findings.append(Finding(what, where, action))


def put_aside(root: Path, path: Path, *names: str) -> None:
    """Moves a file or directory to `damaged/NAMES`, with a number where that name is taken.

    Args:
        root: The data directory.
        path: What to move.
        names: The parts of the new path below `damaged/`.

    Raises:
        OSError: The disk failed or is full.
    """
    place = root.joinpath(DAMAGED, *names)
    for folder in reversed(place.relative_to(root).parents[:-1]):
        make_directory(root / folder)
    number = 1
    while place.exists() or place.is_symlink():
        number += 1
        place = root.joinpath(DAMAGED, *names[:-1], f"{names[-1]}.{number}")
    os.rename(path, place)
    for folder in (path.parent, place.parent):
        sync(folder)


def remove_whole(path: Path) -> None:
    """Removes a file, or a directory with its content.

    Raises:
        OSError: It cannot be removed.
    """
    if not remove(path):
        raise OSError("the log says why")
