"""Generating and scoring: models kept loaded, and their loops run in threads.

Kernels let go of Python's lock, so threads are enough, and the event loop stays free. A call
takes a thread for one piece of work at a time, about what one message needs, so that many
calls take turns on few threads and a cancelled one is gone within a piece.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from treadle.model import Model
from treadle.model.config import SamplingConfig, UnknownPolicy
from treadle.model.decoder import Piece
from treadle.model.errors import ModelError
from treadle.server import convert, records
from treadle.server.errors import exhausted, from_model, invalid
from treadle.server.loaded import LoadedModels
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
        limit: Calls that may run at once.
        threads: Threads that generate, and as many that score: long scorings leave
            generations their share.
        max_new_tokens_limit: The most tokens of one generation.
        max_message_bytes: The largest reply.
    """

    def __init__(
        self,
        models: LoadedModels,
        *,
        limit: int,
        threads: int,
        max_new_tokens_limit: int,
        max_message_bytes: int,
    ) -> None:
        self._models = models
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
            version, model = await self._models.get(request.model, request.version)
            gone = threading.Event()
            maker = _Maker(model, request.prompt, sampling, gone)
            try:
                while True:
                    turn = _MESSAGE_S if self.running <= self._threads else _TURN_S
                    pieces = await _run(self._generating, partial(maker.make, turn))
                    reply, last = records.generated(pieces, version, request.log_probabilities)
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
            version, model = await self._models.get(request.model, request.version)
            reply = pb.ScoreResponse(version=version)
            size = reply.ByteSize()
            # One text at a time: a cancelled call is over with the text it is at.
            for index in range(len(request.texts)):
                room = self._max_message_bytes - size
                work = partial(_score, model, request, index, policy, room)
                score = await _run(self._scoring, work)
                reply.scores.append(score)
                size += _framed(score)
            return reply

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
        self._gone = gone

    def make(self, turn_s: float) -> list[Piece]:
        """Returns the next pieces; after the one with the result there are no more.

        Args:
            turn_s: Seconds to go on making; the first call returns with its first piece.
        """
        first = self._stream is None
        if self._stream is None:
            self._stream = self._begin()
        until = 0.0 if first else time.monotonic() + turn_s
        pieces = []
        for piece in self._stream:
            pieces.append(piece)
            if piece.result or time.monotonic() >= until or self._gone.is_set():
                break
        return pieces


def _score(
    model: Model, request: pb.ScoreRequest, index: int, policy: UnknownPolicy | None, room: int
) -> pb.TextScore:
    """Scores one text of a request; `room` is what the reply may still grow by, in bytes."""
    try:
        scored = model.score(request.texts[index], request.context, policy)
    except ModelError as error:
        raise from_model(error, _culprit(model, request, index, policy)) from error
    least = scored.token_count * _MIN_TOKEN_BYTES if request.log_probabilities else 0
    score = records.text_score(scored, request.log_probabilities and least <= room)
    if max(least, _framed(score)) > room:
        text = "the reply would be larger than a message may be; ask for fewer texts at once"
        if not request.log_probabilities:
            raise invalid([("texts", text)])
        raise invalid([("log_probabilities", text + ", or leave out log_probabilities")])
    return score


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
