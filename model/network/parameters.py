"""The trained numbers of a network: one flat float32 buffer and named views of it.

The optimizer, the norm and the checkpoint see the buffer; the kernels see the views, stacked by
layer (`treadle.kernels.structures.Parameters`); people see the names of the documentation and of
the reference: `embedding`, `Wx0`, `Wh0`, `b0`, `bh0`, `Wx1`, ..., `Wy`, `by`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treadle.kernels import structures
from treadle.kernels.random import fill_uniform
from treadle.model.config import Cell, NetworkConfig
from treadle.model.errors import CheckpointError, ConfigError
from treadle.model.network.torch_state_dict import GATES

Array = npt.NDArray[np.float32]
Named = Mapping[str, npt.NDArray[np.generic]]

CELL_CODES = {Cell.RNN: structures.RNN, Cell.GRU: structures.GRU, Cell.LSTM: structures.LSTM}

_ALIGNMENT = 16  # floats: every view begins on a cache line
FIRST_STREAM = 16
"""The random stream of the first array of parameters; those below are the draw's."""


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
    """Hidden units a layer."""
    L: int
    """Layers."""
    tied: bool = False
    """Whether the output weights are the embedding's transpose; E = H then."""

    @classmethod
    def of(cls, network: NetworkConfig, vocabulary_size: int) -> Shape:
        """Return the sizes that a config means for a vocabulary.

        Raises:
            ConfigError: see `check_network`.
        """
        check_network(network)
        return cls(
            network.cell, vocabulary_size, network.embedding_size, network.hidden_size,
            network.layers, network.tied_weights,
        )  # fmt: skip

    @property
    def G(self) -> int:  # noqa: N802 - the field's own letter
        """Columns of the gates: H, 3H or 4H."""
        return GATES[self.cell] * self.H

    @property
    def stacks(self) -> dict[str, tuple[int, ...]]:
        """The shape of every stacked array, in the order of the buffer."""
        V, E, H, L, G = self.V, self.E, self.H, self.L, self.G
        return {
            "embedding": (V, E) if E else (0, 0),
            "Wx0": (E or V, G),
            "b": (L, G),
            "bh": (L, H),
            "Wx": (L - 1, H, G),
            "Wh": (L, H, G),
            "Wy": (0, 0) if self.tied else (H, V),
            "by": (V,),
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
        return {**shapes, "by": (self.V,)}

    @property
    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for shape in self.named.values())


def check_network(config: NetworkConfig) -> None:
    """Refuse settings of a network that contradict one another.

    Args:
        config: the network's settings.

    Raises:
        ConfigError: weights are to be tied, and embedding and hidden states differ in size.
    """
    if config.tied_weights and config.embedding_size != config.hidden_size:
        raise ConfigError(
            f"network.tied_weights needs embedding_size {config.hidden_size}, the hidden_size, "
            f"and it is {config.embedding_size}: set them to the same, or untie the weights",
            "network.tied_weights",
        )


def carve(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Cut views of the given shapes from a flat buffer, each beginning on a cache line."""
    views, position = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[position : position + size].reshape(shape)
        position += -(-size // _ALIGNMENT) * _ALIGNMENT
    return views


def room(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many floats `carve` needs."""
    return sum(-(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values())


class Parameters:
    """All numbers of one network, or one of the buffers beside them (gradients, moments)."""

    def __init__(self, shape: Shape) -> None:
        """Make room for a network's numbers, all 0.

        Args:
            shape: the network's sizes.
        """
        self.shape = shape
        self.flat: Array = np.zeros(room(shape.stacks), np.float32)
        self.stacks = structures.Parameters(**carve(self.flat, shape.stacks))

    @classmethod
    def initial(cls, shape: Shape, seed: int) -> Parameters:
        """Draw small random parameters, as PyTorch does by default.

        Weights and biases are uniform in +-1/sqrt(H); embeddings have unit variance, uniform
        rather than normal so that no library's logarithm decides on their bits. One that is the
        output weights, too, begins as those do: logits would be large from the start otherwise.

        Args:
            shape: the network's sizes.
            seed: 64 bits; the same seed gives the same bits everywhere.
        """
        parameters = cls(shape)
        for number, (name, stack) in enumerate(parameters.stacks._asdict().items()):
            if name == "bh" and shape.cell is not Cell.GRU:
                continue
            wide = name == "embedding" and not shape.tied
            limit = math.sqrt(3.0) if wide else 1 / math.sqrt(shape.H)
            stream = np.uint64(FIRST_STREAM + number)
            fill_uniform(np.uint64(seed), stream, np.float32(limit), stack.reshape(-1))
        return parameters

    def named(self) -> dict[str, Array]:
        """Return views under the names `embedding`, `Wx0`, `Wh0`, `b0`, ..., `Wy`, `by`."""
        views = {}
        for name in self.shape.named:
            if name in ("embedding", "Wx0", "Wy", "by"):
                views[name] = getattr(self.stacks, name)
            else:
                stem, layer = name.rstrip("0123456789"), int(name.lstrip("Wbhx"))
                views[name] = getattr(self.stacks, stem)[layer - (stem == "Wx")]
        return views

    @classmethod
    def from_named(cls, shape: Shape, arrays: Named) -> Parameters:
        """Copy arrays under their names into one buffer.

        Args:
            shape: the network's sizes.
            arrays: one array a name of `shape.named`, in its shape. Of tied weights `Wy` may be
                there, too, and must then be the embedding's transpose.

        Raises:
            CheckpointError: a name is missing or unknown, a shape is another, or tied weights
                differ.
        """
        arrays = _without_tied(arrays) if shape.tied else arrays
        if set(arrays) != set(shape.named):
            odd = sorted(set(arrays) ^ set(shape.named))
            raise CheckpointError(f"the parameters do not fit the network: see {', '.join(odd)}")
        for name, wanted in shape.named.items():  # before room is made for what a header claims
            if arrays[name].shape != wanted:
                raise CheckpointError(
                    f"parameter {name} has shape {arrays[name].shape}, not {wanted}"
                )
        parameters = cls(shape)
        for name, view in parameters.named().items():
            view[...] = arrays[name]
        return parameters


def _without_tied(arrays: Named) -> Named:
    """Leave out the output weights, which have to be the embedding's transpose bit for bit."""
    if "Wy" not in arrays or "embedding" not in arrays:
        return arrays
    ours, theirs = arrays["embedding"], arrays["Wy"].T
    if ours.shape != theirs.shape or ours.tobytes() != theirs.tobytes():
        raise CheckpointError(
            "the output weights are not the embedding's: load them without tied_weights"
        )
    return {name: array for name, array in arrays.items() if name != "Wy"}
