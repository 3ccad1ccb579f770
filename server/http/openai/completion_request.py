"""`CompletionRequest` is a request to `/v1/completions`, and makes the Generate requests for it."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from treadle.model import InferencePrecision
from treadle.server.http.openai.json_fields import (
    MAX_UINT64,
    JsonFields,
    is_number,
    is_whole,
    shown,
)
from treadle.server.http.openai.model_ids import ModelReference, read_model_id
from treadle.server.http.openai.openai_error import invalid
from treadle.server.http.openai.unknown_policies import POLICIES
from treadle.server.messages.inference_precision import PRECISION_WORDS, precision_number
from treadle.server.messages.repeated_limits import MOST
from treadle.v1 import sequence_pb2 as pb

Prompt = str | list[int]
"""A prompt: its text, or ids of tokens."""

NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_sequences": "stop",
    "token_biases": "logit_bias",
    "top_log_probabilities": "logprobs",
    "log_probabilities": "logprobs",
    "prompt_tokens": "prompt",
    "best_of": "beam_width",
    "version": "model",
    "job": "model",
}
"""The fields of a request by those of Generate that have another name."""

MAX_PROMPTS = 2048
"""The most prompts of one request, as at OpenAI."""

MAX_TEXTS = 256
"""The most texts that are generated for one prompt."""

MAX_TEXTS_IN_ALL = 4096
"""The most texts that are generated for one request."""

_MAX_LOGPROBS = 5
_MAX_STOPS = MOST["GenerateRequest.stop_sequences"]
_MAX_BIASES = MOST["GenerateRequest.token_biases"]
_MAX_TOKENS = MOST["GenerateRequest.prompt_tokens"]

_DEFAULT_TOKENS = 16
_MAX_STATE = 1 << 24
"""Characters of the longest state."""


@dataclass(frozen=True)
class CompletionRequest:
    """What a request asks for."""

    reference: ModelReference
    """The model."""
    prompts: list[Prompt]
    """The prompts, at least one."""
    n: int
    """Texts to return for each prompt."""
    best_of: int
    """Texts to generate for each prompt."""
    stream: bool
    """Whether the texts are streamed."""
    include_usage: bool
    """Whether a stream ends with the tokens that it took."""
    logprobs: int | None
    """How many of the likeliest tokens are shown at each position; None: no tokens are shown."""
    return_state: bool
    """Whether the state after each text is returned."""
    settings: pb.GenerateRequest
    """What all prompts have in common."""

    def request(self, prompt: Prompt, version: int) -> pb.GenerateRequest:
        """Returns the request to generate after one of the prompts.

        Args:
            prompt: The prompt.
            version: The version of the model; 0: that of the reference.
        """
        made = pb.GenerateRequest()
        made.CopyFrom(self.settings)
        if version:
            made.model = made.model.partition("@")[0]
            made.version = version
        if isinstance(prompt, str):
            made.prompt = prompt
        else:
            made.prompt_tokens.extend(prompt)
        return made


def read_completion_request(values: dict[str, Any]) -> CompletionRequest:
    """Returns what a request asks for.

    Args:
        values: The JSON object of its body.

    Raises:
        OpenAIError: 400 with the field at fault.
    """
    fields = JsonFields(values)
    reference = read_model_id(fields.text("model"))
    settings = pb.GenerateRequest(**reference.fields())
    prompts = _prompts(fields)
    n = fields.whole("n", 1, MAX_TEXTS) or 1
    best_of = fields.whole("best_of", 1, MAX_TEXTS) or n
    stream = fields.flag("stream")
    _check_counts(len(prompts), n, best_of, stream)
    settings.n = best_of
    logprobs = fields.whole("logprobs", 0, _MAX_LOGPROBS)
    if logprobs is not None:
        settings.log_probabilities = True
        settings.top_log_probabilities = logprobs
    _sampling(fields, settings)
    _edits(fields, settings)
    _extensions(fields, settings, n, best_of)
    if fields.whole("beam_width", 1, 64):
        settings.n = n
    request = CompletionRequest(
        reference=reference,
        prompts=prompts,
        n=n,
        best_of=best_of,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        logprobs=logprobs,
        return_state=settings.return_state,
        settings=settings,
    )
    fields.unserved("suffix", "these models continue a text and do not fill gaps; leave it out")
    fields.any("user")
    fields.end()
    return request


def _check_counts(prompts: int, n: int, best_of: int, stream: bool) -> None:
    """Refuses numbers of texts that do not fit each other."""
    if best_of < n:
        raise invalid("best_of", f"best_of must be at least n, which is {n}, and not {best_of}")
    if stream and best_of > n:
        text = "best_of cannot be streamed: it is decided when all texts have ended"
        raise invalid("best_of", f"{text}; leave out stream, or best_of")
    if prompts * best_of > MAX_TEXTS_IN_ALL:
        text = f"{prompts:,} prompts with {best_of} texts each are more than {MAX_TEXTS_IN_ALL:,}"
        raise invalid("prompt", f"{text} texts: send fewer prompts at once")


def _include_usage(fields: JsonFields, stream: bool) -> bool:
    options = fields.fields("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid(
            "stream_options", "stream_options is for streams: set stream, or leave it out"
        )
    include = options.flag("include_usage")
    options.unserved("include_obfuscation", "nothing is added to a stream; leave it out", False)
    options.end()
    return include


def _prompts(fields: JsonFields) -> list[Prompt]:
    """Returns the prompts: a text, ids of tokens, or an array of either."""
    value = fields.any("prompt")
    if value is None:
        return [""]
    if isinstance(value, str):
        return [fields.as_text(value, "prompt")]
    if not isinstance(value, list) or not value:
        forms = "a string, an array of strings, of token ids, or of arrays of token ids"
        what = "an empty array" if isinstance(value, list) else shown(value)
        raise invalid("prompt", f"prompt must be {forms}, not {what}")
    if is_whole(value[0]):
        return [token_ids(value, "prompt")]
    if len(value) > MAX_PROMPTS:
        most = f"{len(value):,} prompts are more than {MAX_PROMPTS:,}"
        raise invalid("prompt", f"{most}: send fewer at once")
    prompts = list[Prompt]()
    for index, item in enumerate(value):
        place = f"prompt[{index}]"
        if isinstance(item, list) and isinstance(value[0], list):
            prompts.append(token_ids(item, place))
        elif isinstance(item, str) and isinstance(value[0], str):
            prompts.append(fields.as_text(item, "prompt"))
        else:
            text = "must be of the same kind as the first prompt: strings, or arrays of token ids"
            raise invalid("prompt", f"{place} {text}")
    return prompts


def token_ids(values: list[Any], place: str) -> list[int]:
    """Returns ids of tokens.

    Args:
        values: The ids as JSON has them.
        place: The field that holds them.

    Raises:
        OpenAIError: 400: one is no id.
    """
    param = place.partition("[")[0]
    if len(values) > _MAX_TOKENS:
        raise invalid(param, f"{place} may have {_MAX_TOKENS:,} tokens: send fewer")
    if not values:
        raise invalid(param, f"{place} has no token: send an empty string for an empty text")
    for index, value in enumerate(values):
        if not is_whole(value) or not 0 <= value < 2**32:
            raise invalid(param, f"{place}[{index}] must be the id of a token, not {shown(value)}")
    return values


def _sampling(fields: JsonFields, settings: pb.GenerateRequest) -> None:
    """Reads how tokens are chosen, and how many."""
    tokens = fields.whole("max_tokens", 0, 2**32 - 1)
    settings.max_new_tokens = _DEFAULT_TOKENS if tokens is None else tokens
    temperature = fields.number("temperature", 0, 100)
    if temperature is not None:
        settings.temperature = temperature
    top_p = fields.number("top_p", 0, 1)
    if top_p is not None:
        # 0 leaves the likeliest token alone, as at OpenAI.
        settings.top_p = top_p or 1e-9
    seed = fields.whole("seed", -(2**63), MAX_UINT64)
    if seed is not None:
        settings.seed = seed % 2**64
    settings.echo = fields.flag("echo")
    stop = fields.any("stop")
    if stop is not None:
        settings.stop_sequences.extend(_stops(fields, stop))


def _stops(fields: JsonFields, stop: object) -> list[str]:
    """Returns the stop sequences: one or several."""
    if isinstance(stop, str):
        return [fields.as_text(stop, "stop")]
    if not isinstance(stop, list):
        raise invalid("stop", f"stop must be a string or an array of strings, not {shown(stop)}")
    if len(stop) > _MAX_STOPS:
        raise invalid("stop", f"stop may have {_MAX_STOPS} entries: send fewer")
    return [fields.as_text(item, "stop") for item in stop]


def _edits(fields: JsonFields, settings: pb.GenerateRequest) -> None:
    """Reads what is added to logits."""
    settings.presence_penalty = fields.number("presence_penalty", -100, 100) or 0.0
    settings.frequency_penalty = fields.number("frequency_penalty", -100, 100) or 0.0
    biases = fields.any("logit_bias")
    if biases is None:
        return
    if not isinstance(biases, dict):
        text = f"logit_bias must map ids of tokens to numbers, and is {shown(biases)}"
        raise invalid("logit_bias", text)
    if len(biases) > _MAX_BIASES:
        raise invalid("logit_bias", f"logit_bias may have {_MAX_BIASES:,} entries: send fewer")
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 11 and int(key) < 2**32):
            raise invalid("logit_bias", f"logit_bias: {shown(key)} is not the id of a token")
        if not is_number(bias) or not -100 <= bias <= 100:
            text = f"logit_bias[{key}] must be a number from -100 to 100, not {shown(bias)}"
            raise invalid("logit_bias", text)
        settings.token_biases.add(token=pb.TokenReference(id=int(key)), bias=bias)


def _extensions(fields: JsonFields, settings: pb.GenerateRequest, n: int, best_of: int) -> None:
    """Reads the fields that OpenAI's API does not have."""
    settings.top_k = fields.whole("top_k", 0, 2**32 - 1) or 0
    settings.min_p = fields.number("min_p", 0, 1) or 0.0
    settings.min_new_tokens = fields.whole("min_tokens", 0, 2**32 - 1) or 0
    for name, low, high in (
        ("typical_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 100.0),
        ("max_time_s", 0.0, 1e9),
    ):
        value = fields.number(name, low, high)
        if value is not None:
            setattr(settings, name, value)
    settings.regex = fields.text("regex") or ""
    policy = fields.word("unknown_policy", list(POLICIES))
    if policy is not None:
        settings.unknown_policy = POLICIES[policy]
    settings.inference_precision = precision(fields)
    state = fields.text("state")
    if state is not None:
        settings.state = _bytes(state)
    settings.return_state = fields.flag("return_state")
    beam_width = fields.whole("beam_width", 1, 64)
    if beam_width:
        if best_of > n:
            text = "beam_width and best_of are two ways to choose texts: leave one out"
            raise invalid("best_of", text)
        settings.best_of = beam_width


def precision(fields: JsonFields) -> pb.InferencePrecision.ValueType:
    """Returns the precision that a request asks for; 0 where it leaves that open.

    Raises:
        OpenAIError: 400: there is no such precision.
    """
    word = fields.word("inference_precision", PRECISION_WORDS)
    if word is None:
        return pb.INFERENCE_PRECISION_UNSPECIFIED
    return precision_number(InferencePrecision(word))


def _bytes(text: str) -> bytes:
    """Returns the bytes that a text in base64 stands for."""
    if len(text) > _MAX_STATE:
        raise invalid("state", f"state has more than {_MAX_STATE:,} characters")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("state", "state must be in base64, as it was returned") from None
