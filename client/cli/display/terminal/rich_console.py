"""`rich_console` makes rich's console of a terminal."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console as RichConsole


def rich_console(out: TextIO) -> RichConsole:
    """Returns rich's console of a terminal; it reads no markup in texts."""
    return RichConsole(
        file=out,
        force_terminal=True,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
