"""A text as a vector: what the network's states are once it has read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treadle.model.enums import UnknownPolicy
from treadle.model.network.parallel import Pool
from treadle.model.network.prefill import WINDOW
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scorer import Scorer
from treadle.model.tokenizers.incremental import encode_in_steps

Array = npt.NDArray[np.float32]

_GOES_ON = np.zeros(1, np.bool_)


@dataclass(frozen=True)
class Embedding:
    """What a text leaves behind."""

    states: Array = field(repr=False)
    """(L, H), the hidden states after the text's last token, each number between -1 and 1."""
    token_count: int
    """Tokens read, without what stands before an item."""


class Embedder:
    """Makes texts vectors, one after the other, in the same room."""

    def __init__(self, network: TrainedNetwork, policy: UnknownPolicy | None = None) -> None:
        """Makes room.

        Args:
            network: Whose states they are.
            policy: What to do with unknown symbols; None: the model's own policy.
        """
        self._tokenizer = network.tokenizer
        self._policy = policy
        self._scorer = Scorer(network.shape, network.weights, 1, WINDOW, Pool(1))
        shape = network.shape
        self._zeros = np.zeros((shape.L, shape.H), np.float32)

    def embedding(self, text: str) -> Iterator[Embedding | None]:
        """Reads a text, in short steps.

        Layout LINES reads the token that begins an item before it, and none that ends it. Where
        there is nothing to read the states are zeros.

        Yields:
            None after every step, and at last the embedding.

        Raises:
            UnknownSymbolError: A symbol is not in the vocabulary and the policy is ERROR.
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        tokens = yield from encode_in_steps(self._tokenizer, text, self._policy)
        begin = [] if self._tokenizer.begin is None else [self._tokenizer.begin]
        read = np.concatenate((np.array(begin, np.int32), tokens))
        self._scorer.begin(self._zeros, self._zeros)
        for start in range(0, read.size, WINDOW):
            window = read[start : start + WINDOW].reshape(-1, 1)
            self._scorer.read(window, _GOES_ON)
            yield None
        yield Embedding(self._scorer.states()[0], tokens.size)
