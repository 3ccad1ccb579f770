"""`notices` describes the choices of the preset AUTO in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.model.enums import OptimizerKind, Schedule
from treadle.model.training.auto.forecast import Forecast, count, duration

if TYPE_CHECKING:
    from treadle.model.config import LimitsConfig, TrainConfig

_RIGHT = 0.7
"""The share of the time that suits the corpus from which on a time is right."""
_LONG = 3.0
"""How many times the time that suits the corpus is more than right."""


def notices(before: TrainConfig, picked: TrainConfig, forecast: Forecast) -> tuple[str, ...]:
    """Returns sentences about the picked settings, with reasons.

    Args:
        before: The settings as given.
        picked: The settings as picked.
        forecast: The forecast of the run.
    """
    sentences = [
        _network(picked, forecast),
        _regularization(picked, forecast),
        _batches(picked, forecast),
    ]
    if picked.optimizer.precision is not before.optimizer.precision:
        sentences.append("auto: precision bf16: this processor multiplies it faster at this size")
    is_cut_short = picked.limits.max_epochs != before.limits.max_epochs
    limits = _limits(before.limits, picked.limits)
    return (*sentences, *limits, *_budget(forecast, is_cut_short))


def _network(picked: TrainConfig, forecast: Forecast) -> str:
    network = picked.network
    layers = "1 layer" if network.layers == 1 else f"{network.layers} layers"
    until = "until its limit" if forecast.seconds is None else f"in {forecast.seconds:,.0f} s"
    return (
        f"auto: {network.cell.upper()} of {layers}, hidden size {network.hidden_size:,}, embedding "
        f"size {network.embedding_size:,}: its {count(forecast.weights)} weights can read about "
        f"{count(forecast.readable)} tokens {until}, from a corpus of {count(forecast.tokens)}"
    )


def _regularization(picked: TrainConfig, forecast: Forecast) -> str:
    network = picked.network
    between = f"dropout {network.dropout:g} between layers, " if network.layers > 1 else ""
    return (
        f"auto: output dropout {network.output_dropout:g}, {between}weight decay "
        f"{picked.optimizer.weight_decay:g}: the training part will be read about "
        f"{_number(forecast.passes)} times"
    )


def _batches(picked: TrainConfig, forecast: Forecast) -> str:
    data = picked.data
    optimizer = picked.optimizer
    settings = [f"learning rate {optimizer.rate:g}", f"{optimizer.schedule} schedule"]
    if optimizer.schedule is Schedule.COSINE and optimizer.final_rate:
        settings[-1] += f" down to {optimizer.final_rate:g} of it"
    if optimizer.kind is OptimizerKind.ADAM:
        settings.append(f"beta2 {optimizer.beta2:g}")
    if optimizer.averaging:
        settings.append(f"a mean of the weights (averaging {optimizer.averaging:g})")
    else:
        settings.append("the last weights")
    return (
        f"auto: batches of {data.batch_size} x {data.window}, {', '.join(settings)}: about "
        f"{count(forecast.passes * forecast.tokens)} tokens will be read"
    )


def _limits(before: LimitsConfig, picked: LimitsConfig) -> list[str]:
    sentences = []
    if picked.max_time_s != before.max_time_s:
        sentences.append(f"auto: no limit given: training for {picked.max_time_s:g} s")
    if picked.max_epochs != before.max_epochs:
        sentences.append(
            f"auto: at most {picked.max_epochs:,.0f} passes: more would only memorize the corpus"
        )
    if picked.early_stopping_patience != before.early_stopping_patience:
        sentences.append(
            f"auto: {picked.early_stopping_patience} validations without a better loss end the "
            "run: with so many passes it may overfit the corpus"
        )
    return sentences


def _number(passes: float) -> str:
    return f"{passes:.2g}" if passes < 10 else f"{passes:,.0f}"


def _budget(forecast: Forecast, is_cut_short: bool) -> tuple[str, ...]:
    """Returns a sentence that compares the time of the run with the time that suits the corpus.

    Args:
        forecast: The forecast of the run.
        is_cut_short: Whether the run ends before its time, after the planned passes.
    """
    seconds = forecast.seconds
    if seconds is None or not forecast.right_s:
        return ()
    passes = (
        "auto: the corpus, not time, is the limit of this run: about "
        f"{_number(forecast.passes)} passes over it"
    )
    if forecast.planned_s < _RIGHT * seconds:
        if not is_cut_short:  # by a limit of steps, passes or tokens that was given
            return ()
        return (f"{passes} take {duration(forecast.planned_s)}",)
    if is_cut_short:
        return ("auto: the time is right for this corpus",)
    if seconds < _RIGHT * forecast.right_s:
        right = duration(forecast.right_s)
        return (f"auto: time is the limit of this run: {right} would be right for this corpus",)
    if seconds > _LONG * forecast.right_s:
        return (f"{passes} fill the time, and more text would help more than more time",)
    return ("auto: the time is right for this corpus",)
