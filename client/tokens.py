"""How a caller names a token of a vocabulary: by its number, by its text, or as the end."""

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
"""The token that ends an item, of models of one item a line."""

AnyToken: TypeAlias = int | str | End
"""A token's number in the vocabulary, its text, or `END`."""


def token_reference(token: AnyToken, name: str = "token") -> TokenReference:
    """Names a token on the wire.

    Args:
        token: Its number, its text, or `END`.
        name: The option that it is given for, for the error's sentence.

    Returns:
        The reference.

    Raises:
        InputError: It is none of the three, or a number that no token can have.
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
    """Names several tokens on the wire; one alone stands for a list of one.

    Raises:
        InputError: One of them is no token.
    """
    if isinstance(tokens, int | str | End):
        tokens = [tokens]
    return [token_reference(token, name) for token in tokens]


def token_biases(biases: Mapping[AnyToken, float], name: str) -> list[TokenBias]:
    """Puts a mapping from tokens to biases on the wire, in its own order.

    Raises:
        InputError: A key is no token, or a value no number.
    """
    made = []
    for token, bias in dict(biases).items():
        try:
            made.append(TokenBias(token=token_reference(token, name), bias=bias))
        except TypeError as error:
            raise InputError(
                f"{name} cannot add {bias!r} to a score: a bias is a number"
            ) from error
    return made
