"""`Choice` collects one generated text, and `write_choice` writes it as JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from typing import Any

from treadle.server.messages.inference_precision import precision_word
from treadle.v1 import sequence_pb2 as pb

_FINISHED = {
    pb.STOP_REASON_MAX_NEW_TOKENS: "length",
    pb.STOP_REASON_TIME_LIMIT: "length",
}
"""Why a text is not at its own end; every other one is: `stop`."""

_TOKEN_BYTES = 100
"""About the bytes of a token or an alternative until the reply is written."""


@dataclass
class Choice:
    """One text while it is generated."""

    texts: list[str] = field(default_factory=list)
    """Its parts."""
    tokens: list[pb.Token] = field(default_factory=list)
    """Its tokens, where they are requested."""
    result: pb.GenerateResult | None = None
    """Its result; None before its end."""

    def add(self, reply: pb.GenerateResponse) -> int:
        """Takes the next reply; returns about the bytes of memory that it takes."""
        self.texts.append(reply.text)
        self.tokens.extend(reply.tokens)
        if reply.HasField("result"):
            self.result = reply.result
        size = 2 * len(reply.text) + len(reply.result.state)
        return size + sum(_TOKEN_BYTES * (1 + len(token.alternatives)) for token in reply.tokens)

    @property
    def mean_log_probability(self) -> float:
        """The mean log-probability of its new tokens; 0 where there are none."""
        result = self.result
        if result is None or not result.new_tokens:
            return 0.0
        return result.total_log_probability / result.new_tokens


@dataclass
class Usage:
    """The tokens that a request took."""

    prompt_tokens: int = 0
    """Tokens of the prompts, each counted once."""
    completion_tokens: int = 0
    """Tokens that were generated, those of texts that are not returned included."""

    def add(self, result: pb.GenerateResult, *, first: bool) -> None:
        """Counts a text.

        Args:
            result: Its result.
            first: Whether its prompt is not counted yet.
        """
        self.completion_tokens += result.new_tokens
        if first:
            self.prompt_tokens += result.prompt_tokens

    def json(self) -> str:
        """Returns the `usage` object."""
        values = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        return json.dumps(values, separators=(",", ":"))


def write_choice(
    index: int, text: str, logprobs: str, result: pb.GenerateResult | None, with_state: bool
) -> str:
    """Returns a choice, or a part of one, as JSON.

    Args:
        index: Its number.
        text: Its text.
        logprobs: Its `logprobs`, as JSON.
        result: Its result; None before its end.
        with_state: Whether the state after it is shown.
    """
    begin = f'{{"index":{index},"text":{quoted(text)},"logprobs":{logprobs},"finish_reason":'
    if result is None:
        return begin + "null}"
    extra = dict[str, Any]()
    if with_state:
        extra["state"] = base64.b64encode(result.state).decode()
    reason = _FINISHED.get(result.stop_reason, "stop")
    more = "".join(f',"{key}":{json.dumps(value)}' for key, value in extra.items())
    precision = precision_word(result.inference_precision)
    end = f'"seed":{result.seed},"inference_precision":"{precision}"{more}}}'
    return f'{begin}"{reason}",{end}'
