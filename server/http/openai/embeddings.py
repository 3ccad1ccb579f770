"""`embed` answers `POST /v1/embeddings`: the hidden state after each text as a vector."""

from __future__ import annotations

import base64
import json
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from treadle.server.errors import StatusError
from treadle.server.http.openai.completion_request import precision, token_ids
from treadle.server.http.openai.json_fields import JsonFields, is_whole, shown
from treadle.server.http.openai.model_ids import (
    ModelReference,
    fingerprint,
    job_id,
    model_id,
    read_model_id,
)
from treadle.server.http.openai.openai_error import invalid
from treadle.server.http.openai.rpc_errors import from_status
from treadle.server.messages.inference_precision import precision_word
from treadle.server.resources import thread_pools
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.openai.exchange import Exchange

_NAMES = {"texts": "input", "tokens": "input", "version": "model", "job": "model"}
"""The fields of a request by those of Embed that have another name."""

_MOST_NUMBERS = 1 << 20
"""The most numbers of one response."""

_NUMBER_BYTES = 50
"""Bytes of a number in a response while it is written."""

_MOST_LISTS = 100
"""The most texts of one request that are given as ids of tokens: each is a call."""


@dataclass(frozen=True)
class _Asked:
    """What a request asks for."""

    reference: ModelReference
    texts: list[str]
    lists: list[list[int]]
    """Texts that are given as ids of tokens."""
    in_base64: bool
    dimensions: int | None
    all_layers: bool
    precision: pb.InferencePrecision.ValueType


def _read(values: dict[str, Any]) -> _Asked:
    fields = JsonFields(values)
    reference = read_model_id(fields.text("model"))
    texts, lists = _input(fields)
    asked = _Asked(
        reference,
        texts,
        lists,
        fields.word("encoding_format", ("float", "base64")) == "base64",
        fields.whole("dimensions", 1, 2**31),
        fields.flag("all_layers"),
        precision(fields),
    )
    fields.any("user")
    fields.end()
    return asked


async def embed(exchange: Exchange) -> Response:
    """Returns the response to a request.

    Raises:
        OpenAIError: The request is refused or fails.
        StatusError: The caller is not known, or the body is not there.
    """
    asked = await exchange.read(_read)
    try:
        name, mark, named = await _resolve(exchange, asked.reference.fields())
        requests = [pb.EmbedRequest(texts=asked.texts)] if asked.texts else []
        requests += [pb.EmbedRequest(tokens=tokens) for tokens in asked.lists]
        embeddings = list[pb.Embedding]()
        for request in requests:
            request.MergeFrom(
                pb.EmbedRequest(
                    **named, all_layers=asked.all_layers, inference_precision=asked.precision
                )
            )
            reply = await exchange.call("Embed", request)
            embeddings += reply.embeddings
            size = len(embeddings[0].values)
            if asked.dimensions not in (None, size):
                text = f"dimensions must be {size}, the length of this model's vectors"
                raise invalid("dimensions", f"{text}, or left out")
            if len(embeddings) * size > _MOST_NUMBERS:
                text = "the vectors are too many for one response: send fewer texts"
                raise invalid("input", text)
        with exchange.bodies.budget.reserve(_NUMBER_BYTES * size * len(embeddings), "embeddings"):
            head = {
                "object": "list",
                "model": name,
                "system_fingerprint": mark,
                "inference_precision": precision_word(reply.inference_precision),
            }
            body = await thread_pools.JSON.run(_write, head, embeddings, asked.in_base64)
            return Response(body, media_type="application/json")
    except StatusError as error:
        raise from_status(error, _NAMES) from None


def _write(head: dict[str, Any], embeddings: list[pb.Embedding], in_base64: bool) -> bytes:
    """Returns the response as JSON."""
    tokens = sum(embedding.token_count for embedding in embeddings)
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{_vector(embedding, in_base64)}}}'
        for index, embedding in enumerate(embeddings)
    )
    counts = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    return f'{json.dumps(head)[:-1]}, "data":[{data}],"usage":{counts}}}'.encode()


async def _resolve(
    exchange: Exchange, fields: dict[str, Any]
) -> tuple[str, str | None, dict[str, Any]]:
    """Returns the id of the weights, what identifies them, and the fields that name them."""
    if "job" in fields:
        return job_id(fields["job"]), None, fields
    model = (await exchange.call("GetModel", pb.GetModelRequest(**fields))).model
    named = {"model": model.name, "version": model.version}
    return model_id(model.name, model.version), fingerprint(model), named


def _input(fields: JsonFields) -> tuple[list[str], list[list[int]]]:
    """Returns the texts to embed, and those that are given as ids of tokens."""
    value = fields.any("input")
    if isinstance(value, str):
        return [fields.as_text(value, "input")], []
    if not isinstance(value, list) or not value:
        forms = "a string, an array of strings, of token ids, or of arrays of token ids"
        what = "an empty array" if isinstance(value, list) else shown(value)
        raise invalid("input", f"input must be {forms}, not {what}")
    if is_whole(value[0]):
        return [], [token_ids(value, "input")]
    if isinstance(value[0], str):
        return [fields.as_text(item, "input") for item in value], []
    if len(value) > _MOST_LISTS:
        text = f"input has {len(value):,} arrays of token ids, and may have {_MOST_LISTS}"
        raise invalid("input", f"{text}: send fewer at once, or texts")
    lists = list[list[int]]()
    for index, item in enumerate(value):
        if not isinstance(item, list):
            raise invalid("input", f"input[{index}] must be an array of token ids")
        lists.append(token_ids(item, f"input[{index}]"))
    return [], lists


def _vector(embedding: pb.Embedding, in_base64: bool) -> str:
    """Returns a vector as JSON: its float32 numbers, or their bytes in base64."""
    if in_base64:
        numbers = array("f", embedding.values)
        return f'"{base64.b64encode(numbers.tobytes()).decode()}"'
    return f"[{','.join(map(repr, embedding.values))}]"
