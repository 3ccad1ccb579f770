"""`GenerateHandler` answers the calls that generate text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TypeVar

import grpc
import numpy as np

from treadle.model.config import SamplingConfig
from treadle.model.errors import ModelError
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.novelty import Novelty
from treadle.model.generation.output import (
    GenerateResult,
    OutputOptions,
    Piece,
    ResumePoint,
)
from treadle.model.generation.sequence import Sequence
from treadle.model.network.session_state import SessionState
from treadle.server.access.caller import current_caller
from treadle.server.access.state_sealer import StateSealer
from treadle.server.errors import StatusError, from_model, invalid, precondition
from treadle.server.inference.admission import InferenceAdmission
from treadle.server.inference.batcher import Batcher, PieceQueue
from treadle.server.inference.call_task import CallTask
from treadle.server.inference.constraint_builder import ConstraintBuilder
from treadle.server.inference.memory_costs import (
    call_bytes,
    constraint_bytes,
    search_bytes,
    unread_bytes,
)
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.model_resolver import ModelResolver
from treadle.server.inference.scheduler import Scheduler
from treadle.server.messages import generate_request, responses
from treadle.server.messages.generate_request import prompt_of, with_tokens
from treadle.server.messages.inference_precision import precision_number
from treadle.server.messages.session_states import SessionStates
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.telemetry.generation_metrics import GenerationMetrics
from treadle.v1 import sequence_pb2 as pb

_Found = TypeVar("_Found")

_ECHO_BYTES = 1 << 18
"""About the bytes of an echo in one message; the next ones are made when these are sent."""

_HEAVY = 200
"""Tokens and alternatives of a message from which it is written away from the event loop."""

_HEAVY_TEXT = 1 << 16
"""Characters of a message from which it is written away from the event loop."""

_HASH_BYTES = 16
"""Bytes of a model's content hash that stand for it."""

_UNCOUNTED_STEPS = 16
"""Steps of a beam search after which its memory is counted again."""


class GenerateHandler:
    """Answers the Generate calls of a server.

    Args:
        resolver: Finds the models.
        admission: Limits calls and texts.
        scheduler: Gives the turns.
        budget: Holds the memory of the calls.
        max_new_tokens_limit: The most tokens of one generation.
        max_call_s: Seconds after which texts end.
        max_message_bytes: The largest reply.
        sealer: Encrypts states.
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
        sealer: StateSealer,
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
        self._sealer = sealer

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the replies to a request, the first as soon as there is a token.

        Raises:
            StatusError: The request is refused or fails.
        """
        counts = GenerationMetrics()
        sampling = generate_request.sampling(request, self._max_new_tokens_limit)
        deadline = Deadline(min(sampling.max_time_s or self._max_call_s, self._max_call_s))
        texts = len(request.resume) or max(request.n, 1)
        caller = current_caller().name
        await _in_time(self._resolver.await_kernels(request), deadline, _COMPILED)
        use = self._admission.quotas.current()
        with (
            use.admit_sessions(texts),
            self._admission.calls.admit(),
            self._admission.sequences.admit(texts),
        ):
            meter = use.meter()
            call = _Call(
                request,
                sampling,
                await _in_time(self._resolver.resolve(request), deadline, _LOADED),
                SessionStates(self._sealer, caller),
                CallTask(self._scheduler, caller),
                deadline,
                self._budget,
                self._reply_bytes,
            )
            queue = PieceQueue(unread_bytes(texts))
            try:
                await call.choose_precision(self._resolver)
                await call.prepare(self._constraints)
                async for reply in call.read_prompt():
                    yield call.mark_first(reply)
                counts.prompt(call.prompt_tokens, *call.turns_s)
                await meter.pay("prompt", call.scored_prompt_tokens)
                if call.timed_out:
                    async with aclosing(call.timed_out_replies()) as replies:
                        async for reply in replies:
                            yield call.mark_first(reply)
                    return
                if request.best_of:
                    async for reply in call.beam_search():
                        counts.text(0, call.searched_tokens, True)
                        await meter.pay("beams", call.searched_tokens)
                        yield call.mark_first(reply)
                    return
                self._batcher.begin(call.model, call.sequences, queue, caller)
                async with aclosing(queue.read(len(call.sequences))) as batches:
                    async for place, pieces in batches:
                        index = call.indexes[place]
                        last = pieces[-1]
                        counts.text(index, last.new_tokens, last.result is not None)
                        del last
                        async with aclosing(meter.paid(index, pieces)) as paid:
                            async for some in paid:
                                async with aclosing(call.replies(index, some)) as replies:
                                    async for reply in replies:
                                        yield call.mark_first(reply)
            except ModelError as error:
                raise from_model(error, field="prompt") from error
            finally:
                queue.closed = True
                call.held.release()
                counts.end()


