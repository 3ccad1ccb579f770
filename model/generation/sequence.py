"""One text in the making: from tokens to text, and where to stop.

A session takes the tokens that a group draws for it, a chunk at a time, and what it gives does not
depend on how they were cut into chunks.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from treadle.kernels.decode import DecodedTokens
from treadle.kernels.logit_edits import NEW
from treadle.model.errors import ConfigError
from treadle.model.generation.deadline import NEVER, Deadline
from treadle.model.generation.decoding_batch import Chunk, Seat
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.stop_sequences import StopFilter
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.session_state import SessionState
from treadle.model.scoring.token_score import Alternative, TokenScore
from treadle.model.tokenizers.base import Tokenizer

Ints = npt.NDArray[np.int32]


class StopReason(enum.StrEnum):
    """Why a generation ended."""

    MAX_NEW_TOKENS = "max_new_tokens"
    STOP_SEQUENCE = "stop_sequence"
    END_TOKEN = "end_token"
    TIME_LIMIT = "time_limit"
    REGEX_COMPLETE = "regex_complete"


@dataclass(frozen=True)
class GenerateResult:
    """What a generation came to."""

    stop_reason: StopReason
    """Why it ended."""
    stop_sequence: str
    """The stop sequence that ended it, or an empty text."""
    seed: int
    """The seed used."""
    prompt_tokens: int
    """Tokens of the prompt read."""
    new_tokens: int
    """Tokens drawn, an end token and those of a stop sequence included."""
    total_log_probability: float
    """Sum of the drawn tokens' log-probabilities, in nats."""
    regex_complete: bool | None = None
    """Whether the text matches the regular expression as a whole; None without one."""
    state: SessionState | None = field(default=None, compare=False)
    """Where to go on from, if it was asked for."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The text's tokens, if they were asked for: no end token, none with part of a stop."""


@dataclass(frozen=True)
class Piece:
    """What one step of a generation made."""

    text: str
    """The next text: never half a character, nor what may be the beginning of a stop sequence."""
    tokens: Sequence[TokenScore]
    """The tokens drawn, where they were asked for; they may run ahead of the text."""
    result: GenerateResult | None
    """Set in the last piece only."""

    @property
    def weight(self) -> int:
        """How many tokens and alternatives it has; each token of a text has as many."""
        return len(self.tokens) * (1 + len(self.tokens[-1].alternatives)) if self.tokens else 0


@dataclass(frozen=True)
class Wanted:
    """What a session is to tell beside its text."""

    tokens: bool = False
    """Each token."""
    state: bool = False
    """The state at the end; half a character there is then left to whoever goes on."""
    ids: bool = False
    """All tokens of the text at the end."""


TOKENS = Wanted(tokens=True)
"""Each token beside the text."""


@dataclass
class _Stretch:
    """The tokens since the last chunk after which no text was held back."""

    begun: SessionState
    """Where they begin; of use only if a state is wanted."""
    rule: int
    """The automaton's state there."""
    ids: list[int]
    """The tokens."""
    exempt: int = 0
    """How many of them may hold stop sequences, since they are the least tokens asked for."""


