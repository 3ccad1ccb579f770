"""`check_precision` refuses a run whose precision this process cannot compute in."""

from __future__ import annotations

from treadle.kernels.jit import BF16_MISSING
from treadle.model.config import TrainConfig
from treadle.model.enums import Precision
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
