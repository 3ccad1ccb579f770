"""The numbers of a run as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from treadle.model.field_checks import typed
from treadle.model.training.auto.forecast import Outlook
from treadle.model.training.progress import Progress
from treadle.model.training.validation_plan import ValidationPlan


@dataclass
class Tally:
    """What a run has counted so far, beside its weights and the optimizer's state."""

    tokens: int = 0
    """Tokens trained on, repeats counted."""
    elapsed: float = 0.0
    """Seconds of training, validations and samples included."""
    wall: float = 0.0
    """Seconds in which the run ran, everything counted."""
    loss: float = 0.0
    """Nats of the interval since the last progress, of all its tokens together."""
    interval_tokens: int = 0
    """Tokens of that interval."""
    interval_seconds: float = 0.0
    """Seconds of that interval."""
    part: int = 0
    """The plan's parts that are done."""
    examined: bool = True
    """Whether the last step was followed by an examination."""
    norm: float = 0.0
    """The last step's gradient norm."""
    rate: float = 0.0
    """The last step's learning rate."""
    valid_loss: float | None = None
    """The last validation's loss."""
    valid_step: int = -1
    """The step after which that was; -1 before the first."""
    good_step: int = 0
    """The last step after which all weights were seen to be finite."""
    last: Progress | None = None
    """The last progress."""
    valid_tokens: int = 0
    """Tokens that valid_loss is the mean of."""
    pending: bool = False
    """Whether the validation due after the last step has not been made yet."""
    validation: ValidationPlan | None = None
    """What validations read; None before the first."""
    outlook: Outlook | None = None
    """What the preset AUTO expects of the run; None without it."""
    looked: bool = False
    """Whether AUTO has compared the real speed with the expected one."""
    notices: list[str] = field(default_factory=list)
    """Sentences for the next progress."""

    def add(self, loss: float, tokens: int, seconds: float) -> None:
        """Count one step."""
        self.loss += loss
        self.interval_tokens += tokens
        self.interval_seconds += seconds
        self.tokens += tokens
        self.elapsed += seconds

    def begin_interval(self) -> None:
        """Count from zero until the next progress."""
        self.loss, self.interval_tokens, self.interval_seconds = 0.0, 0, 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON values; a float's shortest decimals keep all its bits."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build them from what `to_json` returned."""
        last, validation, outlook = (data.get(name) for name in ("last", "validation", "outlook"))
        read = {
            "last": None if last is None else Progress.from_json(last),
            "validation": _read(ValidationPlan, validation),
            "outlook": _read(Outlook, outlook),
            "notices": list(map(str, data.get("notices", ()))),
        }
        return cls(**{**typed(cls, data), **read})


def _read(kind: type[Any], data: object) -> Any:
    """Build a dataclass from its fields; None from None."""
    return None if data is None else kind(**typed(kind, data))