class Session:
    """One text: what was asked for, and how far it has come."""

    def __init__(
        self, tokenizer: Tokenizer, choices: ResolvedSampling, begun: SessionState, prompt: Ints,
        wanted: Wanted, reread: Callable[[SessionState, list[int]], SessionState],
        deadline: Deadline = NEVER,
    ) -> None:  # fmt: skip
        """Begin; nothing is drawn yet.

        Args:
            tokenizer: of the model.
            choices: how tokens are chosen and when to stop.
            begun: the state after the prompt, with the seed and position of the draw, and the
                counts where penalties need them.
            prompt: (N,), the caller's tokens.
            wanted: what to tell beside the text.
            reread: gives the state after some tokens that follow another state: a text may end
                within a chunk.
            deadline: when to end.
        """
        end = -1 if tokenizer.end is None else tokenizer.end
        self.seat = Seat(choices, begun, end, prompt, counts=begun.counts)
        """What a group needs to know."""
        self._tokenizer = tokenizer
        self._sampling = choices.sampling
        self._constraint = choices.constraint
        self._wanted = wanted
        self._reread = reread
        self._deadline = deadline
        self._filter = StopFilter(self._sampling.stop_sequences)
        self._stream = tokenizer.stream(begun.held)
        self._seed = begun.seed or 0
        self._drawn = 0
        self._total = 0.0
        self._ids: list[int] = []
        self._begun_counts = begun.counts
        self._new: Counter[int] = Counter()
        self._rule = 0
        self._stretch = _Stretch(begun, 0, [])
        # Nothing will be asked that needs to know where a stretch begins.
        told = wanted.state or wanted.ids
        self._plain = not (told or self._constraint or self._sampling.stop_sequences)

    @property
    def left(self) -> int:
        """Tokens that it may still draw."""
        return self._sampling.max_new_tokens - self._drawn

    @property
    def weight(self) -> int:
        """How many tokens and alternatives it gives for each token that it draws."""
        return 1 + self._sampling.top_log_probabilities if self._wanted.tokens else 0

    def nothing_to_draw(self) -> Piece | None:
        """Return the only piece of a session that may not draw any token; None for others."""
        if self._constraint is not None and self.seat.end < 0 and self._constraint.ended(0):
            return Piece("", (), self._result(StopReason.REGEX_COMPLETE, 0))
        if self.left <= 0:
            return Piece("", (), self._result(StopReason.MAX_NEW_TOKENS, 0))
        if self._deadline.over:
            return Piece("", (), self._result(StopReason.TIME_LIMIT, 0))
        return None

    def take(self, chunk: Chunk, m: int, state_now: Callable[[], SessionState]) -> Piece:
        """Take what a group has drawn.

        Args:
            chunk: of all its sessions.
            m: the session's row in it.
            state_now: gives the state after the chunk; asked only while the session goes on.

        Returns:
            What became of it; with a result, the session is over.

        Raises:
            ConfigError: the settings leave no token to draw.
        """
        ids = chunk.tokens[m]
        count, reason = self._extent(ids)
        shown = ids[: count - (reason is StopReason.END_TOKEN)]
        text = self._push(shown)
        if reason is not None and not self._filter.found:
            text += self._flush(reason)
        kept = len(self._stretch.ids)
        if reason is None and count < len(ids) and not self._filter.found:
            raise ConfigError(_NOTHING_LEFT, "banned_tokens")
        if self._filter.found:
            reason = StopReason.STOP_SEQUENCE
            complete, kept = self._locate_stop()
            count += complete - len(self._stretch.ids)
        self._drawn += count
        self._total = in_order(chunk.log_probabilities[m][:count], self._total)
        tokens = self._told(chunk.drawn, m, count) if self._wanted.tokens else ()
        if reason is not None:
            return Piece(text, tokens, self._result(reason, kept))
        if not (self._filter.holds or self._stream.cuts_character):
            self._begin_stretch(state_now)
        return Piece(text, tokens, None)

    def _extent(self, ids: list[int]) -> tuple[int, StopReason | None]:
        """How many tokens of a chunk count, and why the text ends with them, if it does."""
        count, end = min(len(ids), self.left), self.seat.end
        if self._constraint is None and -1 not in ids[:count]:
            if end >= 0 and end in ids[:count]:
                return ids.index(end) + 1, StopReason.END_TOKEN
        else:
            for index, token in enumerate(ids[:count]):
                if token < 0:  # no token was left, unless a stop came before
                    return index, None
                if self._constraint is not None:
                    self._rule = int(self._constraint.table[self._rule, token])
                if token == end:
                    return index + 1, StopReason.END_TOKEN
                if self._constraint is not None and self._constraint.ended(self._rule):
                    return index + 1, StopReason.REGEX_COMPLETE
        if count == self.left:
            return count, StopReason.MAX_NEW_TOKENS
        return count, StopReason.TIME_LIMIT if self._deadline.over else None

    def _push(self, ids: list[int]) -> str:
        """Turn tokens into what text is certain, and take them down."""
        free = max(0, min(len(ids), self._sampling.min_new_tokens - self._drawn))
        text = self._stream.push(ids[:free]) if free else ""
        if free:
            self._stretch.exempt = len(self._stretch.ids) + free
        self._stretch.ids += ids
        return text + self._filter.push(self._stream.push(ids[free:]))

    def _flush(self, reason: StopReason) -> str:
        """What was held back, where a text ends otherwise than by a stop sequence."""
        goes_on = self._wanted.state and reason is not StopReason.END_TOKEN
        # A replacement character can complete a stop sequence.
        certain = self._filter.push("" if goes_on else self._stream.flush())
        return certain if self._filter.found else certain + self._filter.flush()

    def _locate_stop(self) -> tuple[int, int]:
        """Tokens of the stretch until the stop is complete, and those before its first part."""
        stream = self._tokenizer.stream(self._stretch.begun.held)
        exempt, texts, whole = self._stretch.exempt, [], [0]
        for number, token in enumerate(self._stretch.ids, 1):
            texts.append(stream.push([token]))
            if not stream.cuts_character:  # else the state would stand within one
                whole.append(number)
        texts[-1] += stream.flush()
        certain = len(StopFilter(self._sampling.stop_sequences).push("".join(texts[exempt:])))
        place = sum(map(len, texts[:exempt])) + certain
        until, reach = 0, 0
        while reach < place + len(self._filter.found):
            reach += len(texts[until])
            until += 1
        reached = [0, *accumulate(map(len, texts))]
        return until, max(kept for kept in whole if reached[kept] <= place)

    def _begin_stretch(self, state_now: Callable[[], SessionState]) -> None:
        """Begin a new stretch after a chunk, with nothing held back."""
        if self._plain:
            self._stretch.ids.clear()
            return
        if self._wanted.ids:
            self._ids += self._stretch.ids
        begun = self._stretch.begun
        if self._wanted.state:
            begun = state_now()
            self._new.update(self._stretch.ids)
        self._stretch = _Stretch(replace(begun, held=self._stream.held), self._rule, [])

    def _result(self, reason: StopReason, kept: int) -> GenerateResult:
        """The result of a text that ends after so many tokens of the stretch."""
        ids, begun = self._stretch.ids[:kept], self._stretch.begun
        rule, complete = self._stretch.rule, None
        if self._constraint is not None:
            for token in ids:
                rule = int(self._constraint.table[rule, token])
            complete = bool(self._constraint.complete[rule])
        state = None
        if self._wanted.state:
            stream = self._tokenizer.stream(begun.held)
            stream.push(ids)
            position = begun.position + len(ids)
            state = replace(
                self._reread(begun, ids), position=position, held=stream.held,
                counts=self._counts(ids),
            )  # fmt: skip
        return GenerateResult(
            stop_reason=reason,
            stop_sequence=self._filter.found,
            seed=self._seed,
            prompt_tokens=int(self.seat.prompt.size),
            new_tokens=self._drawn,
            total_log_probability=self._total,
            regex_complete=complete,
            state=state,
            ids=tuple(self._ids + ids) if self._wanted.ids else (),
        )

    def _counts(self, ids: list[int]) -> Ints | None:
        """The counts (2, V) after the stretches before and these ids, where there are any."""
        if self._begun_counts is None:
            return None
        counts = self._begun_counts.copy()
        for token, times in (self._new + Counter(ids)).items():
            counts[NEW, token] += times
        return counts

    def _told(self, drawn: DecodedTokens, m: int, count: int) -> tuple[TokenScore, ...]:
        """The tokens of a chunk that count, with what was asked for."""
        text_of, asked = self._tokenizer.token_text, self._sampling
        ids, scores = drawn.tokens[:count, m].tolist(), drawn.log_probabilities[:count, m].tolist()
        ranks = drawn.ranks[:count, m].tolist() if asked.ranks else [0] * count
        others: list[tuple[Alternative, ...]] = [()] * count
        if asked.top_log_probabilities:
            most = asked.top_log_probabilities
            others = [
                tuple(
                    Alternative(token, text_of(token), score)
                    for token, score in zip(row[:most], of_row[:most], strict=True)
                )
                for row, of_row in zip(
                    drawn.alternatives[:count, m].tolist(),
                    drawn.alternative_log_probabilities[:count, m].tolist(),
                    strict=True,
                )
            ]
        return tuple(
            TokenScore(token, text_of(token), score, rank, beside)
            for token, score, rank, beside in zip(ids, scores, ranks, others, strict=True)
        )


_NOTHING_LEFT = (
    "no token is left to draw: banned_tokens, token_biases, min_new_tokens and regex together "
    "exclude all of them; take one of them back"
)
