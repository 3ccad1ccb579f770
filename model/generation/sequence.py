"""`Sequence` turns the tokens of one generated text into pieces of text, and finds where it ends.

What it gives does not depend on how its tokens were cut into chunks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.kernels.logit_edits import NEW
from treadle.model.errors import ConfigError
from treadle.model.generation.deadline import NEVER, Deadline
from treadle.model.generation.output import (
    NO_TOKEN_LEFT,
    GenerateResult,
    OutputOptions,
    Piece,
    ResumePoint,
    StopReason,
)
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.generation.stop_sequences import StopFilter
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.prefill import read_tokens
from treadle.model.scoring.token_score import Alternative, TokenScore

if TYPE_CHECKING:
    from treadle.kernels.decode import DecodedTokens
    from treadle.model.generation.sampling import ResolvedSampling
    from treadle.model.generation.slot_arrays import Chunk
    from treadle.model.network.session_state import SessionState
    from treadle.model.network.trained_network import TrainedNetwork

Ints = npt.NDArray[np.int32]


@dataclass
class _Stretch:
    """The tokens since the last chunk after which no text was held back."""

    begun: SessionState
    """The state before them; used only if a state is reported."""
    rule: int
    """The automaton's state there."""
    ids: list[int]
    """The tokens."""
    exempt: int = 0
    """How many of them no stop sequence may end, since they are among the first
    `min_new_tokens`."""


