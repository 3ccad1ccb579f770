"""`job`, `model`, `generated` and their neighbours build replies of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from treadle.model.config import TrainConfig
from treadle.server.errors import StatusError, damaged, job_damaged, shorten
from treadle.server.messages.enums import job_state
from treadle.server.messages.fields import fill
from treadle.server.messages.inference_precision import precision_number
from treadle.server.messages.list_truncation import shorten_item
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.model.enums import InferencePrecision
    from treadle.model.generation.output import Piece
    from treadle.model.scoring.embedder import Embedding
    from treadle.model.scoring.scores import PieceScore, Summary
    from treadle.model.scoring.token_score import TokenScore
    from treadle.server.storage.model_version import Description, StoredModel
    from treadle.server.storage.schema import JobRow

MAX_REPLY_BYTES = 1 << 20
"""About the most bytes of a text and its tokens in one message."""

_SAMPLE_BYTES = 16 << 10
_NAME_BYTES = 100

_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, DecodeError)
"""The exceptions that damaged data raises while it is described."""

_TOKENS = 64
"""Tokens and alternatives after which the bytes of a reply are counted."""

_CHARACTERS = 1 << 14
"""Characters of a text after which the bytes of a reply are counted."""


def spec(name: str, config: TrainConfig, asked: pb.TrainSpec | None = None) -> pb.TrainSpec:
    """Returns the settings of a run as a spec with every default filled in.

    Args:
        name: The model's name.
        config: The settings.
        asked: The spec as requested, for the fields that are no settings.
    """
    values = config.to_json()
    values["tokenizer"]["unknown_policy"] = config.tokenizer.policy
    values["optimizer"]["optimizer"] = values["optimizer"].pop("kind")
    values["optimizer"]["learning_rate"] = config.optimizer.rate
    message = pb.TrainSpec(model=name)
    if asked is not None:
        message.request_id = asked.request_id
        message.init_from = asked.init_from
        message.init_from_version = asked.init_from_version
        message.preset = asked.preset
        message.tags.update(asked.tags)
        message.nodes = asked.nodes
    fill(message, values)
    return message


def started(row: JobRow, values: Mapping[str, Any]) -> pb.TrainingStarted:
    """Returns a `started` event, from the fields of `Started` as JSON."""
    config = TrainConfig.from_json(values["config"])
    asked = pb.TrainSpec.FromString(row.spec)
    message = pb.TrainingStarted(spec=spec(row.model, config, asked))
    fill(message, {**values, "total_steps": values["total_steps"] or 0})
    shorten_item(message)
    return message


def progress(values: Mapping[str, Any]) -> pb.TrainingProgress:
    """Returns a `progress` event, from the fields of `Progress` as JSON."""
    message = pb.TrainingProgress()
    fill(message, values)
    if message.HasField("sample"):
        message.sample = shorten(message.sample, _SAMPLE_BYTES)
    shorten_item(message)
    return message


def validation(values: Mapping[str, Any]) -> pb.ValidationProgress:
    """Returns a `validation` event, from the fields of `Validation` as JSON."""
    message = pb.ValidationProgress()
    fill(message, values)
    return message


def job(row: JobRow, position: int = 0, *, sample: bool = True) -> pb.Job:
    """Returns one job.

    Args:
        row: The job.
        position: Number of jobs before it in the queue.
        sample: Whether to include the sample of its last progress event.

    Raises:
        StatusError: DATA_LOSS: its row is damaged.
    """
    try:
        message = _job(row, position)
    except _UNREADABLE as error:
        raise job_damaged(row.id, f"it cannot be read: {error}") from error
    if not sample and message.HasField("progress"):
        message.progress.ClearField("sample")
    shorten_item(message)
    return message


def listed_job(row: JobRow, position: int, fault: str) -> pb.Job:
    """Returns one job of a list, without its sample; a damaged one with the damage alone.

    Args:
        row: The job.
        position: Number of jobs before it in the queue.
        fault: What is wrong with the row; empty if nothing is known.
    """
    try:
        if fault:
            raise job_damaged(row.id, fault)
        return job(row, position, sample=False)
    except StatusError as error:
        return pb.Job(id=_shown(row.id), model=_shown(row.model), damage=error.message)


def has_tags(row: JobRow, tags: Mapping[str, str]) -> bool:
    """Returns whether a job has all of some tags; one whose spec cannot be read has none."""
    try:
        stored = pb.TrainSpec.FromString(row.spec).tags
    except _UNREADABLE:
        return False
    return all(stored.get(name) == value for name, value in tags.items())


def _shown(name: str) -> str:
    """Returns the part of a name, which may be damaged, that can be shown."""
    return shorten(name, _NAME_BYTES)


def _job(row: JobRow, position: int) -> pb.Job:
    message = pb.Job(
        id=row.id,
        model=row.model,
        state=job_state(row.state),
        reason=row.reason,
        spec=pb.TrainSpec.FromString(row.spec),
        last_sequence=row.last_sequence,
        restarts=row.restarts,
        version=row.version,
        error_code=row.error_code,
        corpus_bytes=row.corpus_bytes,
        queue_position=position,
        owner=row.owner,
    )
    times = {"create_time": row.created_s, "start_time": row.started_s, "end_time": row.ended_s}
    for name, seconds in times.items():
        if seconds is not None:
            getattr(message, name).FromNanoseconds(round(seconds * 1e9))
    if row.started:
        message.started.ParseFromString(row.started)
        message.spec.CopyFrom(message.started.spec)
    if row.progress:
        message.progress.ParseFromString(row.progress)
    return message


def model(
    stored: StoredModel, description: Description, aliases: tuple[Sequence[str], int] = ((), 0)
) -> pb.Model:
    """Returns one version of a model.

    Args:
        stored: The version.
        description: The contents of its file but the weights.
        aliases: Its first aliases, and their number.

    Raises:
        StatusError: DATA_LOSS: its file is damaged.
    """
    try:
        message = _model(stored, description)
    except _UNREADABLE as error:
        raise damaged(stored.name, stored.version, error) from error
    shorten_item(message)
    names, message.alias_count = aliases
    message.aliases.extend(names)
    return message


def damaged_model(stored: StoredModel, damage: str) -> pb.Model:
    """Returns a damaged version of a model, with the damage alone."""
    return pb.Model(
        name=stored.name, version=stored.version, size_bytes=stored.size_bytes, damage=damage
    )


def _model(stored: StoredModel, description: Description) -> pb.Model:
    tokenizer = description.tokenizer
    message = pb.Model(
        name=stored.name,
        version=stored.version,
        vocabulary_size=description.vocabulary_size,
        parameter_count=description.parameter_count,
        size_bytes=stored.size_bytes,
        sha256=description.sha256,
        novelty_index=description.novelty_index,
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
    """Returns one generated or scored token."""
    message = pb.Token(
        id=score.id, text=score.text, log_probability=score.log_probability, rank=score.rank
    )
    for other in score.alternatives:
        message.alternatives.add(
            id=other.id, text=other.text, log_probability=other.log_probability
        )
    return message


def generated(
    pieces: Sequence[Piece], version: int, job_step: int, index: int, most: int = MAX_REPLY_BYTES
) -> Iterator[pb.GenerateResponse | None]:
    """Yields the replies for consecutive pieces of a text, in short steps.

    If the last piece has the text's result or a resume point, the last reply has it too, without
    state and precision.

    Args:
        pieces: The pieces.
        version: The version of the model; 0 for the weights of a job.
        job_step: The step of a job's weights; 0 for a version of a model.
        index: The number of the text.
        most: About the most bytes of text and tokens in a reply.

    Yields:
        A reply, or None after a step that has completed none.
    """
    reply = pb.GenerateResponse(index=index)
    size = 0
    texts: list[str] = []
    for part in _parts(pieces):
        if isinstance(part, str):
            texts.append(part)
            size += len(part.encode())
        else:
            size += add_tokens(reply, part)
        if size <= most:
            yield None
            continue
        reply.text = "".join(texts)
        yield reply
        reply = pb.GenerateResponse(index=index)
        size = 0
        texts.clear()
    reply.text = "".join(texts)
    result = pieces[-1].result
    resume = pieces[-1].resume
    if resume is not None:
        reply.resume_point.index = index
        reply.resume_point.new_tokens = resume.new_tokens
        reply.resume_point.total_log_probability = resume.total_log_probability
        reply.resume_point.prompt_tokens = resume.prompt_tokens
    if result is not None:
        values = {**vars(result), "stop_reason": result.stop_reason.value, "state": None}
        values |= {"version": version, "job_step": job_step}
        fill(reply.result, values)
        reply.result.SetInParent()
    yield reply


def _parts(pieces: Sequence[Piece]) -> Iterator[str | Sequence[TokenScore]]:
    """Yields short parts of the texts and of the tokens of pieces, in their order."""
    for piece in pieces:
        for start in range(0, len(piece.text), _CHARACTERS):
            yield piece.text[start : start + _CHARACTERS]
        others = len(piece.tokens[-1].alternatives) if piece.tokens else 0
        step = max(1, _TOKENS // (1 + others))
        for start in range(0, len(piece.tokens), step):
            yield piece.tokens[start : start + step]


def add_tokens(
    message: pb.TextScore | pb.PieceScore | pb.GenerateResponse, tokens: Iterable[TokenScore]
) -> int:
    """Adds tokens to a message; returns about the bytes by which it has grown, or a few less."""
    grown = 0
    for score in tokens:
        added = message.tokens.add()
        added.MergeFrom(token(score))
        grown += added.ByteSize() + 2  # with its tag and length
    return grown


def summary(score: Summary, precision: InferencePrecision) -> pb.TextScore:
    """Returns the score of tokens together, without the tokens.

    Args:
        score: The score.
        precision: The precision of the network that made it.
    """
    return pb.TextScore(
        total_log_probability=score.total_log_probability,
        token_count=score.token_count,
        character_count=score.character_count,
        unknown_count=score.unknown_count,
        mean_nats=score.mean_nats,
        perplexity=score.perplexity,
        bits_per_character=score.bits_per_character,
        inference_precision=precision_number(precision),
    )


def piece_score(score: PieceScore, precision: InferencePrecision) -> pb.PieceScore:
    """Returns the score of a piece of a stream.

    Args:
        score: The score.
        precision: The precision of the network that made it.
    """
    return pb.PieceScore(
        total_log_probability=score.total_log_probability,
        token_count=score.token_count,
        tokens=map(token, score.tokens),
        whole=None if score.whole is None else summary(score.whole, precision),
    )


def embedding(made: Embedding, all_layers: bool, precision: InferencePrecision) -> pb.Embedding:
    """Returns the vector of a text: the state of the last layer or of all layers.

    Args:
        made: The states.
        all_layers: Whether to return those of all layers.
        precision: The precision of the network that made them.
    """
    states = made.states if all_layers else made.states[-1]
    return pb.Embedding(
        values=states.reshape(-1).tolist(),
        token_count=made.token_count,
        inference_precision=precision_number(precision),
    )
