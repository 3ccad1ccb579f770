"""`Parameters` holds the numbers of a network in one flat float32 buffer, with named views.

The optimizer, the norm and the checkpoint use the buffer; the kernels use the views, stacked by
layer (`treadle.kernels.structs.Parameters`); users see the names of the documentation and of the
reference: `embedding`, `Wx0`, `Wh0`, `b0`, `bh0`, `Wx1`, ..., `Wy`, `by`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.kernels.activations import log
from treadle.kernels.aligned_arrays import aligned_zeros
from treadle.kernels.random import fill_uniform
from treadle.model.enums import Cell
from treadle.model.errors import LoadError
from treadle.model.network.shape import Shape

Array = npt.NDArray[np.float32]
Named = Mapping[str, npt.NDArray[np.generic]]

_ALIGNMENT = 16
"""Floats of a cache line; every view begins on one."""

FIRST_STREAM = 16
"""The random stream of the first array of parameters; those below belong to sampling."""


def flat_views(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Returns views of a flat buffer, one of each shape, each beginning on a cache line."""
    views = {}
    position = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[position : position + size].reshape(shape)
        position += -(-size // _ALIGNMENT) * _ALIGNMENT
    return views


def flat_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns how many floats `flat_views` needs."""
    return sum(-(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values())


class Parameters:
    """All numbers of one network, or a buffer of the same layout (gradient, moments)."""

    def __init__(self, shape: Shape) -> None:
        """Allocates a network's numbers, all 0.

        Args:
            shape: The network's sizes.
        """
        self.shape = shape
        self.flat: Array = aligned_zeros(flat_size(shape.stacks))
        self.stacks = structs.Parameters(**flat_views(self.flat, shape.stacks))

    @classmethod
    def initial(cls, shape: Shape, seed: int) -> Parameters:
        """Draws small random parameters, as PyTorch does by default.

        Weights and biases are uniform in +-1/sqrt(H); embeddings have unit variance, uniform
        rather than normal so that no library's logarithm decides on their bits. Tied embeddings
        begin like output weights: logits would be large from the start otherwise. The bias of a
        cluster of n tokens begins at log n, so that all tokens are about equally likely.

        Args:
            shape: The network's sizes.
            seed: 64 bits; the same seed gives the same bits everywhere.

        Returns:
            The parameters.
        """
        parameters = cls(shape)
        for number, (name, stack) in enumerate(parameters.stacks._asdict().items()):
            if name == "bh" and shape.cell is not Cell.GRU:
                continue
            wide = name == "embedding" and not shape.tied
            limit = math.sqrt(3.0) if wide else 1 / math.sqrt(shape.H)
            stream = np.uint64(FIRST_STREAM + number)
            fill_uniform(np.uint64(seed), stream, np.float32(limit), stack.reshape(-1))
        for c, size in enumerate(np.diff((*shape.clusters, shape.V))):
            parameters.stacks.bc[c] += log(np.float32(size))
        return parameters

    def named(self) -> dict[str, Array]:
        """Returns views under the names `embedding`, `Wx0`, `Wh0`, `b0`, ..., `Wy`, `by`."""
        views = {}
        for name in self.shape.named:
            if name in ("embedding", "Wx0", "Wy", "by", "Wc", "bc"):
                views[name] = getattr(self.stacks, name)
            else:
                stem = name.rstrip("0123456789")
                layer = int(name.lstrip("Wbhx"))
                views[name] = getattr(self.stacks, stem)[layer - (stem == "Wx")]
        return views

    @classmethod
    def from_named(cls, shape: Shape, arrays: Named) -> Parameters:
        """Copies arrays under their names into one buffer.

        Args:
            shape: The network's sizes.
            arrays: One array for each name of `shape.named`, in its shape. With tied weights `Wy`
                is optional, and must be the embedding's transpose.

        Returns:
            The parameters.

        Raises:
            LoadError: A name is missing or unknown, a shape is wrong, or tied weights differ.
        """
        arrays = _without_tied(arrays) if shape.tied else arrays
        if set(arrays) != set(shape.named):
            odd = sorted(set(arrays) ^ set(shape.named))
            raise LoadError(f"the parameters do not fit the network: see {', '.join(odd)}")
        # Before memory is allocated: a damaged header may claim any size.
        for name, expected in shape.named.items():
            if arrays[name].shape != expected:
                raise LoadError(f"parameter {name} has shape {arrays[name].shape}, not {expected}")
        parameters = cls(shape)
        for name, view in parameters.named().items():
            view[...] = arrays[name]
        return parameters


def _without_tied(arrays: Named) -> Named:
    """Returns the arrays without the output weights.

    Raises:
        LoadError: The output weights are not the embedding's transpose, bit for bit.
    """
    if "Wy" not in arrays or "embedding" not in arrays:
        return arrays
    embedding = arrays["embedding"]
    output = arrays["Wy"].T
    if embedding.shape != output.shape or embedding.tobytes() != output.tobytes():
        raise LoadError(
            "the output weights are not the embedding's: load them without tied_weights"
        )
    return {name: array for name, array in arrays.items() if name != "Wy"}
