"""Scoring and embedding: the calls that read texts and draw nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import islice

from treadle.model import Model
from treadle.model.config import UnknownPolicy
from treadle.model.embedding import Embedder
from treadle.model.errors import ModelError
from treadle.model.scores import TextScore
from treadle.model.text_scorer import TextScorer
from treadle.server import convert_scoring, records
from treadle.server.admission import Load
from treadle.server.call_deadline import work_within
from treadle.server.convert_scoring import Scoring
from treadle.server.errors import from_model, invalid
from treadle.server.loaded import Source
from treadle.server.memory_budget import MemoryBudget
from treadle.server.scheduler import Scheduler
from treadle.server.score_streaming import Stream
from treadle.server.sources import Sources
from treadle.server.states import given_state
from treadle.server.stream_places import Openings
from treadle.server.turns import run_steps
from treadle.v1 import sequence_pb2 as pb

_TOO_LARGE = "the reply would be larger than a message may be; "


class ScoringRoom:
    """Every Score, ScoreStream and Embed call of one server.

    Args:
        sources: Finds the models.
        load: Counts calls and streams.
        openings: Waits for the specs of streams.
        scheduler: Gives the turns.
        budget: Holds the bytes that are kept for callers.
        max_message_bytes: The largest reply.
        max_call_s: Seconds that a call, or a piece of a stream, may take.
        state_key: Authenticates states; empty: they are not.
    """

    def __init__(
        self,
        sources: Sources,
        load: Load,
        openings: Openings,
        scheduler: Scheduler,
        budget: MemoryBudget,
        *,
        max_message_bytes: int,
        max_call_s: float,
        state_key: bytes,
    ) -> None:
        self._sources = sources
        self._load = load
        self._openings = openings
        self._scheduler = scheduler
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._max_call_s = max_call_s
        self._state_key = state_key

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Returns the scores of a request's texts.

        Raises:
            StatusError: Every way in which that can fail.
        """
        asked = convert_scoring.scoring(request)
        with self._load.calls.admit():
            async with work_within(self._max_call_s, _FEWER):
                return await self._score(request, asked)

    async def _score(self, request: pb.ScoreRequest, asked: Scoring) -> pb.ScoreResponse:
        source = await self._sources.find(request)
        reply = pb.ScoreResponse(version=source.version, job_step=source.job_step)
        room = self._max_message_bytes - reply.ByteSize()
        work = _Texts(source.model, request, asked, reply, room, self._state_key)
        await run_steps(self._scheduler.caller(), work.steps())
        return reply

    async def score_stream(
        self, requests: AsyncIterator[pb.ScoreStreamRequest]
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Yields the score of each piece of a stream, and then the result.

        Between two pieces a stream holds its place among the streams and its state, and no thread.
        The next piece is not read before the last one is answered.

        Raises:
            StatusError: Every way in which that can fail.
        """
        spec = _spec_of(await self._openings.first(requests))
        asked = convert_scoring.stream_scoring(spec)
        async with self._load.streams.admit() as place:
            caller = self._scheduler.caller()
            async with work_within(self._max_call_s, _SHORTER_CONTEXT):
                source = await self._sources.find(spec)
                stream = Stream(source, spec, asked, self._max_message_bytes, self._state_key)
                await run_steps(caller, stream.begin())
            while (message := await place.next(requests)) is not None:
                async with work_within(self._max_call_s, _SMALLER):
                    await run_steps(caller, stream.feed(_piece_of(message)))
                yield stream.reply
            async with work_within(self._max_call_s, _SMALLER):
                await run_steps(caller, stream.finish())
            yield stream.reply

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Returns the vectors of a request's texts.

        Raises:
            StatusError: Every way in which that can fail.
        """
        policy = convert_scoring.embedding_policy(request)
        with self._load.calls.admit():
            async with work_within(self._max_call_s, _FEWER):
                source = await self._sources.find(request)
                reply = pb.EmbedResponse(version=source.version, job_step=source.job_step)
                self._check_size(source, request)
                steps = _embed(source.model, request, policy, reply)
                await run_steps(self._scheduler.caller(), steps)
                return reply

    def _check_size(self, source: Source, request: pb.EmbedRequest) -> None:
        """Refuses texts whose vectors do not fit in a reply, before any is made."""
        shape = source.model.parameters.shape
        numbers = shape.H * (shape.L if request.all_layers else 1)
        size = len(request.texts) * (4 * numbers + _EMBEDDING_BYTES) + _EMBEDDING_BYTES
        if size > self._max_message_bytes:
            raise invalid([("texts", _TOO_LARGE + "ask for fewer texts at once")])


_EMBEDDING_BYTES = 32
"""What an Embedding has beside its numbers, and the reply beside its embeddings, at most."""


_FEWER = "send fewer or shorter texts"
_SHORTER_CONTEXT = "send a shorter context"
_SMALLER = "send smaller pieces"
"""What to do about work that took too long."""


def _spec_of(message: pb.ScoreStreamRequest | None) -> pb.ScoreStreamSpec:
    """Returns the spec that a stream's first message, or None where there was none, carries."""
    if message is None or not message.HasField("spec"):
        raise invalid([("spec", "the first message must be the spec")])
    return message.spec


def _piece_of(message: pb.ScoreStreamRequest) -> pb.TextPiece:
    """Returns the piece that a later message is."""
    if message.HasField("spec"):
        raise invalid([("spec", "spec must come once, as the first message")])
    if not message.HasField("piece"):
        raise invalid([("piece", "every message after the spec must be a piece")])
    return message.piece


def _embed(
    model: Model, request: pb.EmbedRequest, policy: UnknownPolicy | None, reply: pb.EmbedResponse
) -> Iterator[None]:
    """Adds the vectors of all texts to the reply, in short steps."""
    embedder = Embedder(model, policy)
    for index, text in enumerate(request.texts):
        try:
            for made in embedder.embedding(text):
                if made is not None:
                    reply.embeddings.append(records.embedding(made, request.all_layers))
                yield
        except ModelError as error:
            raise from_model(error, f"texts[{index}]") from error


_TOKENS = 64
"""Tokens written to a reply in one step."""


class _Texts:
    """Scores the texts of one request, into its reply."""

    def __init__(
        self,
        model: Model,
        request: pb.ScoreRequest,
        asked: Scoring,
        reply: pb.ScoreResponse,
        room: int,
        key: bytes,
    ) -> None:
        self._reply = reply
        self._model = model
        self._request = request
        self._asked = asked
        self._room = room
        self._key = key

    def steps(self) -> Iterator[None]:
        """Scores all texts, in short steps.

        Raises:
            StatusError: The state, the context or a text cannot be used, or the reply gets too
                large.
        """
        asked, request = self._asked, self._request
        state = given_state(self._model, request.state, "state", self._key)
        field = "context"
        try:
            scorer = TextScorer(self._model, asked.policy, asked.details, state)
            yield from scorer.read_context(request.context)  # once: it may be long, and texts many
            for index, text in enumerate(request.texts):
                field = f"texts[{index}]"
                tokens = yield from scorer.encode(text)
                self._check_room(tokens.size)
                for scored in scorer.score(tokens):
                    if scored is not None:
                        yield from self._add(scored)
                    yield
        except ModelError as error:
            raise from_model(error, field) from error

    def _check_room(self, tokens: int) -> None:
        """Refuses a text whose tokens cannot fit, before their details take memory."""
        if self._asked.tokens and tokens * self._asked.token_bytes > self._room:
            raise self._too_large()

    def _add(self, scored: TextScore) -> Iterator[None]:
        """Adds a score to the reply, in short steps."""
        message = self._reply.scores.add()
        message.MergeFrom(records.summary(scored))
        if self._request.return_states and scored.state is not None:
            message.state = self._model.state_bytes(scored.state, self._key)
        tokens = scored.each_token() if self._asked.tokens else iter(())
        grown = 0
        while some := tuple(islice(tokens, _TOKENS)):
            grown += records.add_tokens(message, some)
            if grown > self._room:
                raise self._too_large()
            yield
        size = message.ByteSize() + 6  # with room for its tag and length
        if size > self._room:
            raise self._too_large()
        self._room -= size

    def _too_large(self) -> Exception:
        text = _TOO_LARGE + "ask for fewer texts at once"
        if not self._asked.tokens:
            return invalid([("texts", text)])
        names = ("log_probabilities", "ranks", "top_log_probabilities")
        field = next(name for name in names if getattr(self._request, name))
        return invalid([(field, f"{text}, or leave out {field}")])
