"""`Embedder` turns a text into a vector: the network's hidden states after reading it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treadle.model.enums import UnknownPolicy
from treadle.model.network.parallel import Pool
from treadle.model.network.prefill import WINDOW
from treadle.model.network.shards import CONTINUED
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scorer import Scorer
from treadle.model.tokenizers.incremental_encoder import encode_in_steps

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Embedding:
    """The hidden states after a text."""

    states: Array = field(repr=False)
    """(L, H), the hidden states after the text's last token, each number between -1 and 1."""
    token_count: int
    """Tokens read, without the token that begins an item."""


class Embedder:
    """Turns texts into vectors, one after the other, in the same memory."""

    def __init__(self, network: TrainedNetwork, policy: UnknownPolicy | None = None) -> None:
        """Allocates memory, once for any number of texts.

        Args:
            network: The network that reads the texts.
            policy: What to do with unknown symbols; None: the model's own policy.
        """
        shape = network.shape
        self._tokenizer = network.tokenizer
        self._policy = policy
        self._scorer = Scorer(shape, network.weights, 1, WINDOW, Pool(1))
        self._zeros = np.zeros((shape.L, shape.H), np.float32)

    def embedding(self, text: str | Ints) -> Iterator[Embedding | None]:
        """Reads a text, in short steps.

        Layout LINES reads the token that begins an item before the text, and no token that ends
        it. If there is nothing to read, the states are zeros.

        Args:
            text: The text to read, or its tokens (N,), each below the vocabulary's size.

        Yields:
            None after every step, and at last the embedding.

        Raises:
            UnknownSymbolError: A symbol is not in the vocabulary and the policy is ERROR.
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        if isinstance(text, str):
            tokens = yield from encode_in_steps(self._tokenizer, text, self._policy)
        else:
            tokens = text
        begin = [] if self._tokenizer.begin is None else [self._tokenizer.begin]
        sequence = np.concatenate((np.array(begin, np.int32), tokens))
        self._scorer.begin(self._zeros, self._zeros)
        for start in range(0, sequence.size, WINDOW):
            window = sequence[start : start + WINDOW].reshape(-1, 1)
            self._scorer.read(window, CONTINUED)
            yield None
        hs, _ = self._scorer.states()
        yield Embedding(hs, tokens.size)