def _up_to_points(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Yields pieces in parts, each of which ends at a resume point or at the end."""
    start = 0
    for stop, piece in enumerate(pieces, 1):
        if piece.resume is not None or stop == len(pieces):
            yield pieces[start:stop]
            start = stop


_COMPILED = "the kernels that the call needs were compiled; repeat it in a while"
_LOADED = "the model was loaded; the next call finds it loaded"
"""What may take so long that the time of a call ends, and what to do about it."""


async def _in_time(work: Awaitable[_Found], deadline: Deadline, what: str) -> _Found:
    """Returns what comes of some work; the time of the call may end before.

    Args:
        work: What to wait for.
        deadline: The end of the call's time.
        what: What happens meanwhile, as a clause.

    Raises:
        StatusError: DEADLINE_EXCEEDED: the time is over.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline.left_s):
            return await work
    text = f"max_time_s, or the time that the server gives to a call, ended while {what}"
    raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, text)


class _Call:
    """One Generate call: its prompt, its sequences, and its replies."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        sampling: SamplingConfig,
        resolved: ResolvedModel,
        states: SessionStates,
        task: CallTask,
        deadline: Deadline,
        budget: MemoryBudget,
        reply_bytes: int,
    ) -> None:
        self._request = request
        self._sampling = sampling
        self._resolved = resolved
        self.model = resolved.model
        """The model that generates."""
        self._state: SessionState | None = None
        self._states = states
        self._task = task
        self._deadline = deadline
        self._reply_bytes = reply_bytes
        tokens = request.log_probabilities or request.ranks or request.top_log_probabilities > 0
        self._output = OutputOptions(
            tokens, request.return_state, request.novelty, request.resume_interval
        )
        size = call_bytes(request, sampling, self.model.trained.shape, tokens)
        self.held = budget.reserve(size, "generations")
        """The memory of the call, until it is over."""
        self._prompt: PreparedPrompt
        self._constraint: Constraint | None = None
        self.indexes = [each.index for each in request.resume] or list(range(max(request.n, 1)))
        """The numbers of the texts that are generated, in the order of `sequences`."""
        self._points: dict[int, ResumePoint] = {}
        self._has_started = False
        self.sequences: list[Sequence] = []
        """The sequences to decode."""
        self.searched_tokens = 0
        """Tokens that a beam search has drawn, in all of its beams."""

    @property
    def timed_out(self) -> bool:
        """Whether the time ended before the prompt was read."""
        return self._prompt.timed_out

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, once it is read."""
        return int(self._prompt.tokens.size)

    @property
    def turns_s(self) -> tuple[float, float]:
        """When its first turn was asked for, and when that began."""
        return self._task.asked_s, self._task.began_s

    @property
    def scored_prompt_tokens(self) -> int:
        """Tokens of the prompt that an echo scored, once the prompt is read."""
        is_scored = self._request.echo and self._output.tokens
        return self.prompt_tokens if is_scored else 0

    async def choose_precision(self, resolver: ModelResolver) -> None:
        """Reads the state, and takes the model in the precision that request and state ask for.

        Raises:
            StatusError: The state cannot be used, or the model does not fit into memory.
        """
        request = self._request
        if request.state or request.resume:  # which hold the hash of their model
            await self._task.run_steps(self.model.trained.hash_in_steps())
        if request.state:
            self._state = await self._task.run(
                lambda turn_s: self._states.read(self.model, request.state, "state")
            )
        await self._task.run_steps(self._read_points())
        states = (self._state, *(point.state for point in self._points.values()))
        state = next((state for state in states if state is not None), None)
        if state is not None:
            compiling = resolver.await_kernels(request, state)
            await _in_time(compiling, self._deadline, _COMPILED)
        finding = resolver.at_precision(self._resolved, request, state)
        self._resolved = await _in_time(finding, self._deadline, _LOADED)
        self.model = self._resolved.model

    def mark_first(self, reply: pb.GenerateResponse) -> pb.GenerateResponse:
        """Returns a reply; the first one of the call with what a repeated call needs."""
        if not self._has_started:
            self._has_started = True
            reply.start.version = self._resolved.version
            reply.start.model_hash = self.model.content_hash[:_HASH_BYTES]
            reply.start.inference_precision = precision_number(self.model.trained.precision)
            if self._prompt.chooses_seed and not self._request.best_of:
                reply.start.seed = self._prompt.seed
        return reply

    def _read_points(self) -> Iterator[None]:
        """Reads the places from which texts continue, in short steps."""
        for place, point in enumerate(self._request.resume):
            state = self._states.read(self.model, point.state, f"resume[{place}].state")
            if state is not None:
                field = f"resume[{place}].state"
                if state.token < 0 or state.seed is None:
                    text = f"{field} is not of a resume_point: give one that a server sent, or none"
                    raise invalid([(field, text)])
                self._points[point.index] = ResumePoint(
                    state, point.new_tokens, point.total_log_probability, point.prompt_tokens
                )
            yield

    async def prepare(self, constraints: ConstraintBuilder) -> None:
        """Resolves the settings, and checks that they fit the model.

        Raises:
            StatusError: A token cannot be used.
            ModelError: A setting cannot be used.
        """
        if self._request.regex:
            # Not in a turn: an expression may take seconds, for which other calls need not wait.
            tokenizer = self.model.tokenizer
            found = await constraints.build(self._request.regex, tokenizer, self._deadline)
            self._constraint = found
            self.held.resize(self.held.size + constraint_bytes(found))
            if found is None:  # the time is over: nothing will be drawn
                self._sampling = replace(self._sampling, regex="")
        await self._task.run_steps(self._prepare())

    def _prepare(self) -> Iterator[None]:
        request = self._request
        model = self.model
        if request.novelty and model.novelty is None:
            raise precondition(
                "the model has no novelty index: train it with novelty_index, or leave novelty out"
            )
        sampling = yield from with_tokens(self._sampling, request, model.tokenizer)
        self._prompt = PreparedPrompt(
            model.trained,
            prompt_of(request, model.tokenizer),
            sampling,
            self._state,
            self._constraint,
            self._deadline,
        )
        yield
        yield from model.trained.hash_in_steps()  # of a large model it takes a while, once

    async def read_prompt(self) -> AsyncIterator[pb.GenerateResponse]:
        """Reads the prompt, in turns; yields it on the way where an echo is asked for.

        Each window of an echo goes out for every text before the next one is made. So an echo
        takes no more memory than one window, however long the prompt and however slow the reader.

        Yields:
            The replies that hold the echo.

        Raises:
            ModelError: The prompt cannot be read.
        """
        if self._request.echo and self._reads_prompt:
            async with aclosing(self._task.iterate(self._echo())) as windows:
                async for window in windows:
                    for index in self.indexes:
                        if index not in self._points:
                            window.index = index
                            yield window
        await self._task.run_steps(self._read())

    @property
    def _reads_prompt(self) -> bool:
        """Whether some text begins after the prompt."""
        return len(self._points) < len(self.indexes)

    def _read(self) -> Iterator[None]:
        if self._reads_prompt and not self._request.echo:
            yield from self._prompt.read()
        if self.timed_out:
            return
        for index in self.indexes:
            point = self._points.get(index)
            if point is None:
                self.sequences.append(self._prompt.sequence(index, self._output))
            else:
                self.sequences.append(self._prompt.resumed(point, self._output))
            yield

    def _echo(self) -> Iterator[pb.GenerateResponse | None]:
        """Yields messages of about _ECHO_BYTES."""
        reply = pb.GenerateResponse()
        size = 0
        texts: list[str] = []
        for piece in self._prompt.echo(self._output.tokens):
            if piece is not None:
                texts.append(piece.text)
                size += len(piece.text) + responses.add_tokens(reply, piece.tokens)
            if size < min(_ECHO_BYTES, self._reply_bytes):
                yield None
                continue
            reply.text = "".join(texts)
            yield reply
            reply = pb.GenerateResponse()
            size = 0
            texts = []
        if size:
            reply.text = "".join(texts)
            yield reply

    async def timed_out_replies(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Yields the end of every text where the time ended before the prompt was read."""
        for index in self.indexes:
            async with aclosing(self.replies(index, [self._timed_out_piece(index)])) as replies:
                async for reply in replies:
                    yield reply

    def _timed_out_piece(self, index: int) -> Piece:
        """Returns the end of a text: of one that continues, with what was drawn of it before."""
        point = self._points.get(index)
        last = None
        if point is not None:
            last = self._prompt.resumed(point, self._output).nothing_to_draw()
        return last or self._prompt.timed_out_piece(index)

    async def beam_search(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the likeliest texts that a beam search finds, best first."""
        found: list[Piece] = []
        await self._task.run_steps(self._search(found))
        longest = max((piece.new_tokens for piece in found), default=0)
        self.searched_tokens = self._sampling.best_of * longest
        for index, piece in enumerate(found):
            async with aclosing(self._heavy_replies(index, [piece])) as replies:
                async for reply in replies:
                    yield reply

    def _search(self, found: list[Piece]) -> Iterator[None]:
        """Searches in short steps; adds the results to `found`."""
        search = self._prompt.beam_search(len(self.indexes), self._output)
        held_before = self.held.size
        uncounted = 0
        for _ in search.steps():
            if not uncounted:
                kept = search.beginnings()
                beams = self._sampling.best_of
                uncounted = _UNCOUNTED_STEPS + kept // (4 * beams)
                most = kept + uncounted * beams
                self.held.resize(held_before + search_bytes(most, self._sampling))
            uncounted -= 1
            yield
        for hypothesis in search.results():
            found.append(self._prompt.beam_piece(hypothesis, self._output))
            yield

    async def replies(self, index: int, pieces: list[Piece]) -> AsyncGenerator[pb.GenerateResponse]:
        """Yields the replies for consecutive pieces of text `index`."""
        if not self._is_heavy(pieces):
            for reply in self._light_replies(index, pieces):
                yield reply
            return
        async with aclosing(self._heavy_replies(index, pieces)) as replies:
            async for reply in replies:
                yield reply

    def _is_heavy(self, pieces: list[Piece]) -> bool:
        """Returns whether to write pieces takes longer than the event loop has for it."""
        result = pieces[-1].result
        has_extras = result is not None and (result.state is not None or self._request.novelty)
        has_extras = has_extras or any(piece.resume is not None for piece in pieces)
        size = sum(len(piece.text) for piece in pieces)
        details = sum(piece.weight for piece in pieces)
        return has_extras or size > _HEAVY_TEXT or details > _HEAVY

    def _light_replies(self, index: int, pieces: list[Piece]) -> list[pb.GenerateResponse]:
        """Returns the replies for pieces that are not heavy, written on the event loop."""
        return [reply for reply in self._write(index, pieces) if reply is not None]

    async def _heavy_replies(
        self, index: int, pieces: list[Piece]
    ) -> AsyncGenerator[pb.GenerateResponse]:
        """Yields the replies for heavy pieces, each written when the one before is sent."""
        async with aclosing(self._task.iterate(self._write(index, pieces))) as replies:
            async for reply in replies:
                yield reply

    def _write(self, index: int, pieces: list[Piece]) -> Iterator[pb.GenerateResponse | None]:
        """Writes the replies for consecutive pieces of a text, in short steps."""
        version = self._resolved.version
        job_step = self._resolved.job_step
        for some in _up_to_points(pieces):
            last = some[-1]
            for reply in responses.generated(some, version, job_step, index, self._reply_bytes):
                if reply is not None and reply.HasField("result") and last.result is not None:
                    self._complete(reply.result, last.result)
                if reply is not None and reply.HasField("resume_point") and last.resume is not None:
                    reply.resume_point.state = self._states.write(self.model, last.resume.state)
                yield reply

    def _complete(self, reply: pb.GenerateResult, result: GenerateResult) -> None:
        """Adds precision, state and novelty to the end of a text."""
        reply.inference_precision = precision_number(self.model.trained.precision)
        if result.state is not None:
            reply.state = self._states.write(self.model, result.state)
        if self._request.novelty:
            found = self._novelty(result.ids)
            reply.novelty.longest_overlap = found.longest_overlap
            reply.novelty.is_new = found.is_new

    def _novelty(self, ids: tuple[int, ...]) -> Novelty:
        """Returns how much of a text is new. The prompt belongs to an item, but not to a text."""
        model = self.model
        assert model.novelty is not None
        item = np.array(ids, np.int32)
        if model.tokenizer.begin is not None:
            item = np.concatenate((self._prompt.tokens, item))
        return model.novelty.novelty(item, model.tokenizer)
