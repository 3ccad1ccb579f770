"""Generation: the calls that draw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace

import grpc
import numpy as np

from treadle.model.config import SamplingConfig
from treadle.model.errors import ModelError
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.novelty import Novelty
from treadle.model.generation.output import GenerateResult, OutputOptions, Piece
from treadle.model.generation.sequence import Sequence
from treadle.server.errors import StatusError, from_model, precondition
from treadle.server.inference.admission import InferenceAdmission
from treadle.server.inference.batcher import Batcher, PieceQueue
from treadle.server.inference.constraint_builder import ConstraintBuilder
from treadle.server.inference.memory_costs import (
    call_bytes,
    constraint_bytes,
    search_bytes,
    unread_bytes,
)
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.model_resolver import ModelResolver
from treadle.server.inference.scheduler import Caller, Scheduler
from treadle.server.messages import generate_request, responses
from treadle.server.messages.generate_request import with_tokens
from treadle.server.messages.session_states import given_state
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.v1 import sequence_pb2 as pb

_ECHO_BYTES = 1 << 18
"""About as many bytes of an echo go out in one message; no more of it is made before it is sent."""

_HEAVY = 200
"""Tokens and alternatives of a message from which it is written away from the event loop."""

_HEAVY_TEXT = 1 << 16
"""Characters of the same."""

_UNCOUNTED_STEPS = 16
"""Steps of a beam search after which what it keeps is counted again."""


class GenerateHandler:
    """Every Generate call of one server.

    Args:
        resolver: Finds the models.
        admission: Counts calls and texts.
        scheduler: Gives the turns.
        budget: Holds the bytes that are kept for callers.
        max_new_tokens_limit: The most tokens of one generation.
        max_call_s: Seconds after which texts end.
        max_message_bytes: The largest reply.
        state_key: Authenticates states; empty: they are not.
    """

    def __init__(
        self,
        resolver: ModelResolver,
        admission: InferenceAdmission,
        scheduler: Scheduler,
        budget: MemoryBudget,
        *,
        max_new_tokens_limit: int,
        max_call_s: float,
        max_message_bytes: int,
        state_key: bytes,
    ) -> None:
        self._resolver = resolver
        self._admission = admission
        self._scheduler = scheduler
        self._budget = budget
        self._batcher = Batcher(scheduler)
        self._constraints = ConstraintBuilder(budget)
        self._max_new_tokens_limit = max_new_tokens_limit
        self._max_call_s = max_call_s
        self._reply_bytes = min(responses.MAX_REPLY_BYTES, max_message_bytes // 2)
        self._state_key = state_key

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the replies to a request, the first as soon as there is a token.

        Raises:
            StatusError: Every way in which that can fail.
        """
        sampling = generate_request.sampling(request, self._max_new_tokens_limit)
        deadline = Deadline(min(sampling.max_time_s or self._max_call_s, self._max_call_s))
        texts = max(request.n, 1)
        with self._admission.calls.admit(), self._admission.sequences.admit(texts):
            source = await self._find(request, deadline)
            caller = self._scheduler.caller()
            call = _Call(
                request, sampling, source, self._state_key, caller, deadline, self._budget,
                self._reply_bytes,
            )  # fmt: skip
            queue = PieceQueue(unread_bytes(texts))
            try:
                await call.prepare(self._constraints)
                async for reply in call.read():
                    yield reply
                if call.late:
                    for reply in call.unread():
                        yield reply
                    return
                if request.best_of:
                    async for reply in call.search():
                        yield reply
                    return
                self._batcher.begin(source.model, call.sequences, queue)
                async with aclosing(queue.read(len(call.sequences))) as batches:
                    async for index, pieces in batches:
                        if not call.is_heavy(pieces):
                            for reply in call.light_replies(index, pieces):
                                yield reply
                            continue
                        async with aclosing(call.heavy_replies(index, pieces)) as replies:
                            async for reply in replies:
                                yield reply
            except ModelError as error:
                raise from_model(error, field="prompt") from error
            finally:
                queue.closed = True
                call.held.release()

    async def _find(self, request: pb.GenerateRequest, deadline: Deadline) -> ResolvedModel:
        """Returns the model; the time of the call may end while it is loaded."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline.left_s):
                return await self._resolver.resolve(request)
        text = (
            "max_time_s, or the time that the server gives to a call, ended while the model was "
            "loaded; the next call finds it loaded"
        )
        raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, text)


class _Call:
    """One call: its prompt, its texts, and what they are sent with."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        sampling: SamplingConfig,
        source: ResolvedModel,
        key: bytes,
        caller: Caller,
        deadline: Deadline,
        budget: MemoryBudget,
        reply_bytes: int,
    ) -> None:
        self._reply_bytes = reply_bytes
        self._request = request
        self._sampling = sampling
        self._source = source
        self._key = key
        self._caller = caller
        self._deadline = deadline
        tokens = request.log_probabilities or request.ranks or request.top_log_probabilities > 0
        self._output = OutputOptions(tokens, request.return_state, request.novelty)
        shape = source.model.parameters.shape
        self.held = budget.reserve(call_bytes(request, sampling, shape, tokens), "generations")
        """What it keeps, until it is over."""
        self._prompt: PreparedPrompt
        self._constraint: Constraint | None = None
        self._texts = max(request.n, 1)
        self.sequences: list[Sequence] = []
        """The texts to draw."""

    @property
    def late(self) -> bool:
        """Whether the time ended before the prompt was read."""
        return self._prompt.timed_out

    async def prepare(self, constraints: ConstraintBuilder) -> None:
        """Reads the state, makes the settings ready and finds out whether they fit the model.

        Raises:
            StatusError: A state or a token cannot be used.
            ModelError: A setting cannot be used.
        """
        if self._request.regex:
            # Not in a turn: an expression may take seconds, which others need not wait for.
            tokenizer = self._source.model.tokenizer
            found = await constraints.build(self._request.regex, tokenizer, self._deadline)
            self._constraint = found
            self.held.resize(self.held.size + constraint_bytes(found))
            if found is None:  # the time is over: nothing will be drawn
                self._sampling = replace(self._sampling, regex="")
        await self._caller.run_steps(self._prepare())

    def _prepare(self) -> Iterator[None]:
        request, model = self._request, self._source.model
        if request.novelty and model.novelty is None:
            raise precondition(
                "the model has no novelty index: train it with novelty_index, or leave novelty out"
            )
        state = given_state(model, request.state, "state", self._key)
        yield
        sampling = yield from with_tokens(self._sampling, request, model.tokenizer)
        self._prompt = PreparedPrompt(
            model.trained, request.prompt, sampling, state, self._constraint, self._deadline
        )
        yield
        if request.return_state:
            _ = model.content_hash  # of a large model it takes a while
            yield

    async def read(self) -> AsyncIterator[pb.GenerateResponse]:
        """Reads the prompt, in turns; yields it where an echo is asked for, as it is read.

        Each window of an echo goes out for every text before the next one is made, so that it takes
        no more memory than one, however long the prompt and however slow the reader.

        Raises:
            ModelError: The prompt cannot be read.
        """
        if self._request.echo:
            async with aclosing(self._caller.iterate(self._echo())) as windows:
                async for window in windows:
                    for index in range(self._texts):
                        window.index = index
                        yield window
        await self._caller.run_steps(self._read())

    def _read(self) -> Iterator[None]:
        if not self._request.echo:
            yield from self._prompt.read()
        if self.late:
            return
        for index in range(self._texts):
            self.sequences.append(self._prompt.sequence(index, self._output))
            yield

    def _echo(self) -> Iterator[pb.GenerateResponse | None]:
        """Makes messages of about _ECHO_BYTES."""
        reply, size, texts = pb.GenerateResponse(), 0, []
        for piece in self._prompt.echo(self._output.tokens):
            if piece is not None:
                texts.append(piece.text)
                size += len(piece.text) + responses.add_tokens(reply, piece.tokens)
            if size < min(_ECHO_BYTES, self._reply_bytes):
                yield None
                continue
            reply.text = "".join(texts)
            yield reply
            reply, size, texts = pb.GenerateResponse(), 0, []
        if size:
            reply.text = "".join(texts)
            yield reply

    def unread(self) -> Iterator[pb.GenerateResponse]:
        """Yields the end of every text where the time ended before the prompt was read."""
        for index in range(self._texts):
            piece = self._prompt.timed_out_piece(index)
            yield from self.light_replies(index, [piece])

    async def search(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the likeliest texts that a beam search finds, best first."""
        found: list[Piece] = []
        await self._caller.run_steps(self._search(found))
        for index, piece in enumerate(found):
            async with aclosing(self.heavy_replies(index, [piece])) as replies:
                async for reply in replies:
                    yield reply

    def _search(self, found: list[Piece]) -> Iterator[None]:
        """Searches in short steps; puts what it finds into `found`."""
        search = self._prompt.beam_search(self._texts, self._output)
        before, uncounted = self.held.size, 0
        for _ in search.steps():
            if not uncounted:
                kept, beams = search.beginnings(), self._sampling.best_of
                uncounted = _UNCOUNTED_STEPS + kept // (4 * beams)
                most = kept + uncounted * beams
                self.held.resize(before + search_bytes(most, self._sampling))
            uncounted -= 1
            yield
        for one in search.results():
            found.append(self._prompt.beam_piece(one, self._output))
            yield

    def is_heavy(self, pieces: list[Piece]) -> bool:
        """Returns whether to write pieces takes longer than the event loop has for it."""
        result = pieces[-1].result
        told = result is not None and (result.state is not None or self._request.novelty)
        size = sum(len(piece.text) for piece in pieces)
        return told or size > _HEAVY_TEXT or sum(piece.weight for piece in pieces) > _HEAVY

    def light_replies(self, index: int, pieces: list[Piece]) -> list[pb.GenerateResponse]:
        """Returns the replies for consecutive pieces of a text that are not heavy."""
        return [reply for reply in self._replies(index, pieces) if reply is not None]

    async def heavy_replies(
        self, index: int, pieces: list[Piece]
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """Yields the replies for pieces that are heavy, each written when the last one is sent."""
        async with aclosing(self._caller.iterate(self._replies(index, pieces))) as replies:
            async for reply in replies:
                yield reply

    def _replies(self, index: int, pieces: list[Piece]) -> Iterator[pb.GenerateResponse | None]:
        """Writes replies for consecutive pieces of a text, in short steps."""
        result = pieces[-1].result
        source = self._source
        for reply in responses.generated(
            pieces, source.version, source.job_step, index, self._reply_bytes
        ):
            if reply is not None and reply.HasField("result") and result is not None:
                self._complete(reply.result, result)
            yield reply

    def _complete(self, reply: pb.GenerateResult, result: GenerateResult) -> None:
        """Adds state and novelty to the end of a text."""
        if result.state is not None:
            reply.state = self._source.model.state_bytes(result.state, self._key)
        if self._request.novelty:
            found = self._novelty(result.ids)
            reply.novelty.longest_overlap = found.longest_overlap
            reply.novelty.is_new = found.is_new

    def _novelty(self, ids: tuple[int, ...]) -> Novelty:
        """Returns how much of a text is new; a prompt is part of an item, not of a text."""
        model = self._source.model
        assert model.novelty is not None
        item = np.array(ids, np.int32)
        if model.tokenizer.begin is not None:
            item = np.concatenate((self._prompt.tokens, item))
        return model.novelty.novelty(item, model.tokenizer)
