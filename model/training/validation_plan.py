"""How much of a run goes into its validations: the sample that each reads, and the full pass.

The validations of a run read the same sample of the validation part, so that their losses compare.
They take at most SHARE of its work, together. At the end the weights that are kept read the whole
part, once. Where a limit of time ends the run, that pass and the one over the test part lie within
the limit: time is kept back for them, as much as they need by the first validation's speed, and
at most FINAL_SHARE of the limit; what they cannot read in that time they leave out.

A sample is sized at the first validation, by tokens alone: a run that ends by steps, passes or
tokens has the same one on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.model.enums import Precision
from treadle.model.training.plan import VALIDATIONS

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig

SHARE = 0.1
"""The most of a run's work that its validations take together."""
FINAL_SHARE = 0.1
"""The most of a limit of time that is kept back for the passes at the end."""
LEAST_TOKENS = 4096
"""A sample of fewer tokens would say too little, whatever share of the run it takes."""

_COST = {Precision.FP32: 1 / 3, Precision.BF16: 0.6}
"""The work of validating a token, in units of training on it: there is no way back, and
validation computes in float32."""


@dataclass(frozen=True)
class ValidationPlan:
    """What the validations of a run read, as decided at the first one."""

    sample_tokens: int
    """Tokens of the validation part that each reads; more than it has for all of it."""
    reserve_s: float | None = None
    """Seconds of the time limit that are kept back for the passes at the end; None: undecided."""
    final_share: float = 1.0
    """The share of the validation and the test part that is read at the end."""


def sample_tokens(config: TrainConfig, steps: int, tokens: int, share: float) -> int:
    """Return the tokens that each validation of a run may read.

    Args:
        config: the settings as filled in.
        steps: optimizer steps done at the first validation, 1 or more.
        tokens: tokens trained on until then.
        share: the share of the run that is done then, 0 to 1.
    """
    interval = config.report.validation_interval_steps
    if interval is None:
        between = tokens / max(share, 1e-9) / VALIDATIONS
    else:
        between = tokens / steps * interval
    return max(LEAST_TOKENS, int(SHARE * between / _COST[config.optimizer.precision]))


def reserve(limit_s: float, full_s: float) -> tuple[float, float]:
    """Return what is kept back of a time limit.

    Args:
        limit_s: the limit.
        full_s: what the passes at the end would take to read everything.

    Returns:
        The seconds, and the share of everything that can be read in them.
    """
    most = FINAL_SHARE * limit_s
    if full_s <= most:
        return full_s, 1.0
    return most, most / full_s
