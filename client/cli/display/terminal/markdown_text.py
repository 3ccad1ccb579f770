"""`print_markdown` prints a page in Markdown on a terminal."""

from __future__ import annotations

from rich.markdown import Markdown

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.terminal.rich_console import rich_console

WIDTH = 100
"""The most columns of a line: a longer one is hard to read."""


def print_markdown(text: str, console: Console) -> None:
    """Prints a page.

    Args:
        text: The page.
        console: The terminal.
    """
    rich_console(console).print(Markdown(text), width=min(WIDTH, console.width))
