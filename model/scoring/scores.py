"""`Scores` of tokens, and the `TextScore` and `PieceScore` that are made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from treadle.model.scoring.token_score import Alternative, TokenScore

if TYPE_CHECKING:
    from treadle.model.network.session_state import SessionState
    from treadle.model.tokenizers.base import Tokenizer

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

NO_INTS = np.zeros(0, np.int32)
NO_FLOATS = np.zeros(0, np.float32)
"""Stand for what was not requested."""


def _no_ints() -> Ints:
    return NO_INTS


def _no_floats() -> Array:
    return NO_FLOATS


@dataclass(frozen=True)
class Details:
    """What to report of every scored token besides its log-probability."""

    ranks: bool = False
    """Report its place among all tokens by probability."""
    alternatives: int = 0
    """Report so many of the likeliest tokens in its place, at most the whole vocabulary."""


PLAIN = Details()
"""Log-probabilities only."""


@dataclass(frozen=True)
class Scores:
    """The scores of tokens. `...` is (T, B) for a window of a batch, and (N,) for a text."""

    log_probabilities: Array
    """(...), log p of every target in nats; 0 where there is no target."""
    ranks: Ints
    """(...), each target's rank, 0 where there is no target; (0,) if not requested."""
    alternative_ids: Ints
    """(..., A), the likeliest tokens, likeliest first; (0,) if not requested."""
    alternative_log_probabilities: Array
    """(..., A), their log p in nats; (0,) if not requested."""

    @classmethod
    def plain(cls, log_probabilities: Array) -> Self:
        """Returns scores without details."""
        return cls(log_probabilities, NO_INTS, NO_INTS, NO_FLOATS)

    def text(self) -> Self:
        """Returns one text's scores (N,), from those of its window (T, 1)."""
        parts = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(part[:, 0] if part.ndim > 1 else part for part in parts))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Returns the scores of one text, from those of its parts."""
        parts = [part for part in parts if part.log_probabilities.size]
        if not parts:
            return cls.plain(NO_FLOATS)

        def join(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(*(join(field.name) for field in fields(cls)))

    def part(self, start: int, stop: int) -> Self:
        """Returns the scores of some tokens, from those of a text."""
        return type(self)(*(getattr(self, field.name)[start:stop] for field in fields(self)))


_BLOCK = 64
"""Tokens for which a `TokenScore` is made together."""


def token_scores(tokenizer: Tokenizer, ids: Ints, scores: Scores) -> tuple[TokenScore, ...]:
    """Returns tokens with their texts and scores.

    Args:
        tokenizer: The model's tokenizer.
        ids: (N,), the tokens.
        scores: (n,), the scores of the last n of them. The tokens before them have no score, since
            no token predicts them.
    """
    count = scores.log_probabilities.size
    unscored = ids.size - count
    text = tokenizer.token_text
    ranks = scores.ranks.tolist() or [0] * count
    alternatives: list[tuple[Alternative, ...]] = [()] * count
    if scores.alternative_ids.size:
        rows = zip(
            scores.alternative_ids.tolist(),
            scores.alternative_log_probabilities.tolist(),
            strict=True,
        )
        alternatives = [
            tuple(Alternative(token, text(token), value) for token, value in zip(*row, strict=True))
            for row in rows
        ]
    first = [TokenScore(token, text(token), None) for token in ids[:unscored].tolist()]
    columns = zip(
        ids[unscored:].tolist(),
        scores.log_probabilities.tolist(),
        ranks,
        alternatives,
        strict=True,
    )
    scored = [TokenScore(token, text(token), *column) for token, *column in columns]
    return (*first, *scored)


@dataclass(frozen=True)
class Summary:
    """The sums over scored tokens, and the measures that follow from them."""

    total_log_probability: float
    """Sum over the scored tokens, in nats."""
    token_count: int
    """Tokens scored."""
    character_count: int
    """Code points of the text that the scored tokens stand for, one for each unknown token."""
    unknown_count: int
    """Scored tokens that are the unknown token, whatever they stand for in the text."""

    @property
    def mean_nats(self) -> float | None:
        """Mean -log p of a token, in nats; None if no token was scored."""
        return -self.total_log_probability / self.token_count if self.token_count else None

    @property
    def perplexity(self) -> float | None:
        """exp(mean_nats), infinite if that exceeds a float; None if no token was scored."""
        mean = self.mean_nats
        if mean is None:
            return None
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_character(self) -> float | None:
        """Mean -log2 p of a code point; None if the scored tokens stand for no text.

        Also None if an unknown token was scored: it costs as little as one token does, and may
        stand for a word of any length.
        """
        if not self.character_count or self.unknown_count:
            return None
        return -self.total_log_probability / math.log(2) / self.character_count


@dataclass(frozen=True)
class TextScore(Summary):
    """The score of one text."""

    ids: Ints = field(compare=False, repr=False)
    """The text's tokens, (N,), an end token included where one is scored."""
    log_probabilities: Array = field(compare=False, repr=False)
    """(token_count,), log p of the last token_count of them, in nats."""
    tokenizer: Tokenizer = field(compare=False, repr=False)
    """The model's tokenizer."""
    ranks: Ints = field(default_factory=_no_ints, compare=False, repr=False)
    """(token_count,), their ranks; (0,) if not requested."""
    alternative_ids: Ints = field(default_factory=_no_ints, compare=False, repr=False)
    """(token_count, A), the likeliest tokens in their places; (0,) if not requested."""
    alternative_log_probabilities: Array = field(
        default_factory=_no_floats, compare=False, repr=False
    )
    """(token_count, A), their log p in nats; (0,) if not requested."""
    state: SessionState | None = field(default=None, compare=False, repr=False)
    """The state after the text, before an end token."""

    @property
    def tokens(self) -> tuple[TokenScore, ...]:
        """Every token of the text, made again at each call."""
        return tuple(self.each_token())

    def each_token(self) -> Iterator[TokenScore]:
        """Yields every token of the text; those of a long one are many times its size."""
        scores = Scores(
            self.log_probabilities,
            self.ranks,
            self.alternative_ids,
            self.alternative_log_probabilities,
        )
        unscored = self.ids.size - self.token_count
        yield from token_scores(self.tokenizer, self.ids[:unscored], scores.part(0, 0))
        for start in range(0, self.token_count, _BLOCK):
            stop = start + _BLOCK
            ids = self.ids[unscored + start : unscored + stop]
            yield from token_scores(self.tokenizer, ids, scores.part(start, stop))


@dataclass(frozen=True)
class PieceScore:
    """The score of a piece of a stream: of the tokens since the piece before."""

    total_log_probability: float
    """Sum over the scored tokens, in nats."""
    token_count: int
    """Tokens scored."""
    tokens: tuple[TokenScore, ...] = ()
    """Those tokens, and a first one that has no score; empty if they were not requested."""
    whole: Summary | None = None
    """The sums over the whole text or item, if the piece has ended it."""


def text_score(
    tokenizer: Tokenizer,
    ids: Ints,
    scores: Scores,
    total: float,
    state: SessionState | None = None,
) -> TextScore:
    """Returns the score of a text.

    Args:
        tokenizer: The model's tokenizer.
        ids: (N,), the text's tokens, an end token included where one is scored.
        scores: The scores of all of them, or of all but the first.
        total: The sum of their log-probabilities, in nats, added in the order of the tokens.
        state: The state after the text.
    """
    count = scores.log_probabilities.size
    scored = ids[ids.size - count :]
    return TextScore(
        total_log_probability=total,
        token_count=count,
        character_count=tokenizer.characters(scored),
        unknown_count=tokenizer.count_unknown(scored),
        ids=ids,
        tokenizer=tokenizer,
        **vars(scores),
        state=state,
    )
