"""`ResumableGeneration` is a Generate call that continues where its connection breaks.

The same request gives the same bits. So the call is made again, with the version, the seed and the
precision of the first one, on whatever server answers: what the caller has already is compared and
left out, and the rest follows. A long text continues from the last resume point that the server has
sent instead of from its beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from treadle.client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    ServerError,
)
from treadle.client.options import without_alias
from treadle.client.replicas.retry import Retry
from treadle.client.streaming import Call
from treadle.v1.sequence_pb2 import (
    STOP_REASON_TIME_LIMIT,
    GenerateRequest,
    GenerateResponse,
    GenerationStart,
    ResumePoint,
    Token,
)

RESUME_INTERVAL = 4096
"""Tokens between two resume points. A shorter text is generated again: that takes no longer than a
second or so, and a state takes some kilobytes."""

MOST_POINT_BYTES = 3 << 20
"""The most bytes of a repeated call, its resume points included: servers take 4 MiB unless they are
set up otherwise. A text whose point does not fit begins again."""

LEAST_TIME_S = 0.001
"""The least `max_time_s` that is asked for."""

Generate: TypeAlias = Callable[[GenerateRequest, float | None], Call[GenerateResponse]]
"""Calls Generate with a request and a timeout in seconds."""


@dataclass
class _Text:
    """What has arrived of one text since its last resume point."""

    point: ResumePoint | None = None
    """Where to continue from; None: from the beginning."""
    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    repeated: str = ""
    """The part of the text that comes again, and is left out."""
    repeated_tokens: list[Token] = field(default_factory=list)
    ended: bool = False

    @property
    def repeats(self) -> bool:
        """Whether something is still to come again."""
        return bool(self.repeated or self.repeated_tokens)

    def end(self) -> None:
        """Notes that the text has ended: nothing of it is needed again."""
        self.ended = True
        self.point = None
        self.text = []
        self.tokens = []

    def restart(self) -> None:
        """Notes that the text begins again, at its last resume point."""
        self.repeated = "".join(self.text)
        self.repeated_tokens = list(self.tokens)

    def take(self, response: GenerateResponse, most_bytes: int) -> bool:
        """Removes from a response what came before, and keeps the rest.

        Args:
            response: The response.
            most_bytes: The most bytes that its resume point may have; a larger one is not used.

        Returns:
            Whether what comes again is the same as before.
        """
        known = self.repeated[: len(response.text)]
        count = len(response.tokens)
        known_tokens = self.repeated_tokens[:count]
        same = response.text.startswith(known)
        same = same and list(response.tokens[: len(known_tokens)]) == known_tokens
        self.repeated = self.repeated[len(known) :]
        self.repeated_tokens = self.repeated_tokens[len(known_tokens) :]
        response.text = response.text[len(known) :]
        del response.tokens[: len(known_tokens)]
        self.text.append(response.text)
        self.tokens += response.tokens
        if response.HasField("resume_point") and response.resume_point.ByteSize() <= most_bytes:
            self.point = response.resume_point
            self.text = [self.repeated]
            self.tokens = list(self.repeated_tokens)
        return same


class ResumableGeneration:
    """A Generate call whose texts continue, to the byte, where the connection breaks.

    Args:
        generate: Calls Generate.
        request: The request.
        retry: Waits where the connection breaks.
    """

    def __init__(self, generate: Generate, request: GenerateRequest, retry: Retry) -> None:
        self._generate = generate
        self._request = request
        if request.max_new_tokens > RESUME_INTERVAL:
            request.resume_interval = RESUME_INTERVAL
        self._retry = retry
        self._ends_s: float | None = None
        if request.HasField("max_time_s"):
            self._ends_s = time.monotonic() + request.max_time_s
        self._texts = {index: _Text() for index in range(max(request.n, 1))}
        self._start: GenerationStart | None = None
        self._has_arrived = False
        self._cancelled = False
        self._call = generate(request, retry.left_s)

    def cancel(self) -> object:
        """Ends the call."""
        self._cancelled = True
        self._retry.stop()
        return self._call.cancel()

    def __next__(self) -> GenerateResponse:
        """Waits for the next response that has something new.

        Returns:
            The response, without what the caller has already.

        Raises:
            StopIteration: All texts have ended, or the call was cancelled.
            ServerError: The call failed, or cannot continue exactly.
        """
        while True:
            try:
                response = next(self._call)
            except StopIteration:
                # A server that shuts down may end the stream without a status. That of an older
                # one, which does not say how it chose, ends when its texts do.
                is_older = self._has_arrived and self._start is None
                if is_older or not self._unfinished():
                    raise
                text = "the server ended the stream before the text had ended"
                self._reconnect(InternalError(text, broken=True))
                continue
            except ServerError as error:
                if error.broken and self._start is not None and not self._unfinished():
                    raise StopIteration from None  # only the status of the call was lost
                self._reconnect(error)
                continue
            self._has_arrived = True
            if self._is_new(response):
                self._retry.succeeded()
                return response

    def _unfinished(self) -> list[int]:
        """Returns the numbers of the texts that have not ended."""
        return [index for index, text in self._texts.items() if not text.ended]

    def _point_bytes(self, text: _Text) -> int:
        """Returns the bytes that the resume point of a text may have next to those of others."""
        others = (each.point for each in self._texts.values() if each is not text)
        taken = sum(point.ByteSize() for point in others if point is not None)
        return MOST_POINT_BYTES - self._request.ByteSize() - taken

    def _is_new(self, response: GenerateResponse) -> bool:
        """Removes from a response what came before; returns whether anything is left."""
        if response.HasField("start"):
            self._check_start(response.start)
        text = self._texts.setdefault(response.index, _Text())
        if text.ended:
            return False
        is_over = response.HasField("result")
        repeats = text.repeats
        most_bytes = self._point_bytes(text) if response.HasField("resume_point") else 0
        same = text.take(response, most_bytes)
        if is_over and text.repeats and response.result.stop_reason == STOP_REASON_TIME_LIMIT:
            raise DeadlineExceededError(
                "the connection broke, and max_time_s ended while the text was generated again",
                code="DEADLINE_EXCEEDED",
            )
        if not same or (is_over and text.repeats):
            raise InternalError(
                "the connection broke, and the text that another server generates differs from "
                "what has arrived: do both run the same version of Treadle?",
                code="DATA_LOSS",
            )
        if is_over:
            text.end()
        is_internal = response.HasField("start") or response.HasField("resume_point") or repeats
        response.ClearField("start")
        response.ClearField("resume_point")
        return not is_internal or bool(response.text or response.tokens or is_over)

    def _check_start(self, start: GenerationStart) -> None:
        """Keeps what the server says of the first call, or compares that of a later one.

        Raises:
            FailedPreconditionError: The weights are others now.
        """
        if self._start is None:
            self._start = GenerationStart()
            self._start.CopyFrom(start)
            self._pin(start)
        elif start.model_hash != self._start.model_hash:
            weights = f"the weights of version {start.version} of the model are others there"
            if self._request.job:
                weights = "the weights of the job have changed meanwhile"
            raise FailedPreconditionError(
                f"the connection broke, and the text cannot continue exactly: {weights}",
                code="FAILED_PRECONDITION",
            )

    def _pin(self, start: GenerationStart) -> None:
        """Fixes in the request what a server may choose otherwise."""
        if not self._request.job:
            self._request.model = without_alias(self._request.model)
            self._request.version = start.version
        if start.HasField("seed"):
            self._request.seed = start.seed
        self._request.inference_precision = start.inference_precision

    def _reconnect(self, failure: ServerError) -> None:
        """Waits for the next attempt, and makes the call again.

        Raises:
            StopIteration: The call was cancelled.
            ServerError: The failure, if the connection did not break, if the text cannot continue,
                or if the time is over.
        """
        if self._cancelled or not self._may_repeat(failure):
            raise failure
        if self._retry.is_retrying and not failure.broken and failure.retry_delay_s is None:
            raise failure.placed("the connection broke, and the text cannot continue")
        if not self._retry.wait(failure):
            raise StopIteration
        for text in self._texts.values():
            text.restart()
        self._call = self._generate(self._rest(), self._retry.left_s)
        if self._cancelled:  # meanwhile, by another thread
            self._call.cancel()

    def _may_repeat(self, failure: ServerError) -> bool:
        """Returns whether the call may be made again.

        Nothing waits for a server that was not there in the beginning, or refuses the call. Once
        a call was made whose connection broke, all of the time is for its repetition.
        """
        if self._start is not None:
            return True
        refused = failure.unsent or failure.retry_delay_s is not None
        return not self._has_arrived and (self._retry.is_retrying or not refused)

    def _rest(self) -> GenerateRequest:
        """Returns the request for what is missing."""
        request = GenerateRequest()
        request.CopyFrom(self._request)
        if self._ends_s is not None:
            request.max_time_s = max(LEAST_TIME_S, self._ends_s - time.monotonic())
        unfinished = self._unfinished()
        points = [self._texts[index].point for index in unfinished]
        is_whole = len(unfinished) == len(self._texts) and not any(points)
        if request.best_of or is_whole:
            return request
        for index, point in zip(unfinished, points, strict=True):
            request.resume.append(point or ResumePoint(index=index))
        return request
