"""Generating and scoring: models kept loaded, and their loops run in threads.

Kernels let go of Python's lock, so threads are enough, and the event loop stays free. A call
takes a thread for one piece of work at a time, about what one message needs, so that many
calls take turns on few threads and a cancelled one is gone within a piece.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from treadle.model import Model
from treadle.model.config import SamplingConfig, UnknownPolicy
from treadle.model.decoder import Piece
from treadle.model.errors import ModelError
from treadle.model.scorer import TextScore
from treadle.server import convert, records
from treadle.server.errors import exhausted, from_model, invalid
from treadle.server.loaded import LoadedModels, Source
from treadle.v1 import sequence_pb2 as pb

_MESSAGE_S = 0.02
"""What was made in this time goes out as one message: a message costs the same at any size."""

_TURN_S = 0.005
"""The same where calls outnumber threads: a new one waits for as many turns as there are calls."""

_RETRY_S = 1.0

_MIN_TOKEN_BYTES = 7
"""A Token in a reply takes no less: its tag, its length and its log-probability."""

Result = TypeVar("Result")


class InferenceRoom:
    """Every Generate and Score call of one server.

    Args:
        models: Gives the models.
        check_job: Raises NOT_FOUND where there is no job with an id.
        limit: Calls that may run at once.
        threads: Threads that generate, and as many that score: long scorings leave
            generations their share.
        max_new_tokens_limit: The most tokens of one generation.
        max_message_bytes: The largest reply.
    """

    def __init__(
        self,
        models: LoadedModels,
        check_job: Callable[[str], Awaitable[object]],
        *,
        limit: int,
        threads: int,
        max_new_tokens_limit: int,
        max_message_bytes: int,
    ) -> None:
        self._models = models
        self._check_job = check_job
        self._limit = limit
        self._threads = threads
        self._max_new_tokens_limit = max_new_tokens_limit
        self._max_message_bytes = max_message_bytes
        self._generating = ThreadPoolExecutor(threads, "generate")
        self._scoring = ThreadPoolExecutor(threads, "score")
        self.running = 0
        """Calls admitted and not over yet."""

    def close(self) -> None:
        """Lets go of the threads; what they are at is finished but goes nowhere."""
        self._generating.shutdown(wait=False, cancel_futures=True)
        self._scoring.shutdown(wait=False, cancel_futures=True)

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the replies to a request, the first as soon as there is a token.

        Raises:
            StatusError: Every way in which that can fail.
        """
        sampling = convert.sampling(request, self._max_new_tokens_limit)
        with self._admitted():
            source = await self._source(request)
            gone = threading.Event()
            maker = _Maker(source.model, request.prompt, sampling, gone)
            try:
                while True:
                    pieces = await _run(self._generating, partial(maker.make, self._turn_s()))
                    reply, last = records.generated(pieces, source, request.log_probabilities)
                    if last or reply.text or reply.tokens:
                        yield reply
                    if last:
                        return
            except ModelError as error:
                raise from_model(error, field="prompt") from error
            finally:
                gone.set()

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Returns the scores of a request's texts.

        Raises:
            StatusError: Every way in which that can fail.
        """
        policy = convert.scoring_policy(request)
        with self._admitted():
            source = await self._source(request)
            gone = threading.Event()
            scoring = _Scoring(source.model, request, policy, gone)
            reply = pb.ScoreResponse(version=source.version, job_step=source.job_step)
            scoring.room = self._max_message_bytes - reply.ByteSize()
            try:
                while not await _run(self._scoring, partial(scoring.go_on, self._turn_s())):
                    pass
            finally:
                gone.set()
            reply.scores.extend(scoring.scores)
            return reply

    async def _source(self, request: pb.GenerateRequest | pb.ScoreRequest) -> Source:
        """Returns the model that a request names, or the weights of a job."""
        if not request.job:
            return await self._models.get(request.model, request.version)
        await self._check_job(request.job)
        best = request.job_weights == pb.JOB_WEIGHTS_BEST
        return await self._models.get_job(request.job, best)

    def _turn_s(self) -> float:
        return _MESSAGE_S if self.running <= self._threads else _TURN_S

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.running >= self._limit:
            message = f"{self.running} generations and scorings are running; no more fit"
            raise exhausted(message, _RETRY_S)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class _Maker:
    """Makes the pieces of one generation, a message's worth at a time, in any thread."""

    def __init__(
        self, model: Model, prompt: str, sampling: SamplingConfig, gone: threading.Event
    ) -> None:
        self._begin = partial(model.stream, prompt, sampling)
        self._stream: Iterator[Piece] | None = None
        self._drawn = False
        self._gone = gone

    def make(self, turn_s: float) -> list[Piece]:
        """Returns the next pieces; after the one with the result there are no more.

        While a long prompt is read, pieces are empty.

        Args:
            turn_s: Seconds to go on making; the first token is returned at once.
        """
        until = time.monotonic() + turn_s
        if self._stream is None:
            self._stream = self._begin()
        pieces = []
        for piece in self._stream:
            pieces.append(piece)
            first = bool(piece.tokens) and not self._drawn
            self._drawn = self._drawn or first
            if first or piece.result or time.monotonic() >= until or self._gone.is_set():
                break
        return pieces


class _Scoring:
    """Scores the texts of one request, a turn at a time, in any thread."""

    def __init__(
        self,
        model: Model,
        request: pb.ScoreRequest,
        policy: UnknownPolicy | None,
        gone: threading.Event,
    ) -> None:
        self._model = model
        self._request = request
        self._policy = policy
        self._gone = gone
        self._steps = self._work()
        self.scores: list[pb.TextScore] = []
        self.room = 0
        """What the reply may still grow by, in bytes."""

    def go_on(self, turn_s: float) -> bool:
        """Scores for a turn; returns True once every text is scored.

        Raises:
            StatusError: A text or the context cannot be scored, or the reply gets too large.
        """
        until = time.monotonic() + turn_s
        while not self._gone.is_set():
            if next(self._steps, self) is self:
                return True
            if time.monotonic() >= until:
                break
        return False

    def _work(self) -> Iterator[None]:
        """Scores all texts, in short steps."""
        for index, text in enumerate(self._request.texts):
            try:
                for scored in self._model.scoring(text, self._request.context, self._policy):
                    if scored is not None:
                        self._add(scored)
                    yield
            except ModelError as error:
                culprit = _culprit(self._model, self._request, index, self._policy)
                raise from_model(error, culprit) from error

    def _add(self, scored: TextScore) -> None:
        detailed = self._request.log_probabilities
        least = scored.token_count * _MIN_TOKEN_BYTES if detailed else 0
        score = records.text_score(scored, detailed and least <= self.room)
        size = _framed(score)
        if max(least, size) > self.room:
            text = "the reply would be larger than a message may be; ask for fewer texts at once"
            if not detailed:
                raise invalid([("texts", text)])
            raise invalid([("log_probabilities", text + ", or leave out log_probabilities")])
        self.room -= size
        self.scores.append(score)


def _culprit(
    model: Model, request: pb.ScoreRequest, index: int, policy: UnknownPolicy | None
) -> str:
    """Returns which field a text could not be scored for."""
    try:
        model.tokenizer.encode(request.context, policy)
    except ModelError:
        return "context"
    return f"texts[{index}]"


def _framed(score: pb.TextScore) -> int:
    """Returns the bytes that a score adds to its reply, with room for its tag and length."""
    return score.ByteSize() + 6


async def _run(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
