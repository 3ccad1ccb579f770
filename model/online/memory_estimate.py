"""`learner_bytes` estimates the memory of a learner, `snapshot_bytes` that of its snapshot."""

from __future__ import annotations

from treadle.kernels import structs
from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.structs import ROW_BLOCK
from treadle.model.network.engine import rows_of_table
from treadle.model.network.memory_estimate import (
    FLOAT_BYTES,
    MOMENTS,
    packed_floats,
    scorer_bytes,
    step_floats,
)
from treadle.model.network.shape import Shape
from treadle.model.online.config import LearningConfig


def learner_bytes(shape: Shape, config: LearningConfig, units: bool = False) -> int:
    """Returns what a learner takes without the model that it begins with, in bytes.

    Args:
        shape: The network's sizes.
        config: The learner's settings.
        units: Whether units may be taken back, for which a copy of the weights is kept.
    """
    H = shape.H
    V = shape.V
    G = shape.G
    rows = rows_of_table(V, config.window)
    # The scorer's input, folded or not, and the engine's table with its gradient.
    tables = V * max(shape.E, G if shape.E == 0 or config.window >= V else 0) + 2 * rows * G
    work = config.window * (step_floats(shape) + H) + min(structs.LOGIT_ROWS, config.window) * V
    block = ROW_BLOCK * PANEL * (panel_count(max(H, shape.E)) + panel_count(G))
    own = H * V if shape.tied else 0
    once = 2 * shape.parameter_count + packed_floats(shape) + tables + work + block + own
    moments = MOMENTS[config.optimizer] * shape.parameter_count
    copies = snapshot_bytes(shape, config) if units else 0
    return FLOAT_BYTES * (once + moments) + copies + scorer_bytes(shape)


def snapshot_bytes(shape: Shape, config: LearningConfig) -> int:
    """Returns what a snapshot of a learner takes, in bytes."""
    return FLOAT_BYTES * shape.parameter_count * (1 + MOMENTS[config.optimizer])
