"""`scoring`, `stream_scoring` and `embedding_policy` check requests to score and to embed."""

from __future__ import annotations

from dataclasses import dataclass

from treadle.model.config import SamplingConfig
from treadle.model.enums import UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.scoring.scores import Details
from treadle.server.errors import Violation, invalid
from treadle.server.messages import repeated_limits
from treadle.server.messages.fields import to_json
from treadle.server.messages.requests import on_error_violations, source_violations
from treadle.v1 import sequence_pb2 as pb

MAX_ALTERNATIVES = 20
"""The most alternatives that are sent with a token."""

_Request = pb.ScoreRequest | pb.ScoreStreamSpec | pb.EmbedRequest


@dataclass(frozen=True)
class Scoring:
    """The settings of a request to score."""

    policy: UnknownPolicy | None
    """The treatment of unknown symbols; None: the model's own policy."""
    details: Details
    """The details of every token that are requested."""
    tokens: bool
    """Whether tokens are sent at all."""

    @property
    def token_bytes(self) -> int:
        """The fewest bytes of a token in a reply."""
        # Tag, length and log-probability; tag and length of each alternative.
        return 7 + 2 * self.details.alternatives


def scoring(request: pb.ScoreRequest) -> Scoring:
    """Returns the settings of a request to score.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, the model's name included.
    """
    violations = _count_violations(request)
    return _scoring(request, violations, "")


def stream_scoring(spec: pb.ScoreStreamSpec) -> Scoring:
    """Returns the settings of a stream to score.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, such as `spec.model`.
    """
    return _scoring(spec, on_error_violations(spec), "spec.")


def embedding_policy(request: pb.EmbedRequest) -> UnknownPolicy | None:
    """Returns the treatment of unknown symbols of texts to embed; None: the model's own policy.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, the model's name included.
    """
    violations = _count_violations(request)
    policy = _policy(request, violations)
    if violations:
        raise invalid(violations)
    return policy


def _scoring(
    request: pb.ScoreRequest | pb.ScoreStreamSpec, violations: list[Violation], prefix: str
) -> Scoring:
    policy = _policy(request, violations)
    count = request.top_log_probabilities
    if count > MAX_ALTERNATIVES:
        text = f"top_log_probabilities must be at most {MAX_ALTERNATIVES}, not {count:,}"
        violations.append(("top_log_probabilities", text))
    if violations:
        raise invalid(
            (prefix + field, prefix + text if text.startswith(field) else text)
            for field, text in violations
        )
    details = Details(request.ranks, count)
    return Scoring(policy, details, bool(request.log_probabilities or request.ranks or count))


def _policy(request: _Request, violations: list[Violation]) -> UnknownPolicy | None:
    """Returns a request's policy; adds the violations of it and of the fields that name weights."""
    violations[:0] = source_violations(request)
    values = to_json(request, only=("unknown_policy",))
    try:
        return SamplingConfig.from_json(values).unknown_policy
    except ConfigError as error:
        violations += [(fault.field, str(fault)) for fault in error.faults]
        return None


def _count_violations(request: pb.ScoreRequest | pb.EmbedRequest) -> list[Violation]:
    if isinstance(request, pb.EmbedRequest) and request.tokens:
        both = "tokens and texts are both set: leave one out"
        return [("tokens", both)] if request.texts else []
    if request.texts:
        return []
    most = repeated_limits.most(request.DESCRIPTOR.fields_by_name["texts"])
    return [("texts", f"texts must hold 1 to {most:,} texts, not 0")]
