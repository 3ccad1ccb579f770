"""`Forecast` holds what the preset AUTO expects of a run.

`check_speed` and `judge_limit` compare the run with it.
"""

from __future__ import annotations

from dataclasses import dataclass

CHECK_AFTER = 0.02
"""The share of the time limit after which the real speed is compared with the expected one."""
SLOW = 0.5
"""A run is slow that reaches less than this share of the expected speed."""
_FEW_STEPS = 3
"""So many steps at least tell a speed."""
_BALANCED = 0.7
"""A run that had this share of the time that is right for its corpus, or a best loss that came
before this share of its steps, was not limited by time."""

_TIME_LIMITS = ("max_time_s", "max_wall_time_s")


@dataclass(frozen=True)
class Forecast:
    """What is expected of a run."""

    seconds: float | None
    """Of the run; None where other limits than time end it."""
    tokens: int
    """Predicted in one pass over the training part."""
    weights: int
    """That are trained."""
    readable: float
    """Tokens that can be read before the limits given end the run."""
    passes: float
    """Over the training part, before what was picked ends the run."""
    speed: float = 0.0
    """Tokens a second that the network picked is trained on; 0 where that is not known."""
    right_s: float = 0.0
    """Seconds in which the largest network that the corpus can feed reads what it needs; 0 where
    that is not known."""


def check_speed(forecast: Forecast, steps: int, elapsed: float, tokens: int) -> str | None:
    """Compare the real speed with the expected one.

    Args:
        forecast: what was expected.
        steps: optimizer steps done.
        elapsed: seconds of the run so far.
        tokens: trained on in that time.

    Returns:
        A notice; empty where the speed is as expected; None while it is too early to tell.
    """
    seconds = forecast.seconds
    if seconds is None or not forecast.speed:
        return ""
    if elapsed < CHECK_AFTER * seconds or steps < _FEW_STEPS:
        return None
    speed = tokens / max(elapsed, 1e-9)
    if speed >= SLOW * forecast.speed:
        return ""
    right = forecast.right_s * forecast.speed / max(speed, 1e-9)
    advice = f"; {duration(right)} would be right for this corpus" if right > seconds else ""
    return (
        f"auto: the run reads {count(speed)} tokens a second where {count(forecast.speed)} were "
        f"measured before it began: something else uses this machine, and the network may end "
        f"undertrained{advice}"
    )


def judge_limit(
    forecast: Forecast, ended_by: str, elapsed: float, tokens: int, steps: int, best_step: int
) -> tuple[str, ...]:
    """Judge the limit that ended a run.

    Args:
        forecast: what was expected.
        ended_by: the sentence that says why the run ended.
        elapsed: seconds of the run.
        tokens: trained on in that time.
        steps: optimizer steps done.
        best_step: the step of the lowest validation loss; `steps` where nothing was validated.

    Returns:
        One sentence, or none where the caller's own limit of steps, passes or tokens ended it.
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
    """Return a duration as people say it: "about 25 minutes"."""
    for size, name in ((86_400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            return f"about {_rounded(seconds / size)} {name}s"
    whole = max(1, round(seconds))
    return f"about {_rounded(whole)} {'second' if whole == 1 else 'seconds'}"


def _rounded(number: float) -> str:
    """Two digits of a number, and zeros."""
    if number < 3 and round(number, 1) != round(number):
        return f"{number:.1f}"
    return f"{int(float(f'{number:.2g}')):,}"


def count(number: float) -> str:
    """Return a number as people say it: "9.0 million"."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:,.0f}"
