"""`check_tokens` checks that token ids are in a vocabulary; `TokenIds` is the type of such ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.model.errors import TokenError

TokenIds = Sequence[int] | NDArray[np.integer[Any]]
"""The ids of tokens, as a sequence or as an array of any integer type."""


def check_tokens(tokens: NDArray[np.integer[Any]], vocabulary_size: int, least: int = 0) -> None:
    """Checks that token ids are in the vocabulary.

    Kernels use ids as indices and do not check them. So this function must be called before every
    kernel that takes tokens, whatever their source.

    Args:
        tokens: Token ids, of any shape.
        vocabulary_size: Number of tokens in the vocabulary.
        least: The lowest legal id; -1 if that means "no token".

    Raises:
        TokenError: An id is not in the vocabulary.
    """
    if tokens.size and (tokens.min() < least or tokens.max() >= vocabulary_size):
        odd = tokens[(tokens < least) | (tokens >= vocabulary_size)].flat[0]
        raise TokenError(
            f"token {odd} is not in the vocabulary of the model, which has the tokens 0 to "
            f"{vocabulary_size - 1}: its file or its tokenizer is damaged, take another one"
        )
