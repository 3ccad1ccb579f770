"""`ValidationPlan` holds the size of the sample that each validation of a run reads.

The validations of a run read the same sample of the validation part, so that their losses can be
compared. Together they take at most SHARE of its work. At the end the selected model is evaluated
once on the whole part. If a time limit ends the run, that pass and the one over the test part count
towards the limit. Time is reserved for them: as much as they need at the speed of the first
validation, but at most FINAL_SHARE of the limit. They skip the tokens that they cannot read in that
time.

The size of the sample is decided at the first validation, by tokens alone: a run that ends by
steps, passes or tokens has the same sample on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.model.enums import Precision
from treadle.model.training.plan import VALIDATIONS

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig

SHARE = 0.1
"""The largest share of a run's work that its validations take together."""
FINAL_SHARE = 0.1
"""The largest share of a time limit that is reserved for the passes at the end."""
LEAST_TOKENS = 4096
"""The smallest sample, in tokens, at any cost: the loss on fewer would be too inexact."""

_COST = {Precision.FP32: 1 / 3, Precision.BF16: 0.6}
"""The work of validating a token, in units of training on it: validation has no backward pass, and
it computes in float32."""


@dataclass(frozen=True)
class ValidationPlan:
    """The sizes of the validations of a run, as decided at the first one."""

    sample_tokens: int
    """Tokens of the validation part that each reads; the whole part if it is no larger."""
    reserve_s: float | None = None
    """Seconds of the time limit reserved for the passes at the end; None: not decided yet."""
    final_share: float = 1.0
    """The share of the validation and the test part that is read at the end."""


def sample_tokens(config: TrainConfig, steps: int, tokens: int, share: float) -> int:
    """Returns the tokens that each validation of a run may read.

    Args:
        config: The resolved settings.
        steps: Optimizer steps done at the first validation, 1 or more.
        tokens: Tokens trained on before it.
        share: The share of the run that is done then, 0 to 1.
    """
    interval = config.report.validation_interval_steps
    if interval is None:
        between = tokens / max(share, 1e-9) / VALIDATIONS
    else:
        between = tokens / steps * interval
    return max(LEAST_TOKENS, int(SHARE * between / _COST[config.optimizer.precision]))


def reserve(limit_s: float, full_s: float) -> tuple[float, float]:
    """Returns the time to reserve within a time limit.

    Args:
        limit_s: The limit, in seconds.
        full_s: Seconds that the final passes need to read everything.

    Returns:
        The seconds, and the share of everything that can be read in them.
    """
    most = FINAL_SHARE * limit_s
    if full_s <= most:
        return full_s, 1.0
    return most, most / full_s
