"""`learning` and `publication` check the messages of a learning session."""

from __future__ import annotations

from dataclasses import dataclass

from treadle.model.errors import ConfigError
from treadle.model.online.config import LearningConfig
from treadle.model.scoring.scores import Details
from treadle.server.errors import invalid
from treadle.server.messages.fields import to_json
from treadle.server.messages.requests import on_error_violations
from treadle.server.names import alias_violations, name_violations, reference_violations
from treadle.v1 import sequence_pb2 as pb

_SETTINGS = {
    "optimizer",
    "learning_rate",
    "clip_norm",
    "window",
    "unknown_policy",
    "top_log_probabilities",
}


@dataclass(frozen=True)
class Learning:
    """The settings of a learning session."""

    name: str
    """The model's name, without an alias."""
    config: LearningConfig
    """The settings of learning."""
    details: Details
    """The details of every token that are requested."""
    tokens: bool
    """Whether tokens are sent at all."""
    on_error: int = pb.ON_ERROR_UNSPECIFIED
    """The effect of a piece that cannot be read, an `OnError`."""


@dataclass(frozen=True)
class Publication:
    """The names under which a session's model is stored."""

    name: str
    """The model's name."""
    alias: str
    """The alias of the new version; empty: none."""


def learning(spec: pb.LearnStreamSpec) -> Learning:
    """Returns the settings of a learning session.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, such as `spec.window`.
    """
    violations = reference_violations(spec.model)
    values = to_json(spec, only=_SETTINGS)
    config = LearningConfig()
    try:
        config = LearningConfig.from_json(values)
    except ConfigError as error:
        violations += [(fault.field, str(fault)) for fault in error.faults]
    violations += on_error_violations(spec)
    if violations:
        raise invalid((f"spec.{field}", f"spec.{text}") for field, text in violations)
    count = spec.top_log_probabilities
    tokens = bool(spec.log_probabilities or spec.ranks or count)
    name = spec.model.partition("@")[0]
    return Learning(name, config, Details(spec.ranks, count), tokens, spec.on_error)


def publication(request: pb.Publish, name: str) -> Publication:
    """Returns the names under which a session's model is to be stored.

    Args:
        request: The request.
        name: The name of the model with which the session began.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, such as `publish.alias`.
    """
    name = request.model or name
    violations = name_violations(name, "model")
    if request.alias:
        violations += alias_violations(request.alias)
    if violations:
        raise invalid((f"publish.{field}", f"publish.{text}") for field, text in violations)
    return Publication(name, request.alias)


def first_message(message: pb.LearnStreamRequest | None) -> pb.LearnStreamSpec:
    """Returns the spec of a stream.

    Args:
        message: The first message of the stream; None if it has none.

    Raises:
        StatusError: INVALID_ARGUMENT: the message carries no spec.
    """
    if message is None:
        raise invalid([("spec", "the stream ended before its first message, the spec")])
    if not message.HasField("spec"):
        raise invalid([("spec", "the first message must be the spec")])
    return message.spec


def check_later(message: pb.LearnStreamRequest) -> str:
    """Returns the field that a message after the first one carries.

    Raises:
        StatusError: INVALID_ARGUMENT: it carries a second spec, or nothing.
    """
    field = message.WhichOneof("message")
    if field == "spec":
        raise invalid([("spec", "spec must come once, as the first message")])
    if field is None:
        text = "a message after the spec must carry learn, predict, snapshot, roll_back or publish"
        raise invalid([("message", text)])
    return str(field)
