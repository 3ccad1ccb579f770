"""`ScoreHandler` answers the calls that score and embed texts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from treadle.model import Model
from treadle.model.enums import UnknownPolicy
from treadle.model.errors import ModelError
from treadle.model.network.memory_estimate import scorer_bytes
from treadle.model.network.session_state import SessionState
from treadle.model.scoring.embedder import Embedder
from treadle.model.scoring.scores import TextScore
from treadle.model.scoring.text_scorer import TextScorer
from treadle.server.access.caller import current_caller
from treadle.server.access.quota_book import TokenCount
from treadle.server.access.state_sealer import StateSealer
from treadle.server.errors import from_model, invalid
from treadle.server.inference.admission import InferenceAdmission
from treadle.server.inference.call_task import CallTask
from treadle.server.inference.memory_costs import (
    embed_bytes,
    score_bytes,
    stream_bytes,
    vector_bytes,
)
from treadle.server.inference.model_resolver import ModelResolver
from treadle.server.inference.open_streams import PendingStreams
from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.score_stream import ScoreStream
from treadle.server.inference.stream_units import StreamPiece
from treadle.server.messages import responses, score_request
from treadle.server.messages.generate_request import token_ids
from treadle.server.messages.inference_precision import precision_number
from treadle.server.messages.reply_size import TAG_BYTES, ReplyGrowth, check_reply_size
from treadle.server.messages.score_request import Scoring
from treadle.server.messages.session_states import SessionStates
from treadle.server.resources.call_deadline import work_within
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.telemetry import metrics, tracing
from treadle.v1 import sequence_pb2 as pb

_SCORED = metrics.SCORED_TOKENS.labels("Score")
_STREAMED = metrics.SCORED_TOKENS.labels("ScoreStream")
_EMBEDDED = metrics.SCORED_TOKENS.labels("Embed")

_FEWER_AT_ONCE = "ask for fewer texts at once"
"""What to do about a reply that would be too large."""


class ScoreHandler:
    """Answers the Score, ScoreStream and Embed calls of a server.

    Args:
        resolver: Finds the models.
        admission: Limits calls and streams.
        pending_streams: Waits for the specs of streams.
        scheduler: Gives the turns.
        budget: Holds the memory of the calls.
        max_message_bytes: The largest reply.
        max_call_s: Seconds that a call, or a piece of a stream, may take.
        sealer: Encrypts states.
    """

    def __init__(
        self,
        resolver: ModelResolver,
        admission: InferenceAdmission,
        pending_streams: PendingStreams,
        scheduler: Scheduler,
        budget: MemoryBudget,
        *,
        max_message_bytes: int,
        max_call_s: float,
        sealer: StateSealer,
    ) -> None:
        self._resolver = resolver
        self._admission = admission
        self._pending_streams = pending_streams
        self._scheduler = scheduler
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._max_call_s = max_call_s
        self._sealer = sealer

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Returns the scores of a request's texts.

        Raises:
            StatusError: The request is refused or fails.
        """
        asked = score_request.scoring(request)
        await self._resolver.await_kernels(request)
        use = self._admission.quotas.current()
        with use.spend_tokens(_estimate(request.texts)) as spent, self._admission.calls.admit():
            async with work_within(self._max_call_s, _FEWER):
                return await self._score(request, asked, spent)

    async def _score(
        self, request: pb.ScoreRequest, asked: Scoring, spent: TokenCount
    ) -> pb.ScoreResponse:
        task = self._task()
        states = self._states()
        found = await self._resolver.resolve(request)
        state = await _read_state(task, states, found.model, request.state, "state")
        await self._resolver.await_kernels(request, state)
        source = await self._resolver.at_precision(found, request, state)
        reply = pb.ScoreResponse(
            version=source.version,
            job_step=source.job_step,
            inference_precision=precision_number(source.model.trained.precision),
        )
        size = score_bytes(request, source.model.parameters.shape)
        with (
            self._budget.reserve(size, "scorings"),
            self._budget.reserve(0, "replies to scorings") as held_reply,
        ):
            field, remedy = _reply_fault(request)
            growth = ReplyGrowth(held_reply, self._max_message_bytes, field, remedy)
            growth.add(reply.ByteSize())
            call = _ScoreCall(source.model, request, asked, reply, growth, states, state)
            try:
                await task.run_steps(call.steps())
            finally:  # a call that fails has used tokens as well
                spent.tokens = sum(score.token_count for score in reply.scores)
                _SCORED.inc(spent.tokens)
                _trace("score", task, spent.tokens)
        return reply

    async def score_stream(
        self, requests: AsyncIterator[pb.ScoreStreamRequest]
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Yields the score of each piece of a stream, and then the result.

        Between two pieces a stream counts as open and keeps its state, but occupies no thread. The
        next piece is not read before the last one is answered.

        Raises:
            StatusError: The request is refused or fails.
        """
        spec = _spec(await self._pending_streams.first(requests))
        asked = score_request.stream_scoring(spec)
        await self._resolver.await_kernels(spec)
        use = self._admission.quotas.current()
        meter = use.meter()
        tokens = 0
        with use.admit_sessions():
            async with self._admission.streams.admit() as open_stream:
                with (
                    self._budget.reserve(0, "streams to score") as held,
                    self._budget.reserve(0, "replies to streams") as held_reply,
                ):
                    task = self._task()
                    states = self._states()
                    async with work_within(self._max_call_s, _SHORTER_CONTEXT):
                        found = await self._resolver.resolve(spec)
                        shape = found.model.parameters.shape
                        held.resize(stream_bytes(spec, shape))
                        state = await _read_state(
                            task, states, found.model, spec.state, "spec.state"
                        )
                        await self._resolver.await_kernels(spec, state)
                        stream = ScoreStream(
                            await self._resolver.at_precision(found, spec, state),
                            spec,
                            asked,
                            self._max_message_bytes,
                            states,
                            held_reply,
                            state,
                        )
                        del spec  # with its context
                        await task.run_steps(stream.begin())
                    held.resize(scorer_bytes(shape))
                    while await self._feed(await open_stream.next(requests), stream, task):
                        tokens += stream.reply.piece.token_count
                        _STREAMED.inc(stream.reply.piece.token_count)
                        await meter.pay("pieces", tokens)
                        yield stream.reply
                        stream.sent()
                    async with work_within(self._max_call_s, _SMALLER):
                        await task.run_steps(stream.finish())
                    await meter.pay("pieces", stream.reply.result.total.token_count)
                    yield stream.reply

    async def _feed(
        self, message: pb.ScoreStreamRequest | None, stream: ScoreStream, task: CallTask
    ) -> bool:
        """Scores the next piece of a stream; returns whether there was one.

        It is a function of its own, so that a silent stream does not keep its last piece.

        Returns:
            Whether there was a piece.
        """
        if message is None:
            return False
        steps = _feed_steps(stream, message)
        del message
        async with work_within(self._max_call_s, _SMALLER):
            await task.run_steps(steps)
        return True

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Returns the vectors of a request's texts.

        Raises:
            StatusError: The request is refused or fails.
        """
        policy = score_request.embedding_policy(request)
        await self._resolver.await_kernels(request)
        estimate = _estimate(request.texts) + len(request.tokens)
        use = self._admission.quotas.current()
        with use.spend_tokens(estimate) as spent, self._admission.calls.admit():
            async with work_within(self._max_call_s, _FEWER):
                found = await self._resolver.resolve(request)
                source = await self._resolver.at_precision(found, request)
                reply = pb.EmbedResponse(
                    version=source.version,
                    job_step=source.job_step,
                    inference_precision=precision_number(source.model.trained.precision),
                )
                shape = source.model.parameters.shape
                vectors = vector_bytes(request, shape)
                # Before any vector is made.
                check_reply_size(vectors, self._max_message_bytes, "texts", _FEWER_AT_ONCE)
                size = vectors + embed_bytes(request, shape)
                with self._budget.reserve(size, "embeddings"):
                    steps = _embed(source.model, request, policy, reply)
                    task = self._task()
                    try:
                        await task.run_steps(steps)
                    finally:
                        spent.tokens = sum(vector.token_count for vector in reply.embeddings)
                        _EMBEDDED.inc(spent.tokens)
                        _trace("embed", task, spent.tokens)
                return reply

    def _task(self) -> CallTask:
        """Returns a task for the running call, which takes its caller's turns."""
        return CallTask(self._scheduler, current_caller().name)

    def _states(self) -> SessionStates:
        """Returns what reads and writes the states of the current caller."""
        return SessionStates(self._sealer, current_caller().name)


async def _read_state(
    task: CallTask, states: SessionStates, model: Model, data: bytes, field: str
) -> SessionState | None:
    """Returns the state that a request carries, which is read in a turn; None without one."""
    if not data:
        return None
    await task.run_steps(model.trained.hash_in_steps())  # a state holds the hash of its model
    return await task.run(lambda turn_s: states.read(model, data, field))


_FEWER = "send fewer or shorter texts"
_SHORTER_CONTEXT = "send a shorter context"
_SMALLER = "send smaller pieces"
"""The remedies for work that takes too long."""


def _trace(name: str, task: CallTask, tokens: int) -> None:
    """Traces the turns of a call, which are over."""
    if tracing.is_on() and task.began_s:
        tracing.add("queue", task.asked_s, task.began_s)
        tracing.add(name, task.began_s, time.monotonic(), tokens=tokens)


def _estimate(texts: Iterable[str]) -> int:
    """Returns about as many tokens as texts have, and rarely fewer."""
    return sum(map(len, texts))


def _spec(message: pb.ScoreStreamRequest | None) -> pb.ScoreStreamSpec:
    """Returns the spec of a stream from its first message, which is None where none came."""
    if message is None or not message.HasField("spec"):
        raise invalid([("spec", "the first message must be the spec")])
    return message.spec


def _feed_steps(stream: ScoreStream, message: pb.ScoreStreamRequest) -> Iterator[None]:
    """Scores a piece, in short steps; the first one takes its text out of the message."""
    piece = StreamPiece.of(_piece(message))
    del message
    yield from stream.feed(piece)


def _piece(message: pb.ScoreStreamRequest) -> pb.TextPiece:
    """Returns the piece of a later message."""
    if message.HasField("spec"):
        raise invalid([("spec", "spec must come once, as the first message")])
    if not message.HasField("piece"):
        raise invalid([("piece", "every message after the spec must be a piece")])
    return message.piece


def _embed(
    model: Model, request: pb.EmbedRequest, policy: UnknownPolicy | None, reply: pb.EmbedResponse
) -> Iterator[None]:
    """Adds the vectors of all texts to the reply, in short steps."""
    embedder = Embedder(model.trained, policy)
    texts: Sequence[str | NDArray[np.int32]] = request.texts
    if request.tokens:
        texts = [token_ids(request.tokens, "tokens", model.tokenizer)]
    for index, text in enumerate(texts):
        try:
            for embedding in embedder.embedding(text):
                if embedding is not None:
                    reply.embeddings.append(
                        responses.embedding(embedding, request.all_layers, model.trained.precision)
                    )
                yield
        except ModelError as error:
            raise from_model(error, f"texts[{index}]") from error


_TOKENS = 64
"""Tokens written to a reply in one step."""


class _ScoreCall:
    """The texts of one request, which are scored into its reply."""

    def __init__(
        self,
        model: Model,
        request: pb.ScoreRequest,
        asked: Scoring,
        reply: pb.ScoreResponse,
        growth: ReplyGrowth,
        states: SessionStates,
        state: SessionState | None = None,
    ) -> None:
        self._reply = reply
        self._model = model
        self._request = request
        self._asked = asked
        self._growth = growth
        self._states = states
        self._state = state

    def steps(self) -> Iterator[None]:
        """Scores all texts, in short steps.

        Raises:
            StatusError: The context or a text cannot be used, or the reply gets too large.
        """
        asked = self._asked
        request = self._request
        field = "context"
        try:
            scorer = TextScorer(self._model.trained, asked.policy, asked.details, self._state)
            yield from scorer.read_context(request.context)  # once: it may be long, and texts many
            for index, text in enumerate(request.texts):
                field = f"texts[{index}]"
                tokens = yield from scorer.encode(text)
                if asked.tokens:  # before their details take memory
                    self._growth.check(tokens.size * asked.token_bytes)
                for scored in scorer.score(tokens):
                    if scored is not None:
                        yield from self._add(scored)
                    yield
        except ModelError as error:
            raise from_model(error, field) from error

    def _add(self, scored: TextScore) -> Iterator[None]:
        """Adds a score to the reply, in short steps."""
        message = self._reply.scores.add()
        message.MergeFrom(responses.summary(scored, self._model.trained.precision))
        if self._request.return_states and scored.state is not None:
            yield from self._model.trained.hash_in_steps()
            message.state = self._states.write(self._model, scored.state)
        tokens = scored.each_token() if self._asked.tokens else iter(())
        grown = 0
        while some := tuple(islice(tokens, _TOKENS)):
            more = responses.add_tokens(message, some)
            self._growth.add(more)
            grown += more
            yield
        self._growth.add(message.ByteSize() + TAG_BYTES - grown)


def _reply_fault(request: pb.ScoreRequest) -> tuple[str, str]:
    """Returns the field at fault where a reply is too large, and the remedy."""
    names = ("log_probabilities", "ranks", "top_log_probabilities")
    field = next((name for name in names if getattr(request, name)), None)
    if field is None:
        return "texts", _FEWER_AT_ONCE
    return field, f"{_FEWER_AT_ONCE}, or leave out {field}"