class Sequence:
    """One text that is being generated.

    Args:
        network: The network that generates.
        sampling: How tokens are chosen and when to stop.
        begun: The state after the prompt, with the seed and position of its draws, and the counts
            where penalties need them.
        prompt: (N,), the caller's tokens.
        output: What to report in addition to the text.
        deadline: When to end.
        resumed: Where an earlier sequence with the same settings broke off, whose text this one
            continues; `begun` is the state there. None: the text begins.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        sampling: ResolvedSampling,
        begun: SessionState,
        prompt: Ints,
        output: OutputOptions,
        deadline: Deadline = NEVER,
        resumed: ResumePoint | None = None,
    ) -> None:
        end = -1 if network.tokenizer.end is None else network.tokenizer.end
        drawn = 0 if resumed is None else resumed.new_tokens
        self.slot = SequenceSlot(sampling, begun, end, made=drawn, counts=begun.counts)
        """Its place in a batch."""
        self._network = network
        self._tokenizer = network.tokenizer
        self._prompt_tokens = int(prompt.size) if resumed is None else resumed.prompt_tokens
        self._sampling = sampling.settings
        self._constraint = sampling.constraint
        self._output = output
        self._deadline = deadline
        self._filter = StopFilter(self._sampling.stop_sequences)
        self._stream = network.tokenizer.stream(begun.held)
        self._seed = begun.seed or 0
        self._resumed = drawn
        self._drawn = drawn
        self._total = 0.0 if resumed is None else resumed.total_log_probability
        self._ids: list[int] = []
        self._begun_counts = begun.counts
        self._new: Counter[int] = Counter()
        self._rule = 0
        self._stretch = _Stretch(begun, 0, [])
        # Whether the tokens of a stretch and its beginning are ever needed again.
        self._offers_points = bool(output.resume_interval and not (self._constraint or output.ids))
        self._next_point = max(drawn + output.resume_interval, sampling.forced.size)
        self._keeps_stretch = bool(
            output.state
            or output.ids
            or self._constraint
            or self._sampling.stop_sequences
            or (self._offers_points and begun.counts is not None)
        )

    @property
    def left(self) -> int:
        """Tokens that it may still draw."""
        return self._sampling.max_new_tokens - self._drawn

    @property
    def details_per_token(self) -> int:
        """How many tokens and alternatives it reports for each token that it draws."""
        return 1 + self._sampling.top_log_probabilities if self._output.tokens else 0

    def nothing_to_draw(self) -> Piece | None:
        """Returns the only piece of a sequence that may not draw any token; None for others."""
        if self._constraint is not None and self.slot.end < 0 and self._constraint.ended(0):
            return Piece("", (), self._result(StopReason.REGEX_COMPLETE, 0))
        if self.left <= 0:
            return Piece("", (), self._result(StopReason.MAX_NEW_TOKENS, 0))
        if self._deadline.over:
            return Piece("", (), self._result(StopReason.TIME_LIMIT, 0))
        return None

    def take(self, chunk: Chunk, row: int) -> Piece:
        """Takes the tokens that were drawn for it, and returns what follows from them.

        Args:
            chunk: The tokens of all slots that decoded together.
            row: The row of this sequence's slot.

        Returns:
            The next piece; with a result, the sequence is over.

        Raises:
            ConfigError: The settings leave no token to draw.
        """
        ids = chunk.tokens[row]
        count, reason = self._extent(ids)
        shown = ids[: count - (reason is StopReason.END_TOKEN)]
        text = self._push(shown)
        if reason is not None and not self._filter.found:
            text += self._flush(reason)
        kept = len(self._stretch.ids)
        if reason is None and count < len(ids) and not self._filter.found:
            raise ConfigError(NO_TOKEN_LEFT, "banned_tokens")
        if self._filter.found:
            reason = StopReason.STOP_SEQUENCE
            complete, kept = self._locate_stop()
            count += complete - len(self._stretch.ids)
        self._drawn += count
        self._total = in_order(chunk.log_probabilities[row][:count], self._total)
        tokens = self._token_scores(chunk.drawn, row, count) if self._output.tokens else ()
        if reason is not None:
            return Piece(text, tokens, self._result(reason, kept), self._drawn - self._resumed)
        resume = None
        if not (self._filter.holds or self._stream.cuts_character):
            self._begin_stretch(chunk, row)
            if self._offers_points and self._drawn >= self._next_point:
                resume = self._resume_point(chunk, row)
        return Piece(text, tokens, None, self._drawn - self._resumed, resume)

    def _resume_point(self, chunk: Chunk, row: int) -> ResumePoint:
        """Returns the place after a chunk, at the beginning of a stretch."""
        self._next_point = self._drawn + self._output.resume_interval
        state = replace(
            chunk.state_of(row),
            held=self._stream.held,
            counts=self._counts_after([]),
            precision=self._network.precision,
        )
        return ResumePoint(state, self._drawn, self._total, self._prompt_tokens)

    def _extent(self, ids: list[int]) -> tuple[int, StopReason | None]:
        """Returns how many tokens of a chunk count, and why the text ends with them, if it does."""
        count = min(len(ids), self.left)
        end = self.slot.end
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
        """Adds tokens to the stretch, and returns the text that is certain after them."""
        free = max(0, min(len(ids), self._sampling.min_new_tokens - self._drawn))
        text = self._stream.push(ids[:free]) if free else ""
        if free:
            self._stretch.exempt = len(self._stretch.ids) + free
        self._stretch.ids += ids
        return text + self._filter.push(self._stream.push(ids[free:]))

    def _flush(self, reason: StopReason) -> str:
        """Returns what was held back, where a text ends other than by a stop sequence."""
        continues = self._output.state and reason is not StopReason.END_TOKEN
        # A replacement character can complete a stop sequence.
        certain = self._filter.push("" if continues else self._stream.flush())
        return certain if self._filter.found else certain + self._filter.flush()

    def _locate_stop(self) -> tuple[int, int]:
        """Returns how many tokens of the stretch complete the stop, and how many come before it."""
        stream = self._tokenizer.stream(self._stretch.begun.held)
        exempt = self._stretch.exempt
        texts = []
        whole = [0]
        for number, token in enumerate(self._stretch.ids, 1):
            texts.append(stream.push([token]))
            if not stream.cuts_character:  # else the state would stand within one
                whole.append(number)
        texts[-1] += stream.flush()
        certain = len(StopFilter(self._sampling.stop_sequences).push("".join(texts[exempt:])))
        place = sum(map(len, texts[:exempt])) + certain
        until = 0
        reach = 0
        while reach < place + len(self._filter.found):
            reach += len(texts[until])
            until += 1
        reached = [0, *accumulate(map(len, texts))]
        return until, max(kept for kept in whole if reached[kept] <= place)

    def _begin_stretch(self, chunk: Chunk, row: int) -> None:
        """Begins a new stretch after a chunk, with nothing held back."""
        if not self._keeps_stretch:
            self._stretch.ids.clear()
            return
        if self._output.ids:
            self._ids += self._stretch.ids
        begun = self._stretch.begun
        if self._begun_counts is not None and (self._output.state or self._offers_points):
            self._new.update(self._stretch.ids)
        if self._output.state:
            begun = replace(chunk.state_of(row), precision=self._network.precision)
        self._stretch = _Stretch(replace(begun, held=self._stream.held), self._rule, [])

    def _result(self, reason: StopReason, kept: int) -> GenerateResult:
        """Returns the result of a text that ends after `kept` tokens of the stretch."""
        ids = self._stretch.ids[:kept]
        complete = None
        if self._constraint is not None:
            rule = self._stretch.rule
            for token in ids:
                rule = int(self._constraint.table[rule, token])
            complete = bool(self._constraint.complete[rule])
        return GenerateResult(
            stop_reason=reason,
            stop_sequence=self._filter.found,
            seed=self._seed,
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._drawn,
            total_log_probability=self._total,
            regex_complete=complete,
            state=self._state_after(ids) if self._output.state else None,
            ids=tuple(self._ids + ids) if self._output.ids else (),
        )

    def _state_after(self, ids: list[int]) -> SessionState:
        """Returns the state after some tokens of the stretch, which are read again."""
        begun = self._stretch.begun
        stream = self._tokenizer.stream(begun.held)
        stream.push(ids)
        state = begun
        if ids:
            network = self._network
            tokens = np.array(ids, np.int32)
            *_, state = read_tokens(network.shape, network.weights, begun, tokens)
        return replace(
            state,
            position=begun.position + len(ids),
            held=stream.held,
            counts=self._counts_after(ids),
        )

    def _counts_after(self, ids: list[int]) -> Ints | None:
        """Returns the counts (2, V) after earlier stretches and these ids, where there are any."""
        if self._begun_counts is None:
            return None
        counts = self._begun_counts.copy()
        for token, times in (self._new + Counter(ids)).items():
            counts[NEW, token] += times
        return counts

    def _token_scores(self, drawn: DecodedTokens, row: int, count: int) -> tuple[TokenScore, ...]:
        """Returns the first tokens of a row of a chunk, with the details that were asked for."""
        ids = drawn.tokens[:count, row].tolist()
        scores = drawn.log_probabilities[:count, row].tolist()
        ranks = [0] * count
        if self._sampling.ranks:
            ranks = drawn.ranks[:count, row].tolist()
        alternatives: list[tuple[Alternative, ...]] = [()] * count
        if self._sampling.top_log_probabilities:
            alternatives = self._alternatives(drawn, row, count)
        texts = map(self._tokenizer.token_text, ids)
        return tuple(map(TokenScore, ids, texts, scores, ranks, alternatives))

    def _alternatives(
        self, drawn: DecodedTokens, row: int, count: int
    ) -> list[tuple[Alternative, ...]]:
        """Returns the likeliest tokens in the place of each of the first tokens of a row."""
        text_of = self._tokenizer.token_text
        most = self._sampling.top_log_probabilities
        ids = drawn.alternatives[:count, row, :most].tolist()
        scores = drawn.alternative_log_probabilities[:count, row, :most].tolist()
        return [
            tuple(
                Alternative(token, text_of(token), score)
                for token, score in zip(ids[step], scores[step], strict=True)
            )
            for step in range(count)
        ]
