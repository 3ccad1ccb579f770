"""Small models of every kind, to be damaged, and what is done with a model or a state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from treadle.model import model_file
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    ReportConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
)
from treadle.model.enums import Cell, CorpusLayout, Split, TokenizerKind, UnknownPolicy
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.generation.output import OutputOptions
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape
from treadle.model.online.learner import Learner
from treadle.model.scoring.embedder import Embedder
from treadle.model.scoring.scores import Details
from treadle.model.tokenizers.build import build_tokenizer
from treadle.model.training.trainer import Trainer
from treadle.model.training_record import TrainingRecord
from treadle.server.messages import responses
from treadle.server.storage.model_version import Description, StoredModel

from .mutate import Mutator

TEXT = "abc cab bca, a cab abc!\nab ca bc, bb aa\n"


@functools.cache
def models() -> tuple[Model, ...]:
    """Returns models whose files hold whatever a model file may hold."""
    return tuple(_models())


def _models() -> Iterator[Model]:
    cells = [Cell.RNN, Cell.GRU, Cell.LSTM]
    for number, kind in enumerate(TokenizerKind):
        for layout in CorpusLayout:
            place = 2 * number + (layout is CorpusLayout.LINES)
            sizes: dict[str, Any] = {
                "layers": 1 + place % 2,
                "embedding_size": (3, 0, 4)[place % 3],
            }
            if place % 5 == 0:
                sizes |= {"embedding_size": 4}
            if kind is TokenizerKind.BYTES:
                sizes |= {"softmax": "factored", "softmax_clusters": (32, 64, 160)}
            network = NetworkConfig(
                cell=cells[place % 3], hidden_size=4, tied_weights=place % 5 == 0, **sizes
            )
            policy = UnknownPolicy.UNKNOWN if place % 2 else None
            config = TokenizerConfig(kind, 262, policy, lower_case=place % 4 == 3)
            tokenizer = build_tokenizer(config, [TEXT], layout)
            shape = Shape.of(network, tokenizer.vocabulary_size)
            parameters = Parameters.initial(shape, seed=place)
            parameters.flat *= 3
            record = _record(config, network, layout) if place % 3 else None
            novelty = None
            if place % 2:
                tokens, offsets = tokenizer.encode_items(TEXT, UnknownPolicy.SKIP)
                lines = layout is CorpusLayout.LINES
                novelty = NoveltyIndex.build(tokens, offsets if lines else None, tokenizer)
            yield Model(network, tokenizer, parameters, record, 0, novelty)


def _record(
    tokenizer: TokenizerConfig, network: NetworkConfig, layout: CorpusLayout
) -> TrainingRecord:
    return TrainingRecord(
        config=TrainConfig(
            tokenizer=tokenizer,
            network=network,
            data=DataConfig(layout=layout),
            given=("network.cell",),
        ),
        steps=7,
        tokens_seen=700,
        train_loss=1.5,
        valid_loss=1.25,
        elapsed_s=2.0,
        ended_by="max_steps reached",
        weights_step=6,
        valid_split=Split.TAIL,
        test_loss=1.75,
        test_split=Split.FILES,
        baseline_loss=2.0,
        notices=("all is well",),
        valid_tokens=50,
        test_tokens=40,
    )


def describe(path: Path) -> None:
    """Says of a file what ListModels says, in the message that goes over the wire."""
    header = model_file.read_header(path)
    description = Description(
        network=header.network,
        tokenizer=header.tokenizer.config,
        layout=header.tokenizer.layout,
        vocabulary_size=header.tokenizer.vocabulary_size,
        parameter_count=header.shape.parameter_count,
        training=header.training,
        sha256="0" * 64,
        novelty_index=header.novelty_index,
    )
    stored = StoredModel("m", 1, path, 1.0, path.stat().st_size)
    responses.model(stored, description, ((), 0)).SerializeToString()


def _sampling(draw: Mutator) -> SamplingConfig:
    pick = draw.random
    settings: dict[str, Any] = {
        "seed": pick.randrange(100),
        "max_new_tokens": pick.choice((1, 3, 20)),
    }
    choices: list[dict[str, Any]] = [
        {"temperature": pick.choice((0.0, 0.01, 1.0, 100.0))},
        {"top_k": pick.choice((1, 2, 2**32 - 1))},
        {"top_p": pick.choice((1e-9, 0.5, 0.999))},
        {"min_p": pick.choice((0.1, 1.0))},
        {"typical_p": pick.choice((1e-9, 0.5))},
        {"repetition_penalty": 100.0, "presence_penalty": -100.0, "frequency_penalty": 100.0},
        {"top_log_probabilities": 20, "ranks": True},
        {"best_of": 3},
        {"token_biases": ((0, 100.0), (1, -100.0)), "banned_tokens": (2,)},
        {"forced_tokens": (0, 1, 0)},
        {"stop_sequences": ("a", "b"), "min_new_tokens": 2},
        {"regex": "[abc ]{1,4}"},
    ]
    for part in pick.sample(choices, pick.randrange(4)):
        settings |= part
    return SamplingConfig(**settings)


def generate(model: Model, draw: Mutator, state: SessionState | None = None) -> None:
    """Generates a short text, and describes what came of it."""
    sampling = _sampling(draw)
    prompt = draw.random.choice(("", "a", TEXT, "ab ca"))
    policy = draw.random.choice((None, UnknownPolicy.SKIP))
    pieces = list(model.stream(prompt, replace(sampling, unknown_policy=policy), state=state))
    for piece in pieces:
        for token in piece.tokens:
            responses.token(token).SerializeToString()
    result = pieces[-1].result
    if model.novelty is not None and result is not None:
        model.novelty.novelty([token.id for p in pieces for token in p.tokens], model.tokenizer)


def score(model: Model, draw: Mutator, state: SessionState | None = None) -> None:
    """Scores a text, and makes a state of what follows it."""
    details = Details(draw.random.randrange(2) == 0, draw.random.choice((0, 3)))
    text, context = draw.random.choice((("ab", "c"), (TEXT, ""), ("", TEXT), ("a", "")))
    scored = model.score(text, context, UnknownPolicy.SKIP, details=details, state=state)
    for token in scored.tokens:
        responses.token(token).SerializeToString()
    if scored.state is not None:
        model.read_state(model.state_bytes(scored.state))


def embed(model: Model, draw: Mutator) -> None:
    """Makes a text a vector."""
    list(Embedder(model.trained, UnknownPolicy.SKIP).embedding(draw.random.choice(("", "a", TEXT))))


def learn(model: Model, draw: Mutator) -> None:
    """Learns from a stream for a few windows, and publishes what came of it."""
    learner = Learner(model)
    list(learner.feed(TEXT, end=True))
    learner.publish().content_hash  # noqa: B018 - computed from all weights


def train(model: Model, draw: Mutator) -> None:
    """Trains a model on for a step."""
    config = TrainConfig(
        tokenizer=TokenizerConfig(unknown_policy=UnknownPolicy.SKIP),
        data=DataConfig(batch_size=2, window=4),
        limits=LimitsConfig(max_steps=1),
        report=ReportConfig(sample_tokens=2),
    )
    trainer = Trainer((TEXT * 3).encode(), config, init_from=model)
    list(trainer.run())
    trainer.finish()


USES: dict[str, Callable[[Model, Mutator], None]] = {
    "generate": generate,
    "score": score,
    "embed": embed,
    "learn": learn,
    "train": train,
}


def state_of(model: Model, draw: Mutator) -> SessionState:
    """Returns a state that a model has made; some count tokens for penalties."""
    penalty = draw.random.choice((1.0, 1.5))
    sampling = SamplingConfig(seed=3, max_new_tokens=8, repetition_penalty=penalty)
    pieces = list(model.stream("", sampling, output=OutputOptions(state=True)))
    result = pieces[-1].result
    assert result is not None
    assert result.state is not None
    return result.state


def finite(array: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """True if all numbers of an array are finite."""
    return bool(np.isfinite(array).all())
