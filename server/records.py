"""Replies of the wire contract, made from what the model room and the store give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treadle.model.config import TrainConfig
from treadle.model.decoder import Piece
from treadle.model.scorer import TextScore, TokenScore
from treadle.server.convert import fill
from treadle.server.store import Description, StoredModel
from treadle.v1 import sequence_pb2 as pb


def spec(name: str, config: TrainConfig) -> pb.TrainSpec:
    """Returns the settings of a run as its spec, every default filled in."""
    values = config.to_json()
    values["tokenizer"]["unknown_policy"] = config.tokenizer.policy
    values["optimizer"]["optimizer"] = values["optimizer"].pop("kind")
    values["optimizer"]["learning_rate"] = config.optimizer.rate
    message = pb.TrainSpec(model=name)
    fill(message, values)
    return message


def started(name: str, values: Mapping[str, Any]) -> pb.TrainingStarted:
    """Returns a `started` event, from the fields of the model room's `Started` as JSON."""
    message = pb.TrainingStarted(spec=spec(name, TrainConfig.from_json(values["config"])))
    fill(message, {**values, "total_steps": values["total_steps"] or 0})
    return message


def progress(values: Mapping[str, Any]) -> pb.TrainingProgress:
    """Returns a `progress` event, from the fields of the model room's `Progress` as JSON."""
    message = pb.TrainingProgress()
    fill(message, values)
    return message


def model(stored: StoredModel, description: Description) -> pb.Model:
    """Returns one version of a model."""
    tokenizer = description.tokenizer
    message = pb.Model(
        name=stored.name,
        version=stored.version,
        vocabulary_size=description.vocabulary_size,
        parameter_count=description.parameter_count,
        size_bytes=stored.size_bytes,
        sha256=description.sha256,
    )
    message.create_time.FromNanoseconds(round(stored.created_s * 1e9))
    fill(
        message,
        {
            "network": description.network.to_json(),
            "tokenizer": {**tokenizer.to_json(), "unknown_policy": tokenizer.policy},
            "layout": description.layout,
        },
    )
    record = description.training
    if record is not None:
        fill(message.training, {**vars(record), "spec": None})
        message.training.spec.CopyFrom(spec(stored.name, record.config))
    return message


def token(score: TokenScore) -> pb.Token:
    """Returns one token as generated or scored."""
    return pb.Token(id=score.id, text=score.text, log_probability=score.log_probability)


def generated(
    pieces: Sequence[Piece], version: int, log_probabilities: bool
) -> tuple[pb.GenerateResponse, bool]:
    """Returns the reply for consecutive pieces of one generation, and whether it is the last."""
    reply = pb.GenerateResponse(text="".join(piece.text for piece in pieces))
    if log_probabilities:
        reply.tokens.extend(token(score) for piece in pieces for score in piece.tokens)
    result = pieces[-1].result
    if result is not None:
        values = {**vars(result), "stop_reason": result.stop_reason.value, "version": version}
        fill(reply.result, values)
        reply.result.SetInParent()
    return reply, result is not None


def text_score(score: TextScore, log_probabilities: bool) -> pb.TextScore:
    """Returns what one text scored, its tokens only where they were asked for."""
    message = pb.TextScore(
        total_log_probability=score.total_log_probability,
        token_count=score.token_count,
        character_count=score.character_count,
        mean_nats=score.mean_nats,
        perplexity=score.perplexity,
        bits_per_character=score.bits_per_character,
    )
    if log_probabilities:
        message.tokens.extend(map(token, score.tokens))
    return message
