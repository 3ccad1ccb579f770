"""`scorer_bytes` estimates the memory of a scorer, from parts that other estimates share."""

from __future__ import annotations

from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PANEL
from treadle.model.enums import Cell, OptimizerKind
from treadle.model.network.prefill import WINDOW
from treadle.model.network.shape import Shape

FLOAT_BYTES = 4
"""Bytes of a float32 number."""

MOMENTS = {OptimizerKind.SGD: 0, OptimizerKind.ADAGRAD: 1, OptimizerKind.ADAM: 2}
"""How many numbers an optimizer keeps for each parameter."""


def scorer_bytes(shape: Shape) -> int:
    """Returns the memory of a scorer of one sequence without the model, in bytes."""
    logits = shape.V + (2 * shape.logit_width if shape.clusters else 0)
    return FLOAT_BYTES * (WINDOW * (step_floats(shape) + logits) + 4 * shape.L * shape.H)


def step_floats(shape: Shape) -> int:
    """Returns how many floats a workspace holds of gates and states for a step of a row."""
    states = {Cell.LSTM: 2, Cell.GRU: 4, Cell.RNN: 1}[shape.cell]
    return shape.L * (shape.G + states * shape.H)


def packed_floats(shape: Shape) -> int:
    """Returns how many floats the panels of all weights and their transposes hold."""
    H = shape.H
    G = shape.G
    V = shape.V

    def panels(K: int, N: int) -> int:
        return K * panel_count(N) * PANEL

    layers = (2 * shape.L - 1) * (panels(H, G) + panels(G, H))
    C = len(shape.clusters)
    clusters = panels(H, C) + panels(C, H)
    return panels(shape.E, G) + layers + panels(H, V) + panels(V, H) + clusters
