"""`pick` implements the preset AUTO: settings for a corpus, a time and this processor.

The rows of `_LADDER` are tried from the largest network down, until the time and the corpus suffice
to train it. It has to read TOKENS_PER_WEIGHT tokens for each of its weights in the time of the run,
or it ends undertrained. And the corpus has to hold a token for every few of them, or the network
memorizes it (`_WEIGHTS_PER_TOKEN`: more weights if there is time to read the corpus often, with
more units dropped). The first row that passes both is taken, else the last one. The more often the
corpus is read, the more units are dropped (`_REGULARIZATION`).

The picked settings are a function of `PresetInputs` (`pick_for`), which include the measured speed.
Settings that the caller has given (`TrainConfig.given`) are never changed; the picked ones take
them into account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from treadle.kernels.jit import BF16_MISSING
from treadle.model.config import DataConfig, LimitsConfig, NetworkConfig, TrainConfig
from treadle.model.enums import Cell, OptimizerKind, Precision, Preset, Schedule
from treadle.model.network.shape import Shape
from treadle.model.training.auto.forecast import STEPS_SHARE, Forecast
from treadle.model.training.auto.notices import notices
from treadle.model.training.auto.throughput import (
    Throughput,
    expected_throughput,
    measure_throughput,
)

if TYPE_CHECKING:
    from treadle.model.data.corpus import Corpus
    from treadle.model.network.ranks.ranks import Ranks

DEFAULT_SECONDS = 60.0
"""Seconds of training if no limit is given."""
WALL_SHARE = 0.95
"""The share of max_wall_time_s that remains for training after the start."""

TOKENS_PER_WEIGHT = 6.0
"""Tokens that a network has to read for each of its weights.

On tiny Shakespeare an LSTM of 512 units reached 1.465 nats with 7.4 for each and no dropout,
and 1.441 with 5.1 for each and dropout 0.3."""
_WEIGHTS_PER_TOKEN = (
    # passes over the corpus that there is time for, weights
    (30.0, 4.0),
    (0.0, 2.0),
)
"""Most weights per token of the corpus, with dropout."""

_LADDER = (
    # units, layers, learning rate
    (2048, 2, 0.001),
    (1536, 2, 0.0015),
    (1024, 2, 0.002),
    (768, 2, 0.003),
    (768, 1, 0.005),
    (640, 1, 0.006),
    (512, 1, 0.008),
    (384, 1, 0.0085),
    (256, 1, 0.01),
    (192, 1, 0.012),
    (128, 1, 0.015),
    (64, 1, 0.015),
)
"""Networks from the largest down, each with Adam's learning rate.

On plays, up to 512 units, these rates were 0.02 to 0.09 nats better than half or a third of them;
those of larger networks are extrapolated. See docs/training.md."""

_REGULARIZATION = (
    # passes over the corpus from which on it holds, output dropout, weight decay
    (30.0, 0.4, 0.1),
    (12.0, 0.3, 0.1),
    (5.0, 0.3, 0.1),
    (2.0, 0.1, 0.0),
    (0.0, 0.0, 0.0),
)
"""Dropout and weight decay by the number of passes over the corpus.

