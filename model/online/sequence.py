"""`LearningSequence` scores one sequence and learns from it, window by window."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treadle.model.network.ordered_sum import in_order
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.online.weights import OnlineWeights
from treadle.model.scoring.scores import NO_FLOATS, NO_INTS, Details, Scores
from treadle.model.scoring.sequence_scorer import SequenceScorer

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class LearnedTotals:
    """Totals over all that a session has learned so far."""

    tokens: int = 0
    """Tokens that updates learned to predict, repeats counted."""
    nats: float = 0.0
    """Sum of -log p over them, each under the weights before it was learned."""
    seconds: float = 0.0
    """Seconds of learning, scoring not counted."""


class LearningSequence(SequenceScorer):
    """Scores like its base class, and learns from what it has scored before it scores any more.

    A window is scored with one set of weights, and learned from in one update, beginning with the
    state before the window.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        weights: OnlineWeights,
        window: int,
        start: SessionState,
        details: Details,
    ) -> None:
        """Allocates memory, once for any number of tokens.

        Args:
            network: The network that scores, with the weights that learn.
            weights: The weights that learn.
            window: The most tokens of one update.
            start: The state that the sequence begins with.
            details: What to report of every scored token.
        """
        self._online_weights = weights
        self._window = window
        self._scored: list[Ints] = []
        self._window_start = start
        self.learns = False
        """Whether what is scored from now on is learned from as well."""
        self.totals = LearnedTotals()
        """Totals over all that was learned so far."""
        super().__init__(network, start, details)

    def begin(self, start: SessionState) -> None:
        """Begins at a state; what is scored and not learned yet is learned first."""
        self.learn()
        super().begin(start)

    def rewind(self, totals: LearnedTotals) -> None:
        """Drops what is scored and not learned yet, and sets the totals to earlier ones."""
        self._scored = []
        self.totals = totals

    def score(self, tokens: Ints) -> Iterator[tuple[Ints, Scores]]:
        """Scores tokens (N,) and learns from every full window, in short steps.

        Args:
            tokens: (N,), the next tokens.

        Yields:
            What its base class yields, and empty arrays after a step of learning.

        Raises:
            TrainingError: A score is not a finite number, and as `learn`.
        """
        while tokens.size:
            part, tokens = self._split(tokens)
            for piece, scores in super().score(part):
                is_finite = np.isfinite(scores.log_probabilities).all()
                if self._online_weights.updates and not is_finite:
                    raise self._online_weights.not_finite("a log-probability")
                yield piece, scores
            if self._is_full():
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
        start = self._window_start
        lead = [start.token] if start.token >= 0 else []
        window = np.concatenate((np.array(lead, np.int32), *self._scored)).astype(np.int32)
        self._scored = []
        if window.size > 1:
            loss = self._online_weights.learn(start.hs, start.cs, window[:-1], window[1:])
            self.totals = LearnedTotals(
                tokens=self.totals.tokens + window.size - 1,
                nats=in_order([loss], self.totals.nats),
                seconds=self.totals.seconds + time.perf_counter() - begin,
            )

    def _split(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Returns the tokens that belong to the window being scored, and those of later ones."""
        if not self.learns:
            return tokens, tokens[:0]
        if not self._scored:
            self._window_start = self.state
        capacity = self._window - self._target_count()
        self._scored.append(tokens[:capacity])
        return tokens[:capacity], tokens[capacity:]

    def _is_full(self) -> bool:
        return bool(self._scored) and self._target_count() == self._window

    def _target_count(self) -> int:
        """Returns how many tokens of the window have a token before them that predicts them."""
        return sum(part.size for part in self._scored) - (self._window_start.token < 0)
