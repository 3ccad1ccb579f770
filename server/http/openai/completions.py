"""`complete` answers `POST /v1/completions`: texts that a model continues, whole or as a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING

from starlette.responses import Response

from treadle.server.errors import StatusError
from treadle.server.http.openai.choice import Choice, Usage, write_choice
from treadle.server.http.openai.completion_request import (
    NAMES,
    CompletionRequest,
    read_completion_request,
)
from treadle.server.http.openai.event_stream import DONE, EventStream
from treadle.server.http.openai.generation_calls import generate_all
from treadle.server.http.openai.logprobs import TextLogprobs
from treadle.server.http.openai.model_ids import fingerprint, job_id, model_id
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.http.openai.rpc_errors import from_status
from treadle.server.resources import thread_pools
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.openai.exchange import Exchange

_MOST_BYTES = 1 << 26
"""About the most bytes of memory of the texts of one response that is not streamed."""

_STEP_BYTES = 1 << 16
"""Bytes by which the reservation of a response grows."""


async def complete(exchange: Exchange) -> Response | None:
    """Returns the response to a request; None where it was streamed.

    Raises:
        OpenAIError: The request is refused or fails.
        StatusError: The caller is not known, or the body is not there.
    """
    request = await exchange.read(read_completion_request)
    try:
        completion = await _begin(exchange, request)
        if request.stream:
            await completion.stream()
            return None
        return await completion.whole()
    except StatusError as error:
        raise from_status(error, NAMES) from None


async def refuse_chat(exchange: Exchange) -> Response:
    """Answers `POST /v1/chat/completions`, which these models do not serve.

    Raises:
        OpenAIError: Always.
    """
    text = (
        "these models continue a text and hold no chat: call /v1/completions with a prompt "
        "(client.completions.create)"
    )
    raise OpenAIError(400, text, param="messages", code="unsupported_endpoint")


async def _begin(exchange: Exchange, request: CompletionRequest) -> Completion:
    """Finds the version that all prompts of a request use."""
    reference = request.reference
    if reference.job:
        return Completion(exchange, request, 0, job_id(reference.job), None)
    found = await exchange.call("GetModel", pb.GetModelRequest(**reference.fields()))
    model = found.model
    name = model_id(model.name, model.version)
    return Completion(exchange, request, model.version, name, fingerprint(model))


class Completion:
    """One request while it is answered.

    Args:
        exchange: The HTTP request.
        request: What it asks for.
        number: The version of the model; 0 for the weights of a job.
        model: The id of the weights.
        system_fingerprint: What identifies them; None for the weights of a job, which change.
    """

    def __init__(
        self,
        exchange: Exchange,
        request: CompletionRequest,
        number: int,
        model: str,
        system_fingerprint: str | None,
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._number = number
        self._usage = Usage()
        mark = "null" if system_fingerprint is None else quoted(system_fingerprint)
        self._head = (
            f'{{"id":"cmpl-{secrets.token_hex(12)}","object":"text_completion",'
            f'"created":{int(time.time())},"model":{quoted(model)},"system_fingerprint":{mark},'
        )

    async def whole(self) -> Response:
        """Returns the response with all texts.

        Raises:
            OpenAIError: They take too much memory.
            StatusError: A call failed.
        """
        request = self._request
        texts = [[Choice() for _ in range(request.best_of)] for _ in request.prompts]
        size = 0
        budget = self._exchange.bodies.budget
        with budget.reserve(0, "replies that are not read yet") as held:
            async with aclosing(self._replies()) as replies:
                async for number, reply in replies:
                    size += texts[number][reply.index].add(reply)
                    if size > _MOST_BYTES:
                        text = "the texts are too long for one response: ask for fewer, or stream"
                        raise OpenAIError(400, text, param="max_tokens")
                    if size > held.size:
                        held.resize(2 * size + _STEP_BYTES)
            if size <= _STEP_BYTES:
                body = self._body(texts)
            else:  # what takes long does not keep the event loop
                body = await thread_pools.JSON.run(self._body, texts)
            return Response(body, media_type="application/json")

    def _body(self, texts: list[list[Choice]]) -> bytes:
        """Returns the response with all texts as JSON."""
        choices = ",".join(self._choices(texts))
        return f'{self._head}"choices":[{choices}],"usage":{self._usage.json()}}}'.encode()

    def _choices(self, texts: list[list[Choice]]) -> Iterator[str]:
        """Yields the texts to return, prompt by prompt, as JSON."""
        index = 0
        for group in texts:
            for choice in best(group, self._request.n):
                text = "".join(choice.texts)
                logprobs = "null"
                if self._request.logprobs is not None:
                    writer = TextLogprobs(self._request.logprobs > 0)
                    logprobs = writer.add(text, choice.tokens)
                result = choice.result
                yield write_choice(index, text, logprobs, result, self._request.return_state)
                index += 1

    async def stream(self) -> None:
        """Sends the texts while they are generated.

        Raises:
            StatusError: The call failed before there was any text; later errors are sent.
        """
        request = self._request
        events = EventStream(self._exchange.send)
        no_usage = ',"usage":null' if request.include_usage else ""
        writers: dict[int, TextLogprobs] = {}
        head = f'data: {self._head}"choices":['
        tail = f"]{no_usage}}}\n\n"
        try:
            async with aclosing(self._replies()) as replies:
                async for number, reply in replies:
                    result = reply.result if reply.HasField("result") else None
                    if not (reply.text or reply.tokens or result is not None):
                        continue
                    index = number * request.n + reply.index
                    logprobs = "null"
                    if request.logprobs is not None:
                        writer = writers.get(index)
                        if writer is None:
                            writer = writers[index] = TextLogprobs(request.logprobs > 0)
                        logprobs = writer.add(reply.text, reply.tokens)
                    choice = write_choice(index, reply.text, logprobs, result, request.return_state)
                    await events.write(f"{head}{choice}{tail}".encode())
        except StatusError as error:
            if not events.has_begun:
                raise
            await events.end(b"data: " + from_status(error, NAMES).body() + b"\n\n")
            return
        last = DONE
        if request.include_usage:
            usage = f'data: {self._head}"choices":[],"usage":{self._usage.json()}}}\n\n'
            last = usage.encode() + DONE
        await events.end(last)

    async def _replies(self) -> AsyncGenerator[tuple[int, pb.GenerateResponse], None]:
        """Yields the replies of all calls, each with the number of its prompt; counts tokens."""
        counted = set[int]()
        prompts = self._request.prompts

        def make(number: int) -> pb.GenerateRequest:
            return self._request.request(prompts[number], self._number)

        calls = generate_all(self._exchange.service, len(prompts), make, self._exchange.origin)
        async with aclosing(calls) as replies:
            async for number, reply in replies:
                if reply.HasField("result"):
                    self._usage.add(reply.result, first=number not in counted)
                    counted.add(number)
                yield number, reply


def best(group: list[Choice], n: int) -> list[Choice]:
    """Returns the texts with the highest mean log-probability per token, the best first."""
    if len(group) == n:
        return group
    return sorted(group, key=lambda choice: -choice.mean_log_probability)[:n]
