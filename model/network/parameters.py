"""The trained numbers of a network: one flat float32 buffer and named views of it.

The optimizer, the norm and the checkpoint see the buffer; the kernels see the views, stacked by
layer (`treadle.kernels.structs.Parameters`); people see the names of the documentation and of
the reference: `embedding`, `Wx0`, `Wh0`, `b0`, `bh0`, `Wx1`, ..., `Wy`, `by`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.kernels.random import fill_uniform
from treadle.model.enums import Cell
from treadle.model.errors import LoadError
from treadle.model.network.shape import Shape

Array = npt.NDArray[np.float32]
Named = Mapping[str, npt.NDArray[np.generic]]

_ALIGNMENT = 16  # floats: every view begins on a cache line
FIRST_STREAM = 16
"""The random stream of the first array of parameters; those below are the draw's."""


def flat_views(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Cuts views of the given shapes from a flat buffer, each beginning on a cache line."""
    views, position = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[position : position + size].reshape(shape)
        position += -(-size // _ALIGNMENT) * _ALIGNMENT
    return views


def flat_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns how many floats `flat_views` needs."""
    return sum(-(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values())


class Parameters:
    """All numbers of one network, or one of the buffers beside them (gradients, moments)."""

    def __init__(self, shape: Shape) -> None:
        """Makes room for a network's numbers, all 0.

        Args:
            shape: The network's sizes.
        """
        self.shape = shape
        self.flat: Array = np.zeros(flat_size(shape.stacks), np.float32)
        self.stacks = structs.Parameters(**flat_views(self.flat, shape.stacks))

    @classmethod
    def initial(cls, shape: Shape, seed: int) -> Parameters:
        """Draws small random parameters, as PyTorch does by default.

        Weights and biases are uniform in +-1/sqrt(H); embeddings have unit variance, uniform
        rather than normal so that no library's logarithm decides on their bits. One that is the
        output weights, too, begins as those do: logits would be large from the start otherwise.

        Args:
            shape: The network's sizes.
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
        """Returns views under the names `embedding`, `Wx0`, `Wh0`, `b0`, ..., `Wy`, `by`."""
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
        """Copies arrays under their names into one buffer.

        Args:
            shape: The network's sizes.
            arrays: One array a name of `shape.named`, in its shape. Of tied weights `Wy` may be
                there, too, and must then be the embedding's transpose.

        Raises:
            LoadError: A name is missing or unknown, a shape is another, or tied weights
                differ.
        """
        arrays = _without_tied(arrays) if shape.tied else arrays
        if set(arrays) != set(shape.named):
            odd = sorted(set(arrays) ^ set(shape.named))
            raise LoadError(f"the parameters do not fit the network: see {', '.join(odd)}")
        for name, wanted in shape.named.items():  # before room is made for what a header claims
            if arrays[name].shape != wanted:
                raise LoadError(f"parameter {name} has shape {arrays[name].shape}, not {wanted}")
        parameters = cls(shape)
        for name, view in parameters.named().items():
            view[...] = arrays[name]
        return parameters


def _without_tied(arrays: Named) -> Named:
    """Leaves out the output weights, which have to be the embedding's transpose bit for bit."""
    if "Wy" not in arrays or "embedding" not in arrays:
        return arrays
    ours, theirs = arrays["embedding"], arrays["Wy"].T
    if ours.shape != theirs.shape or ours.tobytes() != theirs.tobytes():
        raise LoadError(
            "the output weights are not the embedding's: load them without tied_weights"
        )
    return {name: array for name, array in arrays.items() if name != "Wy"}
