"""What scoring gives: of each token, of a whole text, and of a piece of a stream."""

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

NO_INTS, NO_FLOATS = np.zeros(0, np.int32), np.zeros(0, np.float32)
"""What was not asked for."""


def _no_ints() -> Ints:
    return NO_INTS


def _no_floats() -> Array:
    return NO_FLOATS


@dataclass(frozen=True)
class Details:
    """What is wanted of every scored token, beside its log-probability."""

    ranks: bool = False
    """Its place among all tokens by probability."""
    alternatives: int = 0
    """How many of the likeliest tokens in its place; more than the vocabulary has give all."""


PLAIN = Details()
"""Log-probabilities only."""


@dataclass(frozen=True)
class Scores:
    """What tokens scored. `...` is (T, B) for a window of a batch, and (N,) for a text."""

    log_probabilities: Array
    """(...), log p of every target in nats; 0 where there is none."""
    ranks: Ints
    """(...), each target's rank, 0 where there is none; (0,) where not asked for."""
    alternative_ids: Ints
    """(..., A), the likeliest tokens, likeliest first; (0,) where not asked for."""
    alternative_log_probabilities: Array
    """(..., A), theirs in nats; (0,) where not asked for."""

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
"""Tokens given their texts together."""


def token_scores(tokenizer: Tokenizer, ids: Ints, scores: Scores) -> tuple[TokenScore, ...]:
    """Returns tokens with their texts and scores.

    Args:
        tokenizer: What made the tokens.
        ids: (N,).
        scores: Of the last of them; the tokens before are those that nothing foretells.
    """
    unscored = ids.size - scores.log_probabilities.size
    text, count = tokenizer.token_text, scores.log_probabilities.size
    ranks = scores.ranks.tolist() or [0] * count
    others: list[tuple[Alternative, ...]] = [()] * count
    if scores.alternative_ids.size:
        pairs = (scores.alternative_ids.tolist(), scores.alternative_log_probabilities.tolist())
        others = [
            tuple(Alternative(token, text(token), value) for token, value in zip(*row, strict=True))
            for row in zip(*pairs, strict=True)
        ]
    rows = zip(
        ids[unscored:].tolist(), scores.log_probabilities.tolist(), ranks, others, strict=True
    )
    first = [TokenScore(token, text(token), None) for token in ids[:unscored].tolist()]
    return (*first, *(TokenScore(token, text(token), *more) for token, *more in rows))


@dataclass(frozen=True)
class Summary:
    """What scored tokens come to together."""

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
        """-log p a token, in nats; None where no token was scored."""
        return -self.total_log_probability / self.token_count if self.token_count else None

    @property
    def perplexity(self) -> float | None:
        """exp(mean_nats), infinite where that exceeds a float; None where none was scored."""
        mean = self.mean_nats
        if mean is None:
            return None
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_character(self) -> float | None:
        """-log2 p a code point; None where the scored tokens stand for none.

        None also where an unknown token was scored: it costs as little as one token does, and may
        stand for a word of any length.
        """
        if not self.character_count or self.unknown_count:
            return None
        return -self.total_log_probability / math.log(2) / self.character_count


@dataclass(frozen=True)
class TextScore(Summary):
    """What one text scored."""

    ids: Ints = field(compare=False, repr=False)
    """The text's tokens, (N,), an end token included where one is scored."""
    log_probabilities: Array = field(compare=False, repr=False)
    """log p of the last token_count of them, in nats."""
    tokenizer: Tokenizer = field(compare=False, repr=False)
    """What made the tokens."""
    ranks: Ints = field(default_factory=_no_ints, compare=False, repr=False)
    """Their ranks; (0,) where not asked for."""
    alternative_ids: Ints = field(default_factory=_no_ints, compare=False, repr=False)
    """(token_count, A), the likeliest tokens in their places; (0,) where not asked for."""
    alternative_log_probabilities: Array = field(
        default_factory=_no_floats, compare=False, repr=False
    )
    """(token_count, A), theirs in nats; (0,) where not asked for."""
    state: SessionState | None = field(default=None, compare=False, repr=False)
    """The state after the text, before an end token."""

    @property
    def tokens(self) -> tuple[TokenScore, ...]:
        """Every token of the text, made anew at each call."""
        return tuple(self.each_token())

    def each_token(self) -> Iterator[TokenScore]:
        """Yields every token of the text; those of a long one are many times its size."""
        scores = Scores(
            self.log_probabilities, self.ranks, self.alternative_ids,
            self.alternative_log_probabilities,
        )  # fmt: skip
        unscored = self.ids.size - self.token_count
        yield from token_scores(self.tokenizer, self.ids[:unscored], scores.part(0, 0))
        for start in range(0, self.token_count, _BLOCK):
            stop = start + _BLOCK
            ids = self.ids[unscored + start : unscored + stop]
            yield from token_scores(self.tokenizer, ids, scores.part(start, stop))


@dataclass(frozen=True)
class PieceScore:
    """What a piece of a stream scored: the tokens since the piece before."""

    total_log_probability: float
    """Sum over the scored tokens, in nats."""
    token_count: int
    """Tokens scored."""
    tokens: tuple[TokenScore, ...] = ()
    """Those tokens, and one that nothing foretells; none where they were not asked for."""
    whole: Summary | None = None
    """What the whole text or item scored, where the piece has ended it."""


def summarize(
    tokenizer: Tokenizer, ids: Ints, scores: Scores, total: float,
    state: SessionState | None = None,
) -> TextScore:  # fmt: skip
    """Puts scores and tokens together.

    Args:
        tokenizer: Of the model.
        ids: (N,), the text's tokens, an end token included where one is scored.
        scores: Of all of them, or of all but the first.
        total: The sum of their log-probabilities, in the order of the tokens.
        state: After the text.
    """
    count = scores.log_probabilities.size
    return TextScore(
        total_log_probability=total,
        token_count=count,
        character_count=tokenizer.characters(ids[ids.size - count :]),
        unknown_count=tokenizer.count_unknown(ids[ids.size - count :]),
        ids=ids,
        tokenizer=tokenizer,
        **vars(scores),
        state=state,
    )
