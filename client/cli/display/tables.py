"""`token_table` and `print_facts` lay out tokens and facts for a reader."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console, one_line, table
from treadle.client.cli.display.numbers import number_text

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from treadle.v1.sequence_pb2 import Token


def token_table(tokens: Iterable[Token]) -> list[str]:
    """Lays out tokens with their log-probabilities, and ranks and alternatives where present.

    A dash marks a missing value.

    Returns:
        The lines of the table.
    """
    tokens = list(tokens)
    ranks = any(token.rank for token in tokens)
    top = any(token.alternatives for token in tokens)
    rows = []
    for token in tokens:
        row = [one_line(token.text) or f"({token.id})", "-", "-"]
        if token.HasField("log_probability"):
            row[1:] = _nats_and_share(token.log_probability)
        row += [str(token.rank or "-")] if ranks else []
        row += [_alternatives(token)] if top else []
        rows.append(row)
    heads = ["token", "nats", "probability"] + ["rank"] * ranks + ["likeliest"] * top
    return table(heads, rows)


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
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        console.line(f"{name.ljust(width)}  {value}".rstrip())
