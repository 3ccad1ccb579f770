"""`token` and `bias` read the tokens that an option of `treadle generate` names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.client.messages.tokens import AnyToken


def token(text: str) -> AnyToken:
    """Reads a token: its text, `id:N`, `id:end`, or `text:` before a text that looks like these.

    Returns:
        The token, as the client takes it.

    Raises:
        argparse.ArgumentTypeError: It begins with `id:` without a number.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == "text":
        return rest
    if not colon or kind != "id":
        return text
    if rest == "end":
        from treadle.client.messages.tokens import END as END_TOKEN

        return END_TOKEN
    if not rest.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a token: write id:N, id:end, or text:{text} for the text itself"
        )
    return int(rest)


def bias(text: str) -> tuple[AnyToken, float]:
    """Reads TOKEN=X, such as "e=-2" or "id:7=0.5".

    Returns:
        The token and its bias.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    name, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        equals = ""
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not a bias such as e=-1.5 or id:7=2")
    return token(name), value
