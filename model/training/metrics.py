"""`Metrics` holds the counters of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from treadle.model.field_checks import typed
from treadle.model.training.auto.forecast import Forecast
from treadle.model.training.progress import Progress
from treadle.model.training.validation_plan import ValidationPlan

_STORED_NAMES = {
    "elapsed_s": "elapsed",
    "wall_s": "wall",
    "interval_loss": "loss",
    "interval_s": "interval_seconds",
    "evaluations_due": "part",
    "evaluated": "examined",
    "evaluation_pending": "pending",
    "gradient_norm": "norm",
    "learning_rate": "rate",
    "last_finite_step": "good_step",
    "last_progress": "last",
    "validation_plan": "validation",
    "forecast": "outlook",
    "speed_checked": "looked",
}
"""Names of fields in stored checkpoints that differ from the names here."""


@dataclass
class Metrics:
    """The counters of a run, without its weights and the optimizer's state."""

    tokens: int = 0
    """Tokens trained on, repeats counted."""
    elapsed_s: float = 0.0
    """Seconds of training, including validations and samples."""
    wall_s: float = 0.0
    """Wall-clock seconds of the run, everything included."""
    interval_loss: float = 0.0
    """Sum of the losses since the last progress, in nats."""
    interval_tokens: int = 0
    """Tokens trained on since the last progress."""
    interval_s: float = 0.0
    """Seconds of the steps since the last progress."""
    evaluations_due: int = 0
    """Evaluations that were due so far; see `Plan.evaluations_due`."""
    evaluated: bool = True
    """Whether an evaluation was due after the last step."""
    gradient_norm: float = 0.0
    """The gradient's norm at the last step."""
    learning_rate: float = 0.0
    """The learning rate of the last step."""
    valid_loss: float | None = None
    """The loss of the last validation, in nats per token."""
    valid_step: int = -1
    """The step after which that validation was made; -1 before the first."""
    last_finite_step: int = 0
    """The last step after which all weights were finite."""
    last_progress: Progress | None = None
    """The last progress reported."""
    valid_tokens: int = 0
    """Number of tokens in the mean `valid_loss`."""
    evaluation_pending: bool = False
    """Whether the evaluation due after the last step is not done yet."""
    validation_plan: ValidationPlan | None = None
    """The plan of the validations; None before the first."""
    forecast: Forecast | None = None
    """The forecast of the preset AUTO for the run; None without the preset."""
    speed_checked: bool = False
    """Whether the actual speed has been compared with the forecast."""
    notices: list[str] = field(default_factory=list)
    """Sentences for the next progress."""

    def add_step(self, loss: float, tokens: int, seconds: float) -> None:
        """Counts one optimizer step.

        Args:
            loss: Sum of the losses of its tokens, in nats.
            tokens: Tokens trained on.
            seconds: How long the step took.
        """
        self.interval_loss += loss
        self.interval_tokens += tokens
        self.interval_s += seconds
        self.tokens += tokens
        self.elapsed_s += seconds

    def begin_interval(self, progress: Progress) -> None:
        """Resets the counters of the interval after a progress was reported."""
        self.last_progress = progress
        self.evaluation_pending = False
        self.notices = []
        self.interval_loss = 0.0
        self.interval_tokens = 0
        self.interval_s = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers as JSON values; a float reads back to the same bits."""
        return {_STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Builds the metrics from what `to_json` returned."""
        names = {stored: name for name, stored in _STORED_NAMES.items()}
        values = typed(cls, {names.get(stored, stored): value for stored, value in data.items()})
        progress = values.get("last_progress")
        values |= {
            "last_progress": None if progress is None else Progress.from_json(progress),
            "validation_plan": _read(ValidationPlan, values.get("validation_plan")),
            "forecast": _read(Forecast, values.get("forecast")),
            "notices": list(map(str, values.get("notices", ()))),
        }
        return cls(**values)


def _read(kind: type[Any], data: object) -> Any:
    """Builds a dataclass from its fields; returns None for None."""
    return None if data is None else kind(**typed(kind, data))
