"""One sequence scored from any state on, window by window, with the state at every place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.model.network.parallel import Pool
from treadle.model.network.prefill import WINDOW
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape
from treadle.model.scoring.scorer import Scorer
from treadle.model.scoring.scores import Details, Scores
from treadle.model.tokenizers.base import Tokenizer

Ints = npt.NDArray[np.int32]

_GOES_ON = np.zeros(1, np.bool_)


class SequenceScorer:
    """Reads and scores one sequence.

    The last token is not read before the next one is known: reading and foretelling are one pass.
    """

    def __init__(
        self,
        shape: Shape,
        weights: structs.Weights,
        tokenizer: Tokenizer,
        begun: SessionState,
        details: Details,
    ) -> None:
        """Makes room, once for any number of tokens.

        Args:
            shape: The network's sizes.
            weights: Packed for inference.
            tokenizer: Of the model.
            begun: Where the sequence begins; see `Model.beginning`.
            details: What is wanted of every scored token.
        """
        self._scorer = Scorer(shape, weights, 1, WINDOW, Pool(1))
        self._tokenizer = tokenizer
        self._details = details
        self.begin(begun)

    def begin(self, begun: SessionState) -> None:
        """Begins at a state."""
        self._scorer.begin(begun.hs, begun.cs)
        self._begun = begun
        self._before, self._last = -1, begun.token
        self._shown = self._tokenizer.stream(begun.held)

    def read(self, tokens: Ints) -> Iterator[None]:
        """Reads tokens (N,) without a score, a window a step."""
        for window in self._windows(tokens):
            if window.size > 1:
                self._scorer.read(window[:-1].reshape(-1, 1), _GOES_ON)
            yield

    def score(self, tokens: Ints) -> Iterator[tuple[Ints, Scores]]:
        """Scores tokens (N,), a window a step.

        Yields:
            The next tokens (n,) and their scores (n,). Nothing foretells a token that has none
            before it: the first scores are then one fewer than the tokens.
        """
        for window in self._windows(tokens):
            lead = int(self._last >= 0)
            if window.size > 1:
                column = window.reshape(-1, 1)
                scores = self._scorer.scores(column[:-1], column[1:], _GOES_ON, self._details)
                yield window[lead:], scores.text()
            else:
                yield window, Scores.plain(np.zeros(0, np.float32))

    def _windows(self, tokens: Ints) -> Iterator[Ints]:
        """Yields the tokens of each window, the last one before it first where there is one."""
        start = 0
        while start < tokens.size:
            lead = np.array([self._last] if self._last >= 0 else [], np.int32)
            part = tokens[start : start + WINDOW + 1 - lead.size]
            window = np.concatenate((lead, part)).astype(np.int32)
            yield window
            self._shown.push(part)
            self._before = int(window[-2]) if window.size > 1 else -1
            self._last = int(part[-1])
            start += part.size

    @property
    def state(self) -> SessionState:
        """The state after all tokens so far; it counts nothing for penalties."""
        hs, cs = self._scorer.states()
        held = self._shown.held
        return replace(self._begun, hs=hs, cs=cs, token=self._last, held=held, counts=None)

    @property
    def state_before_last(self) -> SessionState:
        """The state after all tokens but the last, which has been scored and is a special one."""
        hs, cs = self._scorer.states(back=1)
        held = self._shown.held
        return replace(self._begun, hs=hs, cs=cs, token=self._before, held=held, counts=None)
