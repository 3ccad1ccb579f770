"""`ValidationPlan` says what the validations of a run read: a sample each, and all at the end.

The validations of a run read the same sample of the validation part, so that their losses compare.
Together they take at most SHARE of its work. At the end the model that is kept is evaluated on the
whole part, once. Where a limit of time ends the run, that pass and the one over the test part lie
within the limit: time is reserved for them, as much as they need by the first validation's speed,
and at most FINAL_SHARE of the limit; what they cannot read in that time they leave out.

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
"""The smallest sample: fewer tokens would say too little, whatever share of the run they take."""

_COST = {Precision.FP32: 1 / 3, Precision.BF16: 0.6}
"""The work of validating a token, in units of training on it: validation has no backward pass, and
it computes in float32."""


@dataclass(frozen=True)
class ValidationPlan:
    """What the validations of a run read, as decided at the first one."""

    sample_tokens: int
    """Tokens of the validation part that each reads; all of it where it has no more."""
    reserve_s: float | None = None
    """Seconds of the time limit reserved for the passes at the end; None: not decided yet."""
    final_share: float = 1.0
    """The share of the validation and the test part that is read at the end."""


def sample_tokens(config: TrainConfig, steps: int, tokens: int, share: float) -> int:
    """Returns the tokens that each validation of a run may read.

    Args:
        config: The settings as filled in.
        steps: Optimizer steps done at the first validation, 1 or more.
        tokens: Tokens trained on until then.
        share: The share of the run that is done then, 0 to 1.
    """
    interval = config.report.validation_interval_steps
    if interval is None:
        between = tokens / max(share, 1e-9) / VALIDATIONS
    else:
        between = tokens / steps * interval
    return max(LEAST_TOKENS, int(SHARE * between / _COST[config.optimizer.precision]))


def reserve(limit_s: float, full_s: float) -> tuple[float, float]:
    """Returns what is reserved of a time limit.

    Args:
        limit_s: The limit, in seconds.
        full_s: Seconds that the passes at the end would take to read everything.

    Returns:
        The seconds, and the share of everything that can be read in them.
    """
    most = FINAL_SHARE * limit_s
    if full_s <= most:
        return full_s, 1.0
    return most, most / full_s
