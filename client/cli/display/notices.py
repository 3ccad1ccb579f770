"""`print_notice` writes a sentence to standard error."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import printable
from treadle.client.cli.display.numbers import share_text

if TYPE_CHECKING:
    from treadle.client.errors import ServerError


def print_notice(text: str, before: str = "") -> None:
    """Writes a sentence to standard error, which may be closed.

    Args:
        text: The sentence.
        before: What ends the line that the cursor is on.
    """
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        print(f"{before}treadle: {printable(text)}", file=sys.stderr, flush=True)


def print_break(failure: ServerError) -> None:
    """Writes to standard error that the connection broke, and is made again."""
    print_notice(f"{failure}; trying again", "\n" if _on_one_terminal() else "")


def _on_one_terminal() -> bool:
    """Returns whether text and notices go to the same terminal, where a text may be unfinished."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


def print_unknown_share(unknown: int, tokens: int) -> None:
    """Writes the share of unknown tokens to standard error, if there are any."""
    if unknown:
        print_notice(
            f"{share_text(unknown / tokens)} of the tokens are unknown ({unknown:,} of "
            f"{tokens:,}): bits per character are unknown, since each may stand for any number "
            "of characters"
        )
