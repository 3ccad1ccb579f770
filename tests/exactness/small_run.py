"""Trains, generates and scores with small models, and prints every result to the bit, as JSON.

    python tests/exactness/small_run.py

Run for several processors, by the environment, it must print the same. Sizes are odd ones: whole
panels and parts of them, tiles of every height, three shards, the last of one row.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from treadle.model import (
    Cell,
    DataConfig,
    LimitsConfig,
    Model,
    NetworkConfig,
    OptimizerConfig,
    OptimizerKind,
    Progress,
    ReportConfig,
    SamplingConfig,
    Schedule,
    Softmax,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    train,
)

TEXT = "".join(
    f"{n} {'bottles' if n % 10 != 1 else 'bottle'} of ale, {n * n % 97} on the wall; " * (n % 3)
    for n in range(60, 0, -1)
)

CONFIGS = {
    "rnn": TrainConfig(
        network=NetworkConfig(cell=Cell.RNN, hidden_size=19, embedding_size=0),
        optimizer=OptimizerConfig(kind=OptimizerKind.SGD, clip_value=0.01),
    ),
    "gru": TrainConfig(
        network=NetworkConfig(cell=Cell.GRU, hidden_size=23, layers=2, embedding_size=7),
        optimizer=OptimizerConfig(kind=OptimizerKind.ADAGRAD, weight_decay=0.01),
    ),
    "lstm": TrainConfig(
        network=NetworkConfig(cell=Cell.LSTM, hidden_size=33, layers=2, embedding_size=5),
        optimizer=OptimizerConfig(kind=OptimizerKind.ADAM, warmup_steps=5),
    ),
}
for _name, _layers, _dropout in (("gru", 2, 0.2), ("lstm", 3, 0.35)):
    _network = replace(CONFIGS[_name].network, layers=_layers, dropout=_dropout)
    CONFIGS[f"{_name} dropped"] = replace(CONFIGS[_name], network=_network)
CONFIGS["lstm tied"] = TrainConfig(
    network=NetworkConfig(
        cell=Cell.LSTM, hidden_size=21, embedding_size=21, output_dropout=0.3, tied_weights=True
    ),
    optimizer=OptimizerConfig(
        schedule=Schedule.PLATEAU, plateau_patience=1, accumulation_steps=2, averaging=3.0
    ),
)
CONFIGS["gru factored"] = TrainConfig(
    tokenizer=TokenizerConfig(TokenizerKind.WORDS),
    network=NetworkConfig(
        cell=Cell.GRU,
        hidden_size=21,
        embedding_size=5,
        output_dropout=0.2,
        softmax=Softmax.FACTORED,
        softmax_clusters=(32, 64),
    ),
)
IN_SERIES = "rnn in series"
"""A network and two shards, of which several steps are taken in one call."""

CONFIGS[IN_SERIES] = TrainConfig(
    network=NetworkConfig(cell=Cell.RNN, hidden_size=19, embedding_size=3),
    optimizer=OptimizerConfig(averaging=3.0, clip_value=0.01, weight_decay=0.1),
)
CONFIGS = {
    name: replace(
        config,
        data=DataConfig(
            batch_size=20 if name == IN_SERIES else 33, window=13, validation_fraction=0.2
        ),
        limits=LimitsConfig(max_steps=200 if name == "rnn" else 30),
        report=ReportConfig(progress_interval_s=1e6),  # at validations alone, whatever the time
        seed=2**63 + 5,
    )
    for name, config in CONFIGS.items()
}

SAMPLINGS = {
    "greedy": SamplingConfig(temperature=0),
    "plain": SamplingConfig(seed=1),
    "cut": SamplingConfig(temperature=0.8, top_k=9, top_p=0.9, seed=2),
    "min-p": SamplingConfig(temperature=1.3, min_p=0.1, seed=3),
}


def reported(progress: Progress) -> list[Any]:
    """Everything of a progress but times."""
    numbers = progress.train_loss, progress.valid_loss, progress.gradient_norm
    return [progress.step, progress.sample, *(float(n or 0).hex() for n in numbers)]


def results_of(model: Model) -> Iterator[tuple[str, Any]]:
    """The model's weights, some generations and a score."""
    yield "weights", hashlib.sha256(model.parameters.flat.tobytes()).hexdigest()
    for name, sampling in SAMPLINGS.items():
        pieces = list(model.stream("9", replace(sampling, max_new_tokens=40)))
        scores = [token.log_probability or 0.0 for piece in pieces for token in piece.tokens]
        yield name, ["".join(piece.text for piece in pieces), *(score.hex() for score in scores)]
    score = model.score(TEXT[:100])
    yield "score", [float(token.log_probability or 0).hex() for token in score.tokens]


def run(name: str, threads: int = 1) -> dict[str, Any]:
    """Train, generate and score with one of CONFIGS; the results by name."""
    reports: list[Any] = []
    config = CONFIGS[name]
    model = train(
        TEXT, config, threads, on_progress=lambda progress: reports.append(reported(progress))
    )
    size = model.vocabulary_size
    return {"reports": reports, "vocabulary_size": size, **dict(results_of(model))}


if __name__ == "__main__":
    json.dump({name: run(name) for name in CONFIGS}, sys.stdout)
