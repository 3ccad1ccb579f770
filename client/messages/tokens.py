"""`token_reference` makes the message for a token: its number, its text, or the end token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final, TypeAlias

from treadle.client.errors import InputError
from treadle.v1.sequence_pb2 import TokenBias, TokenReference


class End(Enum):
    """The token that ends an item has no text of its own."""

    END = "end"


END: Final = End.END
"""The token that ends an item, of models of one item per line."""

AnyToken: TypeAlias = int | str | End
"""A token's number in the vocabulary, its text, or `END`."""


def token_reference(token: AnyToken, name: str = "token") -> TokenReference:
    """Returns the message for a token.

    Args:
        token: Its number, its text, or `END`.
        name: The option that holds it, for the error.

    Returns:
        The reference.

    Raises:
        InputError: It is another value, or a number that no token can have.
    """
    if token is END:
        return TokenReference(end=True)
    try:
        if isinstance(token, str):
            return TokenReference(text=token)
        if isinstance(token, int) and not isinstance(token, bool):
            return TokenReference(id=token)
    except (UnicodeEncodeError, ValueError):
        pass
    raise InputError(
        f"{name} cannot hold {token!r}: a token is its number, its text, or treadle.client.END"
    )


def token_references(tokens: AnyToken | Iterable[AnyToken], name: str) -> list[TokenReference]:
    """Returns the messages for several tokens, or for one.

    Raises:
        InputError: One of them is not a token.
    """
    if isinstance(tokens, int | str | End):
        tokens = [tokens]
    return [token_reference(token, name) for token in tokens]


def token_biases(biases: Mapping[AnyToken, float], name: str) -> list[TokenBias]:
    """Returns the messages for a mapping from tokens to biases, in its own order.

    Raises:
        InputError: A key is not a token, or a value not a number.
    """
    messages = []
    for token, bias in dict(biases).items():
        try:
            messages.append(TokenBias(token=token_reference(token, name), bias=bias))
        except TypeError as error:
            raise InputError(
                f"{name} cannot add {bias!r} to a score: a bias is a number"
            ) from error
    return messages
