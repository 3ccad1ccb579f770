"""`baseline` measures the validation loss of an n-gram model, for comparison with a network.

A network that is not better has only learned which few tokens follow each other. The
n-gram is interpolated by Witten and Bell's rule (see `treadle.kernels.ngram`). It predicts the
same tokens as a model in its validation: all but the first of a text, and all
tokens of every item and its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.kernels.ngram import allocate_trie, count_ngrams, likelihood
from treadle.model.tokenizers.token_ids import check_tokens

if TYPE_CHECKING:
    from treadle.model.data.corpus import Corpus, TokenData
    from treadle.model.tokenizers.base import Tokenizer

Ints = npt.NDArray[np.int32]

ORDER = 5
"""Tokens of the longest n-gram that is counted, the predicted one included."""
ORDER_OF_LARGE = 3
"""ORDER for larger vocabularies: longer sequences of words or subwords rarely repeat."""
SMALL_VOCABULARY = 256
"""Most tokens of a vocabulary for which ORDER holds."""

MAX_TRAIN_TOKENS = 5_000_000
"""Most tokens of the training part that are counted."""
MAX_VALID_TOKENS = 500_000
"""Most tokens of the validation part that are predicted."""
MAX_NODES = 1 << 22
"""Most different n-grams that are kept, in 117 MB; counting ends when they are full."""


@dataclass(frozen=True)
class Baseline:
    """How well an n-gram predicts a validation part."""

    loss: float
    """Mean loss in nats per token."""
    order: int
    """Tokens of its longest n-grams, the predicted one included."""


def baseline(corpus: Corpus) -> Baseline | None:
    """Counts the training part and predicts the validation part.

    The order is ORDER for vocabularies of up to SMALL_VOCABULARY tokens and ORDER_OF_LARGE for
    larger ones, or less where the training part is shorter. Of a large corpus the first
    MAX_TRAIN_TOKENS and the first MAX_VALID_TOKENS are read, including the begin and end tokens of
    items, and at most MAX_NODES n-grams are kept.

    Args:
        corpus: The corpus, read and cut.

    Returns:
        The loss; None without a validation part, or if nothing in it can be predicted.

    Raises:
        TokenError: A token is not in the vocabulary.
    """
    if corpus.valid is None:
        return None
    V = corpus.tokenizer.vocabulary_size
    train, begin = _sequence(corpus.train, corpus.tokenizer, MAX_TRAIN_TOKENS)
    valid, _ = _sequence(corpus.valid, corpus.tokenizer, MAX_VALID_TOKENS)
    for part in (train, valid):
        check_tokens(part, V)
    order = min(ORDER if V <= SMALL_VOCABULARY else ORDER_OF_LARGE, max(train.size, 1))
    trie = allocate_trie(min(MAX_NODES, train.size * order + 1))
    path = np.zeros(order, np.int32)
    count_ngrams(train, begin, V, trie, path)
    mantissa, exponent, count = likelihood(valid, begin, V, trie, path)
    if not count:
        return None
    return Baseline(-(math.log(mantissa) + exponent * math.log(2)) / count, order)


def _sequence(data: TokenData, tokenizer: Tokenizer, limit: int) -> tuple[Ints, int]:
    """Returns the first tokens of a part, items with begin and end, and the begin token or -1."""
    if data.offsets is None:
        return np.array(data.tokens[:limit], np.int32), -1
    if tokenizer.begin is None or tokenizer.end is None:
        raise ValueError("items need a tokenizer built for the layout LINES")
    items = min(data.items, int(np.searchsorted(data.offsets, limit)))
    offsets = np.asarray(data.offsets[: items + 1], np.int64)
    last = int(offsets[-1])
    sequence = np.full(last + 2 * items, tokenizer.end, np.int32)
    starts = offsets[:-1] + 2 * np.arange(items)  # the position of each begin
    sequence[starts] = tokenizer.begin
    inside = np.arange(last) + 2 * np.repeat(np.arange(items), np.diff(offsets)) + 1
    sequence[inside] = data.tokens[:last]
    return sequence[:limit], tokenizer.begin
