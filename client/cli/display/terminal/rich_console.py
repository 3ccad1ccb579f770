"""`rich_console` makes rich's console of a terminal."""

from __future__ import annotations

from rich.console import Console as RichConsole

from treadle.client.cli.display.console import Console


def rich_console(console: Console) -> RichConsole:
    """Returns rich's console of a terminal; it reads no markup in texts."""
    return RichConsole(
        file=console.out,
        force_terminal=True,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
