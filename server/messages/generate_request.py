"""`sampling`, `prompt_of` and `with_tokens` turn a request to generate into settings.

The ranges of the sampling fields are checked by `SamplingConfig` (model/config.py).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import SamplingConfig
from treadle.model.enums import UnknownPolicy
from treadle.model.errors import ModelError
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.incremental_encoder import encode_in_steps
from treadle.server.errors import Violation, invalid
from treadle.server.messages import repeated_limits
from treadle.server.messages.fields import to_json
from treadle.server.messages.requests import build, source_violations
from treadle.v1 import sequence_pb2 as pb

MAX_TEXTS = 256
"""The most texts of one Generate call."""

MAX_TOKENS_NAMED = repeated_limits.MOST["GenerateRequest.forced_tokens"]
"""The most tokens that one list of a request may contain."""

_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_PLAIN = {
    *_SAMPLING_FIELDS,
    "max_new_tokens",
    "min_new_tokens",
    "unknown_policy",
    "max_time_s",
    "ranks",
    "top_log_probabilities",
    "regex",
    "best_of",
}


def sampling(request: pb.GenerateRequest, max_new_tokens_limit: int) -> SamplingConfig:
    """Returns the settings of a request to generate, without those that name tokens.

    Args:
        request: The request.
        max_new_tokens_limit: The most tokens of one text that the server allows.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault, the model's name included.
    """
    values = to_json(request, only=_PLAIN)
    settings = {**values, "stop_sequences": tuple(request.stop_sequences)}
    violations = source_violations(request) + _number_violations(request)
    violations += _resume_violations(request)
    if request.prompt and request.prompt_tokens:
        violations.append(("prompt_tokens", "prompt_tokens and prompt are both set: leave one out"))
    if request.max_new_tokens > max_new_tokens_limit:
        del settings["max_new_tokens"]
        text = f"max_new_tokens must be at most {max_new_tokens_limit:,} on this server"
        violations.append(("max_new_tokens", text))
    elif not request.HasField("max_new_tokens"):
        settings["max_new_tokens"] = min(SamplingConfig().max_new_tokens, max_new_tokens_limit)
    if request.best_of:
        violations += [
            (name, f"{name} is a setting of the sampling: leave it out, or best_of")
            for name in _SAMPLING_FIELDS
            if name in values
        ]
    return build(lambda: SamplingConfig.from_json(settings), violations, str)


def _number_violations(request: pb.GenerateRequest) -> list[Violation]:
    """Returns what is wrong with the number of texts that a request asks for."""
    found = []
    if request.n > MAX_TEXTS:
        found.append(("n", f"n must be 1 to {MAX_TEXTS}, not {request.n:,}"))
    elif request.best_of and request.n > request.best_of:
        found.append(("n", f"n must be at most best_of, {request.best_of}, not {request.n}"))
    return found


def _resume_violations(request: pb.GenerateRequest) -> list[Violation]:
    """Returns what is wrong with the resume points of a request."""
    if request.resume and request.best_of:
        return [("resume", "resume is for sampled texts: leave it out, or best_of")]
    found = []
    seen = set()
    most = max(request.n, 1)
    for place, point in enumerate(request.resume):
        field = f"resume[{place}]"
        if point.index >= most:
            text = f"{field}.index must be below n, {most}, not {point.index}"
            found.append((f"{field}.index", text))
        elif point.index in seen:
            found.append((f"{field}.index", f"{field}.index, {point.index}, is there twice"))
        if point.state and (request.regex or request.novelty):
            text = f"{field}.state cannot be used with regex or novelty: leave it out"
            found.append((f"{field}.state", text))
        seen.add(point.index)
    return found


def prompt_of(request: pb.GenerateRequest, tokenizer: Tokenizer) -> str | NDArray[np.int32]:
    """Returns the prompt of a request: its text, or its tokens (N,).

    Raises:
        StatusError: INVALID_ARGUMENT: an id is not in the vocabulary.
    """
    if not request.prompt_tokens:
        return request.prompt
    return token_ids(request.prompt_tokens, "prompt_tokens", tokenizer)


def token_ids(ids: Sequence[int], field: str, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Returns ids of tokens (N,), all of which are in a vocabulary.

    Args:
        ids: The ids, each 0 or more.
        field: The field of the request that holds them.
        tokenizer: The tokenizer of the model.

    Raises:
        StatusError: INVALID_ARGUMENT: an id is not in the vocabulary.
    """
    tokens = np.array(ids, np.int64)
    wrong = np.flatnonzero(tokens >= tokenizer.vocabulary_size)
    if wrong.size:
        place = f"{field}[{wrong[0]}]"
        last = tokenizer.vocabulary_size - 1
        raise invalid(
            [(place, f"{place} must be an id from 0 to {last:,}, not {tokens[wrong[0]]}")]
        )
    return tokens.astype(np.int32)


def with_tokens(
    sampling: SamplingConfig, request: pb.GenerateRequest, tokenizer: Tokenizer
) -> Generator[None, None, SamplingConfig]:
    """Adds the settings that name tokens of a vocabulary, in short steps.

    Args:
        sampling: The result of `sampling` for the request.
        request: The request.
        tokenizer: The tokenizer of the model.

    Yields:
        None between two steps, since texts that name tokens may be as long as a message.

    Returns:
        The settings.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    violations: list[Violation] = []
    biases: list[tuple[int, float]] = []
    lists: dict[str, list[int]] = {"banned_tokens": [], "forced_tokens": []}
    for index, entry in enumerate(request.token_biases):
        place = f"token_biases[{index}]"
        found = yield from _ids(entry.token, place, tokenizer, True, violations)
        biases += [(token, entry.bias) for token in found]
    for name, ids in lists.items():
        for index, reference in enumerate(getattr(request, name)):
            place = f"{name}[{index}]"
            single = name == "banned_tokens"
            ids += yield from _ids(reference, place, tokenizer, single, violations)
            if len(ids) > MAX_TOKENS_NAMED:
                text = f"{name} must be at most {MAX_TOKENS_NAMED:,} tokens in total: force fewer"
                violations.append((name, text))
                break
    if violations:
        raise invalid(violations)

    def make() -> SamplingConfig:
        return replace(
            sampling,
            token_biases=tuple(biases),
            banned_tokens=tuple(lists["banned_tokens"]),
            forced_tokens=tuple(lists["forced_tokens"]),
        )

    return build(make, violations, str)


def _ids(
    reference: pb.TokenReference,
    place: str,
    tokenizer: Tokenizer,
    single: bool,
    violations: list[Violation],
) -> Generator[None, None, Sequence[int]]:
    """Returns the tokens that a reference names, in short steps; adds its violations."""

    def refuse(text: str) -> Sequence[int]:
        violations.append((place, text))
        return ()

    kind = reference.WhichOneof("token")
    if kind is None:
        return refuse(f"{place} must name a token by its id, its text or as the end")
    if kind == "id":
        return [reference.id]
    if kind == "end":
        if tokenizer.end is None:
            return refuse(f"{place} names the end token, and only models of lines have one")
        return [tokenizer.end]
    try:
        found = yield from encode_in_steps(tokenizer, reference.text, UnknownPolicy.ERROR)
    except ModelError as error:
        return refuse(f"{place}: {error}")
    yield
    if single and found.size != 1:
        what = f"{reference.text[:40]!r} is {found.size:,} tokens"
        return refuse(f"{place} must be one token of the vocabulary, and {what}")
    ids: list[int] = found[: MAX_TOKENS_NAMED + 1].tolist()
    return ids
