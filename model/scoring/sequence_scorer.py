"""`SequenceScorer` scores one sequence from any state, window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from treadle.model.network.parallel import Pool
from treadle.model.network.prefill import WINDOW
from treadle.model.network.session_state import SessionState
from treadle.model.network.shards import CONTINUED
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scorer import Scorer
from treadle.model.scoring.scores import NO_FLOATS, Details, Scores

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class SequenceScorer:
    """Reads and scores one sequence.

    The last token is not read before the next one is known: one pass reads a token and predicts
    the next.
    """

    def __init__(self, network: TrainedNetwork, start: SessionState, details: Details) -> None:
        """Allocates memory, once for any number of tokens.

        Args:
            network: The network that scores.
            start: The state that the sequence begins with; see `TrainedNetwork.beginning`.
            details: What to report of every scored token.
        """
        self._scorer = Scorer(network.shape, network.weights, 1, WINDOW, Pool(1))
        self._tokenizer = network.tokenizer
        self._details = details
        self.begin(start)

    def begin(self, start: SessionState) -> None:
        """Begins at a state."""
        self._scorer.begin(start.hs, start.cs)
        self._start = start
        self._token_before = -1
        self._last_token = start.token
        self._text = self._tokenizer.stream(start.held)

    def read(self, tokens: Ints) -> Iterator[None]:
        """Reads tokens without a score, a window a step.

        Args:
            tokens: (N,), the next tokens.

        Yields:
            None after every window.
        """
        for window in self._windows(tokens):
            if window.size > 1:
                self._scorer.read(window[:-1].reshape(-1, 1), CONTINUED)
            yield

    def score(self, tokens: Ints) -> Iterator[tuple[Ints, Scores]]:
        """Scores tokens, a window a step.

        Args:
            tokens: (N,), the next tokens.

        Yields:
            The next tokens (n,) and their scores (n,). A first token without any token before it
            has no score: the first scores are then one fewer than the tokens.
        """
        for window in self._windows(tokens):
            lead = int(self._last_token >= 0)
            if window.size > 1:
                column = window.reshape(-1, 1)
                scores = self._scorer.scores(column[:-1], column[1:], CONTINUED, self._details)
                yield window[lead:], scores.text()
            else:
                yield window, Scores.plain(NO_FLOATS)

    def _windows(self, tokens: Ints) -> Iterator[Ints]:
        """Yields the tokens of each window, led by the last token before it if there is one."""
        start = 0
        while start < tokens.size:
            lead = np.array([self._last_token] if self._last_token >= 0 else [], np.int32)
            part = tokens[start : start + WINDOW + 1 - lead.size]
            window = np.concatenate((lead, part)).astype(np.int32)
            yield window
            self._text.push(part)
            self._token_before = int(window[-2]) if window.size > 1 else -1
            self._last_token = int(part[-1])
            start += part.size

    @property
    def state(self) -> SessionState:
        """The state after all tokens so far; it has no counts for penalties."""
        hs, cs = self._scorer.states()
        return self._state(hs, cs, self._last_token)

    @property
    def state_before_last(self) -> SessionState:
        """The state after all tokens but the last, which has been scored and is a special one."""
        hs, cs = self._scorer.states(back=1)
        return self._state(hs, cs, self._token_before)

    def _state(self, hs: Array, cs: Array, token: int) -> SessionState:
        """Returns the state with some hidden states, cell states and last token."""
        held = self._text.held
        return replace(self._start, hs=hs, cs=cs, token=token, held=held, counts=None)
