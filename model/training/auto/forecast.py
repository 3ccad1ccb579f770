"""`Forecast` holds the expectations of the preset AUTO about a run.

`check_speed` compares it with the run's speed soon after the start, and `judge_limit` with the
whole run at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS_SHARE = 0.9
"""The share of the time that optimizer steps take; validations and samples take the rest."""
CHECK_AFTER = 0.02
"""The share of the time limit after which the speed is compared with the forecast."""
SLOW = 0.5
"""A run that reaches less than this share of the expected speed is slow."""
_FEWEST_STEPS = 3
"""Least steps from which the speed is estimated."""
_BALANCED = 0.7
"""Time was not the limit if a run had this share of the time that suits its corpus, or if its best
loss came before this share of its steps."""

_TIME_LIMITS = ("max_time_s", "max_wall_time_s")


@dataclass(frozen=True)
class Forecast:
    """The expectations of the preset. Checkpoints store the fields under these names."""

    seconds: float | None
    """Seconds of the run; None if it is not limited by time."""
    tokens: int
    """Tokens predicted in one pass over the training part."""
    weights: int
    """Weights of the network."""
    readable: float
    """Tokens that can be read before the given limits end the run."""
    passes: float
    """Passes over the training part before the picked limits end the run."""
    speed: float = 0.0
    """Tokens per second that the picked network is trained on; 0 if unknown."""
    right_s: float = 0.0
    """Seconds in which the largest network that suits the corpus reads enough tokens; 0 if
    unknown."""

    @property
    def planned_s(self) -> float:
        """Seconds that the planned passes take; the speed has to be known."""
        return self.passes * self.tokens / self.speed / STEPS_SHARE


def check_speed(forecast: Forecast, steps: int, elapsed: float, tokens: int) -> str | None:
    """Compares the speed of a run with the forecast.

    Args:
        forecast: The forecast.
        steps: Optimizer steps done.
        elapsed: Seconds of the run so far.
        tokens: Tokens trained on in that time.

    Returns:
        A sentence; empty if the speed is as expected; None if it is too early to judge.
    """
    seconds = forecast.seconds
    if seconds is None or not forecast.speed:
        return ""
    if elapsed < CHECK_AFTER * seconds or steps < _FEWEST_STEPS:
        return None
    speed = tokens / max(elapsed, 1e-9)
    if speed >= SLOW * forecast.speed:
        return ""
    right = forecast.right_s * forecast.speed / max(speed, 1e-9)
    advice = f"; {duration(right)} would be right for this corpus" if right > seconds else ""
    return (
        f"auto: training reads {count(speed)} tokens per second, and {count(forecast.speed)} were "
        f"measured before the run: something else uses this machine, and the network may end "
        f"undertrained{advice}"
    )


def judge_limit(
    forecast: Forecast, ended_by: str, elapsed: float, tokens: int, steps: int, best_step: int
) -> tuple[str, ...]:
    """Judges the limit that ended a run.

    Args:
        forecast: The forecast.
        ended_by: The sentence that says why the run ended.
        elapsed: Seconds of the run.
        tokens: Tokens trained on in that time.
        steps: Optimizer steps done.
        best_step: The step of the lowest validation loss; `steps` without validations.

    Returns:
        One sentence, or none if a given limit of steps, passes or tokens ended the run.
    """
    if forecast.seconds is None or not forecast.speed or not tokens:
        return ()
    by_time = ended_by.startswith(_TIME_LIMITS)
    by_corpus = ended_by.startswith(("max_epochs", "early_stopping_patience"))
    if by_corpus or (by_time and best_step < _BALANCED * steps):
        best_s = elapsed * best_step / max(steps, 1)
        return (
            f"auto: the corpus, not time, was the limit: the lowest validation loss came after "
            f"{duration(best_s)}; more text would help, more time would not",
        )
    if not by_time:
        return ()
    right = forecast.right_s * forecast.speed * elapsed / tokens
    if elapsed >= _BALANCED * right:
        return ("auto: time and corpus were in balance: twice the time would gain little",)
    return (f"auto: time was the limit: {duration(right)} would be right for this corpus",)


def duration(seconds: float) -> str:
    """Returns a duration in words, such as "about 25 minutes"."""
    for size, name in ((86_400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            return f"about {_rounded(seconds / size)} {name}s"
    whole = max(1, round(seconds))
    return f"about {_rounded(whole)} {'second' if whole == 1 else 'seconds'}"


def _rounded(number: float) -> str:
    """Returns a number rounded to two significant digits."""
    if number < 3 and round(number, 1) != round(number):
        return f"{number:.1f}"
    return f"{int(float(f'{number:.2g}')):,}"


def count(number: float) -> str:
    """Returns a number in words, such as "9.0 million"."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:,.0f}"
