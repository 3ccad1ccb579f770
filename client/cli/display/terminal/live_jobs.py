"""`show_jobs` draws a list of jobs again and again, until a key ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group
from rich.text import Text

from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.terminal.cell_width import cut
from treadle.client.cli.display.terminal.keys import Keys
from treadle.client.cli.display.terminal.live_region import LiveRegion
from treadle.client.cli.display.terminal.rich_table import table_of
from treadle.client.errors import ServerError, UnavailableError

REFRESH_S = 1.0
"""Seconds between two lists."""

TICK_S = 0.1
"""The longest that a narrower terminal shows wrapped lines, in seconds."""

FRAME_LINES = 3
"""Lines of the head and the foot, and the line of the shell before them."""

FOOT = "q or Ctrl-C leaves; the jobs continue"

Rows = Sequence[Sequence[str]]


def show_jobs(
    console: Console, head: Sequence[str], load: Callable[[int], Rows], drop: Sequence[int]
) -> None:
    """Draws the newest jobs every REFRESH_S, until q is typed; a broken connection is retried.

    Args:
        console: The terminal.
        head: The columns' names.
        load: Returns up to this many rows, the newest ones first.
        drop: Columns that a narrow terminal leaves out, the first one first.

    Raises:
        ServerError: The first list, or a later one but for the connection, failed.
    """
    rows = load(console_rows(console))
    foot = FOOT
    region = LiveRegion(console)
    with Keys() as keys:
        region.open()
        console.begin_live(keys.close)
        try:
            while True:
                table, _ = table_of(
                    head, rows, left=3, cut=1, drop=drop, width=max(1, console.width - 1)
                )
                last = Text(cut(foot, max(0, console.width - 1)), "dim")
                region.draw(Group(table if rows else Text("no jobs yet"), last))
                for _ in range(round(REFRESH_S / TICK_S)):
                    if keys.wait(TICK_S).lower().startswith(("q", "\x04")):
                        return
                    if region.is_wrapped:
                        break
                try:
                    rows = load(console_rows(console))
                    foot = FOOT
                except UnavailableError as error:
                    foot = f"{one_line(str(error))}; trying again ..."
                except ServerError as error:
                    if not error.broken:
                        raise
                    foot = f"{one_line(str(error))}; trying again ..."
        finally:
            region.close()


def console_rows(console: Console) -> int:
    """Returns how many rows a terminal has for jobs."""
    return max(1, console.height - FRAME_LINES)
