"""What a request to generate asks for, as settings of the model room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from treadle.model.config import SamplingConfig, UnknownPolicy
from treadle.model.errors import ModelError
from treadle.model.tokenizer import Tokenizer
from treadle.server.convert import build, source_violations, to_json
from treadle.server.errors import Violation, invalid
from treadle.v1 import sequence_pb2 as pb

MAX_TEXTS = 256
"""Texts of one Generate call."""

MAX_TOKENS_NAMED = 1024
"""Tokens that one list of a request may name."""

_OF_THE_DRAW = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip
_PLAIN = {
    *_OF_THE_DRAW, "max_new_tokens", "min_new_tokens", "unknown_policy", "max_time_s", "ranks",
    "top_log_probabilities", "regex", "best_of",
}  # fmt: skip
_LISTS = ("token_biases", "banned_tokens", "forced_tokens")


def sampling(request: pb.GenerateRequest, max_new_tokens_limit: int) -> SamplingConfig:
    """Returns the settings that a request to generate asks for, but those that name tokens.

    Args:
        request: The request.
        max_new_tokens_limit: The most tokens that the server makes in one call.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, the model's name included.
    """
    values = to_json(request)
    settings = {name: value for name, value in values.items() if name in _PLAIN}
    settings["stop_sequences"] = tuple(request.stop_sequences)
    violations = source_violations(request) + _number_violations(request)
    if request.max_new_tokens > max_new_tokens_limit:
        del settings["max_new_tokens"]
        text = f"max_new_tokens must be at most {max_new_tokens_limit:,} on this server"
        violations.append(("max_new_tokens", text))
    elif not request.HasField("max_new_tokens"):
        settings["max_new_tokens"] = min(SamplingConfig().max_new_tokens, max_new_tokens_limit)
    if request.best_of:
        violations += [
            (name, f"{name} is a setting of the draw: leave it out, or best_of")
            for name in _OF_THE_DRAW
            if name in values
        ]
    return build(lambda: SamplingConfig.from_json(settings), violations, str)


def _number_violations(request: pb.GenerateRequest) -> list[Violation]:
    """Returns what is wrong with how many texts and tokens a request names."""
    found = []
    if request.n > MAX_TEXTS:
        found.append(("n", f"n must be 1 to {MAX_TEXTS}, not {request.n:,}"))
    elif request.best_of and request.n > request.best_of:
        found.append(("n", f"n must be at most best_of, {request.best_of}, not {request.n}"))
    for name in _LISTS:
        size = len(getattr(request, name))
        if size > MAX_TOKENS_NAMED:
            text = f"{name} must hold at most {MAX_TOKENS_NAMED:,} tokens, not {size:,}"
            found.append((name, text))
    return found


def with_tokens(
    sampling: SamplingConfig, request: pb.GenerateRequest, tokenizer: Tokenizer
) -> SamplingConfig:
    """Returns settings together with those that name tokens of a vocabulary.

    Args:
        sampling: What `sampling` returned for the request.
        request: The request.
        tokenizer: Of the model that it names.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    violations: list[Violation] = []

    def ids(reference: pb.TokenReference, place: str, single: bool = True) -> Sequence[int]:
        try:
            return _ids(reference, place, tokenizer, single)
        except ValueError as fault:
            violations.append((place, str(fault)))
            return ()

    biases: list[tuple[int, float]] = [
        (token, entry.bias)
        for index, entry in enumerate(request.token_biases)
        for token in ids(entry.token, f"token_biases[{index}]")
    ]
    banned, forced = (
        [
            token
            for index, reference in enumerate(getattr(request, name))
            for token in ids(reference, f"{name}[{index}]", single)
        ]
        for name, single in (("banned_tokens", True), ("forced_tokens", False))
    )
    if violations:
        raise invalid(violations)

    def make() -> SamplingConfig:
        return replace(
            sampling,
            token_biases=tuple(biases),
            banned_tokens=tuple(banned),
            forced_tokens=tuple(forced),
        )

    return build(make, violations, str)


def _ids(
    reference: pb.TokenReference, place: str, tokenizer: Tokenizer, single: bool
) -> Sequence[int]:
    """Returns the tokens that a reference names; raises ValueError where there are none."""
    kind = reference.WhichOneof("token")
    if kind is None:
        raise ValueError(f"{place} must name a token by its id, its text or as the end")
    if kind == "id":
        return [reference.id]
    if kind == "end":
        if tokenizer.end is None:
            raise ValueError(f"{place} names the end token, and only models of lines have one")
        return [tokenizer.end]
    try:
        found: list[int] = tokenizer.encode(reference.text, UnknownPolicy.ERROR).tolist()
    except ModelError as error:
        raise ValueError(f"{place}: {error}") from error
    if single and len(found) != 1:
        raise ValueError(f"{place} must be one token of the vocabulary, not {len(found)}")
    return found
