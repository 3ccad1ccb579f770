"""Small random networks in two forms: float32 for the kernels, float64 for the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.kernels import reference
from treadle.kernels.dropout import (
    UNITS,
    Dropout,
    draw_keep,
    keep_bytes,
    keep_scale,
    kept_levels,
)
from treadle.model.enums import Cell
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape

CELLS = ["rnn", "gru", "lstm"]

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Network:
    """One network, its numbers exactly the same in both forms."""

    shape: Shape
    parameters: Parameters

    @property
    def cell(self) -> str:
        return self.shape.cell.value

    @property
    def reference(self) -> reference.Parameters:
        """The numbers as the reference wants them, in float64."""
        return {name: array.astype(np.float64) for name, array in self.parameters.named().items()}


def make_network(cell: str, V: int, E: int, H: int, L: int, seed: int = 0) -> Network:
    """Draws a network, its weights somewhat larger than at the start of training."""
    rng = np.random.default_rng(seed)
    shape = Shape(Cell(cell), V, E, H, L)
    drawn = reference.initialize(cell, V, E, H, L, rng)
    arrays = {name: (1.5 * array).astype(np.float32) for name, array in drawn.items()}
    return Network(shape, Parameters.from_named(shape, arrays))


def as_network(cell: str, arrays: Mapping[str, NDArray[Any]]) -> Network:
    """Makes a network of parameters by name."""
    E = arrays["embedding"].shape[1] if "embedding" in arrays else 0
    H, V = arrays["Wy"].shape
    L = sum(name.startswith("Wx") for name in arrays)
    shape = Shape(Cell(cell), V, E, H, L)
    return Network(shape, Parameters.from_named(shape, arrays))


def make_batch(V: int, T: int, B: int, seed: int = 0, ignored: float = 0.2) -> tuple[Ints, Ints]:
    """Draws tokens and targets (T, B); about a share `ignored` of the targets is -1, not all."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(V, size=(2, T, B), dtype=np.int32)
    targets[rng.random((T, B)) < ignored] = -1
    targets[-1, -1] = rng.integers(V)
    return tokens, targets


def make_engine(network: Network, B: int, T: int, threads: int = 1) -> Engine:
    """Makes an engine for batches (T, B)."""
    return Engine(network.parameters, B, T, Pool(threads))


def unit_flags(keep: NDArray[np.uint8], H: int) -> NDArray[np.bool_]:
    """Whether each unit is kept: bit i of byte k is that of unit iK + k."""
    bits = [(keep >> i) & 1 for i in range(UNITS)]
    return np.concatenate(bits, axis=-1)[..., :H].astype(np.bool_)


def dropout_masks(
    p: float, seed: int, step: int, shape: tuple[int, int, int, int], lowest: int = 0
) -> NDArray[np.float64]:
    """The reference's masks (layers, T, B, H), of the bits that an engine draws for a batch."""
    dropout = Dropout(np.uint64(seed), np.uint64(step), 0, np.uint64(kept_levels(p)))
    keep = np.zeros((*shape[:3], keep_bytes(shape[3])), np.uint8)
    draw_keep(dropout, keep, shape[1], lowest)
    return np.where(unit_flags(keep, shape[3]), np.float64(keep_scale(dropout)), 0.0)


def relative_error(ours: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, in units of the largest expected element."""
    assert ours.shape == expected.shape
    difference = np.abs(ours.astype(np.float64) - expected).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), 1e-30))


def assert_close(
    ours: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], rtol: float = 1e-5
) -> None:
    """Fails unless every array is within `rtol` of its largest expected element."""
    assert ours.keys() == expected.keys()
    errors = {name: relative_error(array, expected[name]) for name, array in ours.items()}
    assert max(errors.values()) <= rtol, {n: f"{e:.1e}" for n, e in errors.items() if not e <= rtol}


def same_bytes(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays are equal bit for bit: NaN equals itself, and 0 differs from -0."""
    return (
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    )
