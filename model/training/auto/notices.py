"""`notices` describes the choices of the preset AUTO in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.model.training.auto.forecast import Forecast, count, duration

if TYPE_CHECKING:
    from treadle.model.config import LimitsConfig, TrainConfig


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
    return (*sentences, *_limits(before.limits, picked.limits), *_budget(forecast))


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
    return (
        f"auto: output dropout {picked.network.output_dropout:g}, weight decay "
        f"{picked.optimizer.weight_decay:g}: the training part will be read about "
        f"{_times(forecast.passes)}"
    )


def _batches(picked: TrainConfig, forecast: Forecast) -> str:
    data = picked.data
    optimizer = picked.optimizer
    averaged = "a mean of the weights" if optimizer.averaging else "the last weights"
    return (
        f"auto: batches of {data.batch_size} x {data.window}, learning rate {optimizer.rate:g}, "
        f"{optimizer.schedule} schedule, {averaged}: about "
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


def _times(passes: float) -> str:
    return f"{passes:.2g} times" if passes < 10 else f"{passes:,.0f} times"


def _budget(forecast: Forecast) -> tuple[str, ...]:
    """Returns a sentence that compares the time of the run with the time that suits the corpus."""
    if forecast.seconds is None or not forecast.right_s:
        return ()
    right = duration(forecast.right_s)
    if forecast.seconds < 0.7 * forecast.right_s:
        return (f"auto: time is the limit of this run: {right} would be right for this corpus",)
    if forecast.seconds > 3 * forecast.right_s:
        return (
            f"auto: the corpus, not time, is the limit of this run: {right} would be right for "
            "this corpus",
        )
    return ("auto: the time is right for this corpus",)
