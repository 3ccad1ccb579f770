"""`print_table`, `print_facts` and `print_tokens` lay out tables with rich."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.terminal.cell_width import cut_middle
from treadle.client.cli.display.terminal.rich_console import rich_console

GAP = 2
"""Columns between two columns of a table."""

PREFERRED_CELL = 12
"""Columns are left out before a cell is cut to less than this."""

LEAST_CELL = 6
"""The least width that a cell is cut to."""

STATE_STYLES = {
    "queued": "yellow",
    "running": "cyan",
    "paused": "magenta",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "dim",
    "pruned": "dim",
    "refused": "bold red",
    "damaged": "bold red",
}
"""The style of a cell that is a state of a job, of a trial or of a model."""

SURPRISAL_STYLES = ((1.0, "green"), (2.5, ""), (5.0, "yellow"), (8.0, "red"))
"""Surprisals in nats, each with the style of the tokens below it."""


def table_of(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int,
    cut: int,
    drop: Sequence[int],
    width: int,
) -> tuple[Table, list[str]]:
    """Lays out a table that fits.

    Args:
        head: The columns' names.
        rows: The cells.
        left: This many columns, and the last, are aligned left, the others right.
        cut: The column whose cells lose their middle where the terminal is too narrow.
        drop: Columns to leave out before that, the first one first.
        width: The columns of the terminal.

    Returns:
        The table, and the names of the columns that are left out.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    shown = list(range(len(head)))
    least = min(widths[cut], PREFERRED_CELL)
    waiting = list(drop)
    while waiting and _total(widths, shown) - widths[cut] + least > width:
        shown.remove(waiting.pop(0))
    over = _total(widths, shown) - width
    available = max(LEAST_CELL, widths[cut] - max(0, over))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for i in shown:
        right = i >= left and i != len(head) - 1
        table.add_column(head[i], justify="right" if right else "left", no_wrap=True)
    for row in cells:
        table.add_row(
            *(
                Text(cut_middle(row[i], available) if i == cut else row[i], _style(row[i]))
                for i in shown
            )
        )
    return table, [head[i] for i in sorted(set(range(len(head))) - set(shown))]


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    """Returns the columns that a table takes."""
    return sum(widths[i] for i in shown) + GAP * (len(shown) - 1)


def _style(cell: str) -> str:
    """Returns the style of a cell."""
    return STATE_STYLES.get(cell, "")


def print_table(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int,
    cut: int,
    drop: Sequence[int],
) -> None:
    """Prints a table; see `table_of`. A line below it names the columns that are left out."""
    table, hidden = table_of(head, rows, left=left, cut=cut, drop=drop, width=console.width)
    rich_console(console).print(table)
    if hidden:
        rich_console(console).print(Text(f"too narrow for: {', '.join(hidden)}", "dim"))


def print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    """Prints names and values; a long value is continued below itself."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(Text(one_line(name)), Text(one_line(value)))
    rich_console(console).print(grid)


def print_tokens(console: Console, rows: Sequence[Sequence[str]], indent: int) -> None:
    """Prints tokens with their values, each in the color of its surprisal.

    Args:
        console: The terminal.
        rows: The head, then the cells of each token: its text and its log-probability first.
        indent: The columns before the table.
    """
    head, *tokens = rows
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for number, name in enumerate(head):
        is_text = number == 0 or name == "likeliest"
        table.add_column(
            name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for text, nats, *others in tokens:
        style = surprisal_style(nats)
        table.add_row(Text(text, style), Text(nats, style), *(Text(cell) for cell in others))
    rich_console(console).print(Padding(table, (0, 0, 0, indent)))


def surprisal_style(nats: str) -> str:
    """Returns the style of a token by its log-probability; "-" is a missing one."""
    try:
        surprisal = -float(nats)
    except ValueError:
        return ""
    if math.isnan(surprisal):
        return ""
    return next((style for limit, style in SURPRISAL_STYLES if surprisal < limit), "bold red")
