"""One sequence scored and then learned from, window by window."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treadle.model.network.ordered_sum import in_order
from treadle.model.network.session_state import SessionState
from treadle.model.online.weights import OnlineWeights
from treadle.model.scoring.scores import NO_FLOATS, NO_INTS, Details, Scores
from treadle.model.scoring.sequence_scorer import SequenceScorer
from treadle.model.tokenizers.base import Tokenizer

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Learnt:
    """What was learned so far."""

    tokens: int = 0
    """Tokens that updates learned to predict, repeats counted."""
    nats: float = 0.0
    """Sum of -log p over them, each under the weights before it was learned."""
    seconds: float = 0.0
    """Seconds of learning, scoring not counted."""


class LearningSequence(SequenceScorer):
    """Scores as its base does; what it has scored, it learns from before it scores any more.

    A window is scored with one set of weights, and learned from in one update, from the state that
    stood before it.
    """

    def __init__(
        self,
        weights: OnlineWeights,
        window: int,
        tokenizer: Tokenizer,
        begun: SessionState,
        details: Details,
    ) -> None:
        """Makes room, once for any number of tokens.

        Args:
            weights: What learns.
            window: The most tokens of one update.
            tokenizer: Of the model.
            begun: Where the sequence begins.
            details: What is wanted of every scored token.
        """
        self._learner = weights
        self._window = window
        self._scored: list[Ints] = []
        self._start = begun
        self.learns = False
        """Whether what is scored from now on is learned from as well."""
        self.learnt = Learnt()
        """What was learned so far."""
        super().__init__(weights.parameters.shape, weights.packed, tokenizer, begun, details)

    def begin(self, begun: SessionState) -> None:
        """Begins at a state; what is scored and not learned yet is learned first."""
        self.learn()
        super().begin(begun)

    def forget(self) -> None:
        """Drops what is scored and not learned yet."""
        self._scored = []

    def score(self, tokens: Ints) -> Iterator[tuple[Ints, Scores]]:
        """Scores tokens (N,) and learn from every full window, in short steps.

        Yields:
            As its base does, and nothing at all after a step of learning.

        Raises:
            TrainingError: A score is no finite number, and as `learn`.
        """
        while tokens.size:
            part, tokens = self._cut(tokens)
            for piece, scores in super().score(part):
                if self._learner.updates and not np.isfinite(scores.log_probabilities).all():
                    raise self._learner.fault("a log-probability")
                yield piece, scores
            if self._full():
                self.learn()
                yield NO_INTS, Scores.plain(NO_FLOATS)

    def learn(self) -> None:
        """Learns from what is scored and not learned yet, at most one window, in one update.

        Raises:
            TrainingError: See `OnlineWeights.learn`.
        """
        if not self._scored:
            return
        begin = time.perf_counter()
        before = self._start
        lead = [before.token] if before.token >= 0 else []
        window = np.concatenate((np.array(lead, np.int32), *self._scored)).astype(np.int32)
        self._scored = []
        if window.size > 1:
            loss = self._learner.learn(before.hs, before.cs, window[:-1], window[1:])
            seconds = self.learnt.seconds + time.perf_counter() - begin
            nats = in_order([loss], self.learnt.nats)
            self.learnt = Learnt(self.learnt.tokens + window.size - 1, nats, seconds)

    def _cut(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Returns what of tokens (N,) belongs to the window being scored, and what comes later."""
        if not self.learns:
            return tokens, tokens[:0]
        if not self._scored:
            self._start = self.state
        room = self._window - self._targets()
        self._scored.append(tokens[:room])
        return tokens[:room], tokens[room:]

    def _full(self) -> bool:
        return bool(self._scored) and self._targets() == self._window

    def _targets(self) -> int:
        """Tokens of the window that something predicts."""
        return sum(part.size for part in self._scored) - (self._start.token < 0)
