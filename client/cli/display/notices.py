"""`print_notice` writes a sentence to standard error."""

from __future__ import annotations

import contextlib
import sys

from treadle.client.cli.display.console import printable
from treadle.client.cli.display.numbers import share_text


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


def print_unknown_share(unknown: int, tokens: int) -> None:
    """Writes the share of unknown tokens to standard error, if there are any."""
    if unknown:
        print_notice(
            f"{share_text(unknown / tokens)} of the tokens are unknown ({unknown:,} of "
            f"{tokens:,}): bits per character are unknown, since each may stand for any number "
            "of characters"
        )
