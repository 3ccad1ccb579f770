"""`check_precision` refuses a run whose precision this process cannot compute in.

`check_learns` refuses to learn from a model that is viewed in a precision for inference.
"""

from __future__ import annotations

from treadle.kernels.jit import BF16_MISSING
from treadle.model.config import TrainConfig
from treadle.model.enums import InferencePrecision, Precision
from treadle.model.errors import ConfigError


def check_precision(config: TrainConfig) -> None:
    """Refuses a run whose products cannot be compiled here.

    Only training needs this check: a model trained with BF16 runs on every processor.

    Args:
        config: The run's settings.

    Raises:
        ConfigError: This processor, or the one that kernels are compiled for, lacks what BF16
            needs.
    """
    if config.optimizer.precision is Precision.BF16 and BF16_MISSING:
        raise ConfigError(
            f"optimizer.precision cannot be bf16: {BF16_MISSING}; set precision to fp32",
            "optimizer.precision",
        )


def check_learns(precision: InferencePrecision, learner: str) -> None:
    """Refuses a model whose precision is not that of its weights.

    Args:
        precision: The precision that the model is viewed in.
        learner: What would learn in another one: `Learner`.

    Raises:
        ConfigError: It is not FP32.
    """
    if precision is not InferencePrecision.FP32:
        raise ConfigError(
            f"{learner} computes in float32 and not in {precision.value}, as the model does: give "
            "it model.at(InferencePrecision.FP32)"
        )
