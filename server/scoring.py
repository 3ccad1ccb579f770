"""Scoring and embedding: the calls that read texts and draw nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator

import grpc

from treadle.model import Model
from treadle.model.config import UnknownPolicy
from treadle.model.errors import ModelError
from treadle.model.scorer import TextScore
from treadle.server import convert, records
from treadle.server.admission import Admission
from treadle.server.errors import StatusError, from_model, invalid
from treadle.server.scheduler import Scheduler
from treadle.server.sources import Sources
from treadle.v1 import sequence_pb2 as pb

_MIN_TOKEN_BYTES = 7
"""A Token in a reply takes no less: its tag, its length and its log-probability."""


class ScoringRoom:
    """Every Score, ScoreStream and Embed call of one server.

    Args:
        sources: Finds the models.
        admission: Counts the calls.
        scheduler: Gives the turns.
        max_message_bytes: The largest reply.
        state_key: Authenticates states; empty: they are not.
    """

    def __init__(
        self,
        sources: Sources,
        admission: Admission,
        scheduler: Scheduler,
        *,
        max_message_bytes: int,
        state_key: bytes,
    ) -> None:
        self._sources = sources
        self._admission = admission
        self._scheduler = scheduler
        self._max_message_bytes = max_message_bytes
        self._state_key = state_key

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Returns the scores of a request's texts.

        Raises:
            StatusError: Every way in which that can fail.
        """
        policy = convert.scoring_policy(request)
        with self._admission.admit():
            source = await self._sources.find(request)
            gone = threading.Event()
            scoring = _Scoring(source.model, request, policy, gone)
            reply = pb.ScoreResponse(version=source.version, job_step=source.job_step)
            scoring.room = self._max_message_bytes - reply.ByteSize()
            caller = self._scheduler.caller()
            try:
                while not await caller.run(scoring.go_on):
                    pass
            finally:
                gone.set()
            reply.scores.extend(scoring.scores)
            return reply

    async def score_stream(
        self, requests: AsyncIterator[pb.ScoreStreamRequest]
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Yields the score of each piece of a stream, and then the result."""
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "not yet")
        yield

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Returns the vectors of a request's texts."""
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "not yet")


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
