"""`print_tokens` and `print_facts` lay out tokens and facts; `print_message` does so as chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console, one_line, table
from treadle.client.cli.display.numbers import number_text

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from treadle.v1.sequence_pb2 import Token


def print_table(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    cut: int,
    drop: Sequence[int] = (),
) -> None:
    """Prints a table.

    Args:
        console: The output.
        head: The columns' names.
        rows: The cells.
        left: This many columns, and the last, are aligned left, the others right.
        cut: The column whose cells lose their middle where the terminal is too narrow.
        drop: Columns that rich leaves out before that, the first one first.
    """
    if console.has_rich:
        from treadle.client.cli.display.terminal import rich_table

        rich_table.print_table(console, head, rows, left=left, cut=cut, drop=drop)
    else:
        console.table(head, rows, left=left, cut=cut)


def fit(console: Console, text: str, used: int = 0) -> str:
    """Returns a text on one line; on a terminal, its end is cut so that the line fits.

    Args:
        console: The output.
        text: Any text.
        used: Columns that are taken already.

    Returns:
        The text, ending in "..." where it was cut.
    """
    if not console.is_terminal:
        return one_line(text)
    available = max(0, console.width - 1 - used)
    if not console.has_rich:
        return one_line(text, available)
    from treadle.client.cli.display.terminal.cell_width import cut

    return cut(one_line(text), available, "...")


def pad(console: Console, text: str, columns: int) -> str:
    """Fills a text up with spaces; on a terminal with rich, wide characters count as two."""
    if not console.has_rich:
        return text.ljust(columns)
    from treadle.client.cli.display.terminal.cell_width import pad as pad_cells

    return pad_cells(text, columns)


def print_tokens(tokens: Iterable[Token], console: Console, indent: str) -> None:
    """Prints tokens with their log-probabilities, and ranks and alternatives where present."""
    rows = _token_rows(list(tokens))
    if console.has_rich:
        from treadle.client.cli.display.terminal.rich_table import print_tokens as print_colored

        print_colored(console, rows, len(indent))
        return
    for line in table(rows[0], rows[1:]):
        console.line(indent + line)


def _token_rows(tokens: list[Token]) -> list[list[str]]:
    """Returns the head and the cells of a table of tokens; a dash marks a missing value."""
    ranks = any(token.rank for token in tokens)
    top = any(token.alternatives for token in tokens)
    rows = [["token", "nats", "probability"] + ["rank"] * ranks + ["likeliest"] * top]
    for token in tokens:
        row = [one_line(token.text) or f"({token.id})", "-", "-"]
        if token.HasField("log_probability"):
            row[1:] = _nats_and_share(token.log_probability)
        row += [str(token.rank or "-")] if ranks else []
        row += [_alternatives(token)] if top else []
        rows.append(row)
    return rows


def _nats_and_share(log_probability: float) -> list[str]:
    """Writes a log-probability in nats, and the probability."""
    return [number_text(log_probability), f"{math.exp(log_probability):.1%}"]


def _alternatives(token: Token) -> str:
    """Lists the likeliest tokens at the position of one."""
    alternatives = (
        f"{one_line(each.text) or f'({each.id})'} {math.exp(each.log_probability):.1%}"
        for each in token.alternatives
    )
    return ", ".join(alternatives)


def when_text(time: Timestamp) -> str:
    """Writes a time to the second, in UTC."""
    return time.ToDatetime().isoformat(" ", "seconds") + " UTC"


def print_facts(facts: list[tuple[str, str]], console: Console) -> None:
    """Prints names and values, one pair a line."""
    if console.has_rich:
        from treadle.client.cli.display.terminal.rich_table import print_facts as print_grid

        print_grid(console, facts)
        return
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        value = one_line(value) if console.is_terminal else value
        console.line(f"{name.ljust(width)}  {value}".rstrip())


def print_message(message: Message, output: str, console: Console) -> bool:
    """Prints a message as JSON or as plain rows, if that is the output format.

    Args:
        message: The message.
        output: The output format.
        console: The output.

    Returns:
        Whether it was printed; if not, a table is requested.
    """
    if output == "json":
        from treadle.client.cli.display.json_lines import to_line

        console.line(to_line(message))
    elif output == "plain":
        from treadle.client.cli.display.plain_rows import plain_fields

        for line in plain_fields(message):
            console.line(line)
    return output != "table"


def print_rows(
    messages: Iterable[Message], columns: Sequence[str], output: str, console: Console
) -> None:
    """Prints each message of a list as it arrives, as JSON or as a plain row.

    Args:
        messages: The messages.
        columns: The fields of a plain row.
        output: The output format, `json` or `plain`.
        console: The output.
    """
    from treadle.client.cli.display.json_lines import to_line
    from treadle.client.cli.display.plain_rows import plain_row

    for message in messages:
        console.line(to_line(message) if output == "json" else plain_row(message, columns))
