"""`Shape` holds the sizes of a network, and the shapes of its parameters that follow from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.kernels import structs
from treadle.model.enums import Cell
from treadle.model.errors import ConfigError
from treadle.model.network.softmax_clusters import check_clusters

if TYPE_CHECKING:
    from treadle.model.config import NetworkConfig

CELL_CODES = {Cell.RNN: structs.RNN, Cell.GRU: structs.GRU, Cell.LSTM: structs.LSTM}
"""The number of each cell in kernels."""

GATES = {Cell.RNN: 1, Cell.GRU: 3, Cell.LSTM: 4}
"""Columns of a cell's gates, in multiples of H."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a network: cell, vocabulary, embedding, hidden units and layers."""

    cell: Cell
    """The recurrent cell."""
    V: int
    """Tokens in the vocabulary."""
    E: int
    """Length of an embedding; 0 for one-hot input."""
    H: int
    """Hidden units of a layer."""
    L: int
    """Layers."""
    tied: bool = False
    """Whether the output weights are the embedding's transpose; E = H then."""
    clusters: tuple[int, ...] = ()
    """The first token of every cluster of a factored softmax; none where it is full."""

    @classmethod
    def of(cls, network: NetworkConfig, vocabulary_size: int) -> Shape:
        """Returns the sizes of a network.

        Args:
            network: The network's settings.
            vocabulary_size: Tokens in the vocabulary.

        Raises:
            ConfigError: See `check_network`.
        """
        check_network(network)
        return cls(
            cell=network.cell,
            V=vocabulary_size,
            E=network.embedding_size,
            H=network.hidden_size,
            L=network.layers,
            tied=network.tied_weights,
            clusters=network.softmax_clusters,
        )

    @property
    def G(self) -> int:  # noqa: N802 - the field's own letter
        """Columns of the gates: H, 3H or 4H."""
        return GATES[self.cell] * self.H

    @property
    def stacks(self) -> dict[str, tuple[int, ...]]:
        """The shape of every stacked array, in the order of the buffer."""
        V = self.V
        E = self.E
        H = self.H
        L = self.L
        G = self.G
        return {
            "embedding": (V, E) if E else (0, 0),
            "Wx0": (E or V, G),
            "b": (L, G),
            "bh": (L, H),
            "Wx": (L - 1, H, G),
            "Wh": (L, H, G),
            "Wy": (0, 0) if self.tied else (H, V),
            "by": (V,),
            "Wc": (H, len(self.clusters)) if self.clusters else (0, 0),
            "bc": (len(self.clusters),),
        }

    @property
    def named(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array under its name, in the order of the layers."""
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.V, self.E)} if self.E else {}
        for layer in range(self.L):
            shapes[f"Wx{layer}"] = (self.H if layer else self.E or self.V, self.G)
            shapes[f"Wh{layer}"] = (self.H, self.G)
            shapes[f"b{layer}"] = (self.G,)
            if self.cell is Cell.GRU:
                shapes[f"bh{layer}"] = (self.H,)
        if not self.tied:
            shapes["Wy"] = (self.H, self.V)
        shapes["by"] = (self.V,)
        if self.clusters:
            shapes["Wc"] = (self.H, len(self.clusters))
            shapes["bc"] = (len(self.clusters),)
        return shapes

    @property
    def logit_width(self) -> int:
        """Logits of a row that training holds at once: V, or the head or the largest cluster."""
        cuts = (0, *self.clusters, self.V)
        return max(last - first for first, last in itertools.pairwise(cuts))

    @property
    def parameter_count(self) -> int:
        """How many numbers the network has."""
        return sum(math.prod(shape) for shape in self.named.values())


def check_network(config: NetworkConfig) -> None:
    """Refuses settings of a network that contradict one another.

    Args:
        config: The network's settings.

    Raises:
        ConfigError: The weights are tied, but embedding and hidden states differ in size; or the
            clusters of the softmax are not usable.
    """
    check_clusters(config)
    if config.tied_weights and config.embedding_size != config.hidden_size:
        raise ConfigError(
            f"network.tied_weights needs embedding_size {config.hidden_size}, the hidden_size, "
            f"but it is {config.embedding_size}: set both to the same number, or untie the weights",
            "network.tied_weights",
        )
