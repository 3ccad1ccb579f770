"""`TextScorer` scores texts that follow the same context, which is read once."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt

from treadle.model.enums import UnknownPolicy
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scores import PLAIN, Details, Scores, TextScore, text_score
from treadle.model.scoring.sequence_scorer import SequenceScorer
from treadle.model.tokenizers.incremental_encoder import encode_in_steps

Ints = npt.NDArray[np.int32]


class TextScorer:
    """Scores one text after the other; each begins where the context ends, or at the state."""

    def __init__(
        self,
        network: TrainedNetwork,
        unknown_policy: UnknownPolicy | None = None,
        details: Details = PLAIN,
        state: SessionState | None = None,
    ) -> None:
        """Allocates memory, once for any number of texts.

        Args:
            network: The network that scores.
            unknown_policy: What to do with unknown symbols; None: the model's own policy.
            details: What to report besides log-probabilities.
            state: The state before the context, or before each text; None: a new item or text.
        """
        self._tokenizer = network.tokenizer
        self._policy = unknown_policy
        self._start = network.beginning(state)
        self._sequence = SequenceScorer(network, self._start, details)

    def read_context(self, context: str) -> Iterator[None]:
        """Reads the context of all texts, in short steps; its tokens are not scored.

        Args:
            context: The text that all texts follow.

        Yields:
            None after every step.

        Raises:
            UnknownSymbolError: A symbol is not in the vocabulary.
            ConfigError: The policy needs an unknown token and the model has none.
        """
        tokens = yield from encode_in_steps(self._tokenizer, context, self._policy)
        yield from self._sequence.read(tokens)
        self._start = self._sequence.state

    def encode(self, text: str) -> Generator[None, None, Ints]:
        """Tokenizes a text, in short steps.

        Args:
            text: The text to tokenize.

        Yields:
            None after every step.

        Returns:
            The tokens, (N,); of layout LINES with the one that ends an item.

        Raises:
            UnknownSymbolError: A symbol is not in the vocabulary.
            ConfigError: The policy needs an unknown token and the model has none.
        """
        tokens = yield from encode_in_steps(self._tokenizer, text, self._policy)
        end = self._tokenizer.end
        return tokens if end is None else np.append(tokens, np.int32(end)).astype(np.int32)

    def score(self, tokens: Ints) -> Iterator[TextScore | None]:
        """Scores a text by its tokens, in short steps.

        Args:
            tokens: (N,), as `encode` returned them.

        Yields:
            None after every step, and the score at the end.
        """
        sequence = self._sequence
        sequence.begin(self._start)
        parts: list[Scores] = []
        total = 0.0
        for _, scores in sequence.score(tokens):
            parts.append(scores)
            total = in_order(scores.log_probabilities.tolist(), total)
            yield None
        after = sequence.state if self._tokenizer.end is None else sequence.state_before_last
        yield text_score(self._tokenizer, tokens, Scores.joined(parts), total, after)
