"""Generation: the calls that draw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np

from treadle.model.config import SamplingConfig
from treadle.model.constraint import Constraint, compile_constraint
from treadle.model.errors import ModelError
from treadle.model.generation import Preparation, echo
from treadle.model.novelty import Novelty
from treadle.model.session import Piece, Session, Wanted
from treadle.model.tokens import TokenScore
from treadle.server import convert_generation, records
from treadle.server.admission import Load
from treadle.server.batcher import Batcher, Outlet
from treadle.server.convert_generation import with_tokens
from treadle.server.errors import from_model, precondition
from treadle.server.loaded import Source
from treadle.server.scheduler import Caller, Scheduler
from treadle.server.sources import Sources
from treadle.server.states import given_state
from treadle.server.turns import run_steps
from treadle.v1 import sequence_pb2 as pb

_COMPILING = ThreadPoolExecutor(2, "regex")
"""Makes automata of regular expressions, which are kept for who asks next."""

_ECHO_TOKENS = 1000
"""Tokens of a prompt in one message."""


class GeneratingRoom:
    """Every Generate call of one server.

    Args:
        sources: Finds the models.
        load: Counts calls and texts.
        scheduler: Gives the turns.
        max_new_tokens_limit: The most tokens of one generation.
        state_key: Authenticates states; empty: they are not.
    """

    def __init__(
        self,
        sources: Sources,
        load: Load,
        scheduler: Scheduler,
        *,
        max_new_tokens_limit: int,
        state_key: bytes,
    ) -> None:
        self._sources = sources
        self._load = load
        self._scheduler = scheduler
        self._batcher = Batcher(scheduler)
        self._max_new_tokens_limit = max_new_tokens_limit
        self._state_key = state_key

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the replies to a request, the first as soon as there is a token.

        Raises:
            StatusError: Every way in which that can fail.
        """
        sampling = convert_generation.sampling(request, self._max_new_tokens_limit)
        texts = max(request.n, 1)
        with self._load.calls.admit(), self._load.sessions.admit(texts):
            source = await self._sources.find(request)
            call = _Call(request, sampling, source, self._state_key, self._scheduler.caller())
            outlet = Outlet()
            try:
                await call.prepare()
                async for reply in call.echo():
                    yield reply
                if request.best_of:
                    async for reply in call.search():
                        yield reply
                    return
                self._batcher.begin(source.model, call.sessions, outlet)
                async with aclosing(outlet.read(len(call.sessions))) as batches:
                    async for index, pieces in batches:
                        yield await call.reply(index, pieces)
            except ModelError as error:
                raise from_model(error, field="prompt") from error
            finally:
                outlet.gone = True


class _Call:
    """One call: its prompt, its texts, and what they are told with."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        sampling: SamplingConfig,
        source: Source,
        key: bytes,
        caller: Caller,
    ) -> None:
        self._request = request
        self._sampling = sampling
        self._source = source
        self._key = key
        self._caller = caller
        tokens = request.log_probabilities or request.ranks or request.top_log_probabilities > 0
        self._wanted = Wanted(tokens, request.return_state, request.novelty)
        self._preparation: Preparation
        self._constraint: Constraint | None = None
        self._shown = ""
        self._echoed: list[TokenScore] = []
        self.sessions: list[Session] = []
        """The texts to draw."""

    async def prepare(self) -> None:
        """Reads the state and the prompt, in turns.

        Raises:
            StatusError: A state or a token cannot be used.
            ModelError: The prompt cannot be read.
        """
        if self._request.regex:
            # Not in a turn: an expression may take seconds, which others need not wait for.
            loop, tokenizer = asyncio.get_running_loop(), self._source.model.tokenizer
            self._constraint = await loop.run_in_executor(
                _COMPILING, compile_constraint, self._request.regex, tokenizer
            )
        await run_steps(self._caller, self._steps())

    def _steps(self) -> Iterator[None]:
        self._begin()
        yield
        yield from self._preparation.read()
        for index in range(max(self._request.n, 1)):
            self.sessions.append(self._preparation.session(index, self._wanted))
        if self._request.echo:
            self._shown = self._preparation.shown
            if self._wanted.tokens:
                yield from echo(self._preparation, self._echoed)

    def _begin(self) -> None:
        """Makes prompt and settings ready; finds out whether they fit the model."""
        request, model = self._request, self._source.model
        if request.novelty and model.novelty is None:
            raise precondition(
                "the model has no novelty index: train it with novelty_index, or leave novelty out"
            )
        state = given_state(model, request.state, "state", self._key)
        sampling = with_tokens(self._sampling, request, model.tokenizer)
        self._preparation = Preparation(model, request.prompt, sampling, state, self._constraint)
        if request.return_state:
            _ = model.content_hash  # of a large model it takes a while, and not on the event loop

    async def echo(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the prompt as the beginning of every text, where that is asked for."""
        if not self._request.echo:
            return
        for index in range(len(self.sessions)):
            text = self._shown
            for first in range(0, max(len(self._echoed), 1), _ECHO_TOKENS):
                tokens = tuple(self._echoed[first : first + _ECHO_TOKENS])
                yield records.generated([Piece(text, tokens, None)], self._source, index)
                text = ""

    async def search(self) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the likeliest texts that a beam search finds, best first."""
        found: list[Piece] = []
        await run_steps(self._caller, self._search(found))
        for index, piece in enumerate(found):
            yield await self.reply(index, [piece])

    def _search(self, found: list[Piece]) -> Iterator[None]:
        """Searches in short steps; puts what it finds into `found`."""
        search = self._preparation.search(max(self._request.n, 1), self._wanted)
        yield from search.steps()
        found += [self._preparation.found(one, self._wanted) for one in search.results()]

    async def reply(self, index: int, pieces: list[Piece]) -> pb.GenerateResponse:
        """Returns the reply for consecutive pieces of a text."""
        reply, result = records.generated(pieces, self._source, index), pieces[-1].result
        if result is None:
            return reply
        model = self._source.model
        if result.state is not None:
            reply.result.state = model.state_bytes(result.state, self._key)
        if self._request.novelty:
            found = await self._caller.run(lambda _: self._novelty(result.ids))
            reply.result.novelty.longest_overlap = found.longest_overlap
            reply.result.novelty.is_new = found.is_new
        return reply

    def _novelty(self, ids: tuple[int, ...]) -> Novelty:
        """Returns how much of a text is new; a prompt is part of an item, not of a text."""
        model = self._source.model
        assert model.novelty is not None
        before = self._preparation.prompt if model.tokenizer.begin is not None else ()
        item = np.array([*before, *ids], np.int32)
        return model.novelty.novelty(item, model.tokenizer)
