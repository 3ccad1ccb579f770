"""The documented pages: their blocks, and the links and headings between them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUN = ("sh", "python")
"""Languages of blocks that a reader pastes and that the tests run."""

SHOWN = ("json", "mermaid", "text", "toml")
"""Languages of blocks that a reader only reads."""

_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    """The page's path in the checkout."""
    line: int
    """The number of the block's first line."""
    language: str
    """What stands behind the fence."""
    text: str
    """The lines between the fences."""

    @property
    def place(self) -> str:
        """Returns `page:line`."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Returns the path of every page, those of the subfolders included."""
    folders = ("docs", "benchmarks", "examples")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.md")]
    kept = [path for path in found if "node_modules" not in path.parts]
    return [
        "CONTRIBUTING.md",
        "README.md",
        "SECURITY.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in kept),
    ]


def read(page: str) -> str:
    """Returns a page's text."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """Returns the fenced blocks of a page in their order."""
    text = read(page)
    return [
        Block(
            page,
            text.count("\n", 0, match.start(3)) + 1,
            match[2],
            textwrap.dedent(match[3]),
        )
        for match in _FENCE.finditer(text)
    ]


def prose(page: str) -> str:
    """Returns a page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def links(page: str) -> list[str]:
    """Returns the targets of a page's links to files of the checkout."""
    return [link for link in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def anchors(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = (heading.replace("`", "").lower() for heading in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
