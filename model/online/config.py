"""`LearningConfig` holds every setting of learning from a stream, with its range and default.

Names, ranges and defaults are those of `LearnStreamSpec` in the wire contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from treadle.model.config import OptimizerConfig
from treadle.model.enums import OptimizerKind, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.field_checks import Check, Checked, choice, real, whole

ONLINE_RATES = {OptimizerKind.SGD: 0.05, OptimizerKind.ADAM: 0.0005}
"""The rules that learn online, and their default learning rates."""


def _rule() -> dict[str, Check]:
    """Returns the metadata of a rule that learns online."""
    known = choice(OptimizerKind)["check"]
    rules = " or ".join(repr(kind.value) for kind in ONLINE_RATES)

    def check(value: object, field: str) -> object:
        kind = known(value, field) if value in list(ONLINE_RATES) else None
        if kind is None:
            raise ConfigError(f"{field} must be {rules} to learn online, not {value!s}", field)
        return kind

    return {"check": check}


@dataclass(frozen=True)
class LearningConfig(Checked):
    """How a session learns, and what it reports of every token."""

    optimizer: OptimizerKind = field(default=OptimizerKind.SGD, metadata=_rule())
    """The update rule: SGD or ADAM."""
    learning_rate: float | None = field(default=None, metadata=real())
    """The learning rate; 0: nothing is learned; None: see `rate`."""
    clip_norm: float = field(default=1.0, metadata=real())
    """The gradient's global norm is scaled down to this; 0 leaves it."""
    window: int = field(default=64, metadata=whole(1, 4096))
    """The most tokens of one update, and steps of backpropagation through time."""
    unknown_policy: UnknownPolicy | None = field(default=None, metadata=choice(UnknownPolicy))
    """What to do with symbols that the vocabulary lacks; None: the model's own policy."""
    top_log_probabilities: int = field(default=0, metadata=whole(0, 20))
    """Report so many of the likeliest tokens in the place of each token."""

    @property
    def rate(self) -> float:
        """The learning rate in use: the one given, or the rule's own default."""
        given = self.learning_rate
        return ONLINE_RATES[self.optimizer] if given is None else given

    @property
    def rule(self) -> OptimizerConfig:
        """The update rule with its settings, as the optimizer takes them."""
        return OptimizerConfig(kind=self.optimizer, clip_norm=self.clip_norm)

    def __str__(self) -> str:
        """The settings as a training record lists them."""
        clip = f"clip_norm {self.clip_norm:g}" if self.clip_norm else "no clip_norm"
        return f"{self.optimizer.value}, learning_rate {self.rate:g}, {clip}, window {self.window}"
