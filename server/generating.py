"""Generation: the calls that draw."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

from treadle.model import Model
from treadle.model.config import SamplingConfig
from treadle.model.decoder import Piece
from treadle.model.errors import ModelError
from treadle.server import convert, records
from treadle.server.admission import Admission
from treadle.server.errors import from_model
from treadle.server.scheduler import Scheduler
from treadle.server.sources import Sources
from treadle.v1 import sequence_pb2 as pb


class GeneratingRoom:
    """Every Generate call of one server.

    Args:
        sources: Finds the models.
        admission: Counts the calls.
        sessions: Counts the texts.
        scheduler: Gives the turns.
        max_new_tokens_limit: The most tokens of one generation.
        state_key: Authenticates states; empty: they are not.
    """

    def __init__(
        self,
        sources: Sources,
        admission: Admission,
        sessions: Admission,
        scheduler: Scheduler,
        *,
        max_new_tokens_limit: int,
        state_key: bytes,
    ) -> None:
        self._sources = sources
        self._admission = admission
        self._sessions = sessions
        self._scheduler = scheduler
        self._max_new_tokens_limit = max_new_tokens_limit
        self._state_key = state_key

    async def generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        """Yields the replies to a request, the first as soon as there is a token.

        Raises:
            StatusError: Every way in which that can fail.
        """
        sampling = convert.sampling(request, self._max_new_tokens_limit)
        with self._admission.admit():
            source = await self._sources.find(request)
            gone = threading.Event()
            maker = _Maker(source.model, request.prompt, sampling, gone)
            caller = self._scheduler.caller()
            try:
                while True:
                    pieces = await caller.run(maker.make)
                    reply, last = records.generated(pieces, source, request.log_probabilities)
                    if last or reply.text or reply.tokens:
                        yield reply
                    if last:
                        return
            except ModelError as error:
                raise from_model(error, field="prompt") from error
            finally:
                gone.set()


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