On names (256 units, 26 passes) 0.2, 0.3 and 0.5 gave 1.903, 1.903 and 1.922 nats. On plays (256
units, 6 passes) a weight decay of 0.1 was 0.013 nats better than 0.02."""

_BATCHES = (
    # rows, steps of a batch, optimizer steps that the run must have for it
    (128, 128, 80_000),
    (64, 128, 40_000),
    (64, 64, 20_000),
    (32, 64, 8_000),
    (32, 32, 4_000),
    (16, 32, 4_000),
    (16, 16, 0),
)
"""For equal tokens the smaller batch was better in every measurement, from 300,000 to
3 million tokens (`benchmarks/auto_batches.py`, decision 0006). A larger one is faster, and costs
little once there are many steps."""
ROWS_OF_THREAD = 16
"""Rows of a batch for every thread: the number of rows that a thread processes together."""
MOST_ROWS = 128
"""Most rows to which a batch grows with the threads."""
FEWEST_STEPS = 500
"""Least steps of a run whose batches grow with the threads."""
BATCHES_PER_PASS = 50
"""A pass has at least this many batches; for a small text they are smaller than `_BATCHES` says."""
TOKENS_PER_LINE_BATCH = 1024
"""Approximate tokens of a batch of lines. Lines are short, so a batch holds more of them."""
STEPS_OF_LINES = 4_000
"""A run over lines that would have fewer steps gets smaller batches."""

SHORT_LINE = 32
"""Lines of fewer tokens are short."""
SHORT_LINE_SPEED = 0.6
"""Short lines are read at this share of a text's speed: a row that has ended waits for the longest.
Measured on names."""

MAX_PASSES = 60.0
"""Most passes over a corpus, even if time is left."""
MIN_STEPS = 1_000
"""Fewest steps of a run, even if they take more passes over a small corpus."""
PATIENT_PASSES = 12.0
"""Passes from which on a run may end early."""
PATIENCE = 4
"""Validations without a better loss that end such a run."""

_RECIPE: dict[str, Any] = {"beta2": 0.95, "final_rate": 0.2, "averaging": 8.0}
"""Adam's further settings: what helped of the ingredients in `benchmarks/recipes.py`. The table is
in docs/training.md."""

BF16_UNITS = 192
"""Hidden size from which on BF16 is faster than FP32, on a processor that has it."""


@dataclass(frozen=True)
class PresetInputs:
    """The inputs that determine the picked settings."""

    tokens: int
    """Tokens predicted in one pass over the training part."""
    items: int
    """Items of the training part; 0 for one text."""
    vocabulary: int
    """Tokens in the vocabulary."""
    seconds: float | None
    """Seconds of the run; None if it is not limited by time."""
    throughput: tuple[Throughput, ...]
    """The measured speeds of one or more networks."""
    has_bf16: bool
    """Whether this process can train with BF16."""
    threads: int
    """Threads that train."""


@dataclass(frozen=True)
class _Candidate:
    """A network that could be trained, and the tokens that it could read."""

    network: NetworkConfig
    precision: Precision
    learning_rate: float
    weights: int
    core: int
    """The weights that time and corpus limit: all but the embedding and the output layer, whose
    size depends on the vocabulary."""
    readable: float
    """Tokens that it can read before the limits end the run."""
    speed: float
    """Tokens per second that it is trained on."""


Picked = tuple[TrainConfig, tuple[str, ...], Forecast | None]
"""Settings, sentences about the choices, and the forecast of the run."""


def pick(config: TrainConfig, corpus: Corpus, threads: int, ranks: Ranks | None = None) -> Picked:
    """Picks settings for a corpus on this machine; measures the machine for about a second.

    Args:
        config: The settings; without the preset AUTO nothing is picked.
        corpus: The corpus, read and cut.
        threads: Threads that will train, of every process.
        ranks: The processes that will train; None: this one alone.

    Returns:
        The settings, without a preset, so that they are picked only once; sentences about the
        choices; and the forecast of the run, None if nothing was picked.
    """
    if config.preset is not Preset.AUTO:
        return config, (), None
    seconds = budget(config)
    has_bf16 = not BF16_MISSING
    vocabulary = corpus.tokenizer.vocabulary_size
    inputs = PresetInputs(
        corpus.train.predicted,
        corpus.train.items,
        vocabulary,
        seconds,
        measure_throughput(config, vocabulary, seconds, has_bf16, threads, ranks),
        has_bf16,
        threads * (1 if ranks is None else ranks.size),
    )
    return pick_for(config, inputs)


def budget(config: TrainConfig) -> float | None:
    """Returns the seconds of a run under its limits; None if it is not limited by time."""
    limits = config.limits
    seconds = [] if limits.max_time_s is None else [limits.max_time_s]
    if limits.max_wall_time_s is not None:
        seconds.append(limits.max_wall_time_s * WALL_SHARE)
    if seconds:
        return min(seconds)
    return None if _measured_in_tokens(limits) else DEFAULT_SECONDS


def pick_for(config: TrainConfig, inputs: PresetInputs) -> Picked:
    """Picks settings by given inputs; the result is that of `pick`.

    Args:
        config: The settings.
        inputs: The corpus, the time and the speed.

    Returns:
        As `pick`.
    """
    candidates = [_candidate(config, inputs, row) for row in _LADDER]
    chosen = _network(candidates, inputs)
    passes = _passes(config, chosen, inputs)
    dropout, decay = next(row[1:] for row in _REGULARIZATION if passes >= row[0])
    network = replace(chosen.network, **_free(config, "network", output_dropout=dropout))
    if network.layers > 1:
        network = replace(network, **_free(config, "network", dropout=network.output_dropout))
    read = passes * inputs.tokens
    data = _data(config, inputs, read)
    adam = config.optimizer.kind is OptimizerKind.ADAM
    optimizer = replace(
        config.optimizer,
        **_free(config, "optimizer", schedule=Schedule.COSINE, precision=chosen.precision),
        **(_free(config, "optimizer", **_RECIPE) if adam else {}),
        **(_free(config, "optimizer", learning_rate=chosen.learning_rate) if adam else {}),
        **(_free(config, "optimizer", weight_decay=decay) if adam else {}),
    )
    limits = _limits(config, passes, read < chosen.readable * (1 - 1e-9))
    picked = replace(
        config, network=network, data=data, optimizer=optimizer, limits=limits, preset=None
    )
    forecast = Forecast(
        inputs.seconds,
        inputs.tokens,
        chosen.weights,
        chosen.readable,
        passes,
        chosen.speed,
        _right_seconds(candidates, inputs),
    )
    return picked, notices(config, picked, forecast), forecast


def _free(config: TrainConfig, section: str, **settings: Any) -> dict[str, Any]:
    """Returns those settings of a section that the caller has not given."""
    given = config.given
    return {
        name: value
        for name, value in settings.items()
        if section not in given and f"{section}.{name}" not in given
    }


def _network(candidates: Sequence[_Candidate], inputs: PresetInputs) -> _Candidate:
    """Returns the largest network that time and corpus suffice to train, else the smallest."""
    for candidate in candidates:
        in_time = candidate.readable >= TOKENS_PER_WEIGHT * candidate.core
        if in_time and candidate.core <= _most_weights(inputs, candidate.readable):
            return candidate
    return candidates[-1]


def _most_weights(inputs: PresetInputs, readable: float) -> float:
    """Returns the most weights that a corpus can train, if so many tokens can be read."""
    passes = readable / max(inputs.tokens, 1)
    per_token = next(weights for least, weights in _WEIGHTS_PER_TOKEN if passes >= least)
    return per_token * inputs.tokens


def _right_seconds(candidates: Sequence[_Candidate], inputs: PresetInputs) -> float:
    """Returns the seconds that the largest network that suits the corpus needs."""
    for candidate in candidates:
        tokens = TOKENS_PER_WEIGHT * candidate.core
        if candidate.core <= _most_weights(inputs, tokens):
            return tokens / candidate.speed / STEPS_SHARE
    return TOKENS_PER_WEIGHT * candidates[-1].core / candidates[-1].speed / STEPS_SHARE


def _candidate(
    config: TrainConfig, inputs: PresetInputs, row: tuple[int, int, float]
) -> _Candidate:
    """Returns the network of a row of the ladder, its speed, and the tokens that it can read."""
    units, layers, rate = row
    network = _sized(config, inputs, units, layers)
    shape = Shape.of(network, inputs.vocabulary)
    wide = inputs.has_bf16 and network.hidden_size >= BF16_UNITS
    precision = Precision.BF16 if wide else Precision.FP32
    precision = _free(config, "optimizer", precision=precision).get(
        "precision", config.optimizer.precision
    )
    weights = shape.parameter_count
    speed = _speed(inputs, shape, precision)
    return _Candidate(
        network,
        precision,
        rate,
        weights,
        weights - inputs.vocabulary * (shape.E + shape.H + 1),
        _readable(config, inputs, speed),
        speed,
    )


def _sized(config: TrainConfig, inputs: PresetInputs, units: int, layers: int) -> NetworkConfig:
    """Returns the network of a row of the ladder, except for given settings."""
    V = inputs.vocabulary
    if V <= 256:
        embedding = 64
    elif V <= 5_000:
        embedding = 128
    else:
        embedding = 256
    free = _free(config, "network", cell=Cell.LSTM, hidden_size=units, layers=layers)
    sized = replace(config.network, **free)
    embedding_free = "embedding_size" in _free(config, "network", embedding_size=0)
    if sized.tied_weights:  # both sizes are equal, even if only one is given
        if embedding_free:
            return replace(sized, embedding_size=sized.hidden_size)
        if "hidden_size" in free and sized.embedding_size:
            return replace(sized, hidden_size=sized.embedding_size)
        return sized
    embedding = min(embedding, sized.hidden_size)
    return replace(sized, embedding_size=embedding) if embedding_free else sized


def _speed(inputs: PresetInputs, shape: Shape, precision: Precision) -> float:
    """Returns the tokens per second that a network is trained on."""
    short = inputs.items > 0 and inputs.tokens < SHORT_LINE * inputs.items
    speed = expected_throughput(inputs.throughput, shape, precision)
    return speed * (SHORT_LINE_SPEED if short else 1.0)


def _readable(config: TrainConfig, inputs: PresetInputs, speed: float) -> float:
    """Returns the tokens that a network of this speed can read before the limits end the run."""
    limits = config.limits
    tokens = []
    if inputs.seconds is not None:
        tokens.append(inputs.seconds * STEPS_SHARE * speed)
    if limits.max_tokens is not None:
        tokens.append(float(limits.max_tokens))
    if limits.max_epochs is not None:
        tokens.append(limits.max_epochs * inputs.tokens)
    if limits.max_steps is not None:
        of_step = config.data.batch_size * _row_tokens(inputs, config.data.window)
        tokens.append(limits.max_steps * min(of_step, inputs.tokens))
    return min(tokens)


def _row_tokens(inputs: PresetInputs, window: int) -> float:
    """Returns the tokens of a row of a batch."""
    return min(window, inputs.tokens / inputs.items) if inputs.items else window


def _passes(config: TrainConfig, chosen: _Candidate, inputs: PresetInputs) -> float:
    """Returns the number of passes over the corpus."""
    passes = chosen.readable / max(inputs.tokens, 1)
    if _measured_in_tokens(config.limits) or not _free(config, "limits", max_epochs=0):
        return passes
    return min(passes, max(MAX_PASSES, _enough_passes(inputs)))


def _measured_in_tokens(limits: LimitsConfig) -> bool:
    """Returns whether a limit counts steps, passes or tokens, rather than time."""
    return any(
        limit is not None for limit in (limits.max_steps, limits.max_epochs, limits.max_tokens)
    )


def _enough_passes(inputs: PresetInputs) -> float:
    """Returns the passes over a small corpus that make MIN_STEPS steps."""
    rows, steps, _ = _BATCHES[-1]
    of_pass = inputs.tokens / (rows * _row_tokens(inputs, steps))
    return MIN_STEPS / max(of_pass, 1.0)


def _data(config: TrainConfig, inputs: PresetInputs, tokens: float) -> DataConfig:
    """Returns the rows and steps of a batch, for a run over so many tokens."""
    least_rows = min(ROWS_OF_THREAD * inputs.threads, MOST_ROWS)
    smallest = _BATCHES[-1][1]
    of_row: float = smallest * FEWEST_STEPS
    if inputs.items:
        of_row = inputs.tokens / inputs.items * STEPS_OF_LINES
    while least_rows > ROWS_OF_THREAD and tokens < least_rows * of_row:
        least_rows //= 2
    rows, steps = next(
        ((b, t) for b, t, least in _BATCHES if b >= least_rows and tokens >= least * b * t),
        (least_rows, smallest),
    )
    if inputs.items:
        length = inputs.tokens / inputs.items
        batch = min(TOKENS_PER_LINE_BATCH, tokens / STEPS_OF_LINES)
        rows = min(max(16 * round(batch / length / 16), least_rows), 256)
        steps = max(steps, 64)
    of_pass = inputs.tokens / BATCHES_PER_PASS
    while rows > 8 and rows * _row_tokens(inputs, steps) > of_pass:
        rows //= 2
    while steps > 32 and not inputs.items and rows * steps > of_pass:
        steps //= 2
    return replace(config.data, **_free(config, "data", batch_size=rows, window=steps))


def _limits(config: TrainConfig, passes: float, cut_short: bool) -> LimitsConfig:
    """Returns the given limits, and those that end a run that no longer improves."""
    limits = config.limits
    added: dict[str, Any] = {}
    by_time = limits.max_time_s is not None or limits.max_wall_time_s is not None
    if not by_time and not _measured_in_tokens(limits):
        added |= _free(config, "limits", max_time_s=DEFAULT_SECONDS)
    if cut_short:
        added |= _free(config, "limits", max_epochs=float(math.ceil(passes)))
    if passes >= PATIENT_PASSES and not limits.early_stopping_patience:
        added |= _free(config, "limits", early_stopping_patience=PATIENCE)
    return replace(limits, **added)
