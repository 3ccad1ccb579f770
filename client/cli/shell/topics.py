"""`Topic` is a text of `treadle help`; `topics` lists those that there are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("topics")

ORDER = (
    "commands",
    "models",
    "jobs",
    "sampling",
    "states",
    "files",
    "exit-codes",
    "configuration",
    "security",
)
"""The topics as they are listed; each is a page in Markdown."""


@dataclass(frozen=True)
class Topic:
    """A page of help."""

    name: str
    """The word that names it."""
    text: str
    """The page, in Markdown."""

    @property
    def title(self) -> str:
        """The heading of the page."""
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def body(self) -> str:
        """The page below its heading."""
        return self.text.partition("\n")[2].strip("\n")

    def plain(self) -> str:
        """Returns the page without marks, for a terminal or a pipe."""
        lines = [_plain_line(line) for line in self.body.splitlines()]
        return "\n".join([self.title, "=" * len(self.title), *_without_rules(lines)])


def topics() -> list[Topic]:
    """Returns all topics."""
    return [Topic(name, (FOLDER / f"{name}.md").read_text("utf-8")) for name in ORDER]


def _plain_line(line: str) -> str:
    """Returns a line without the marks of tables; code in backticks is as clear as it is."""
    if not line.startswith("|"):
        return line
    cells = (cell.strip() for cell in line.strip("|").split(" | "))
    first, *rest = (re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in cells)
    return "  ".join([first.ljust(24), *(cell.ljust(24) for cell in rest)]).rstrip()


def _without_rules(lines: list[str]) -> list[str]:
    """Leaves out the line between the head and the rows of a table."""
    return ["", *(line for line in lines if not re.fullmatch(r"-+\|[-|]+\s*", line))]
