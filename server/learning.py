"""Learning from a stream: a copy of a model for every call."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from treadle.server.admission import Admission
from treadle.server.errors import StatusError
from treadle.server.scheduler import Scheduler
from treadle.server.sources import Sources
from treadle.server.store import Store
from treadle.v1 import sequence_pb2 as pb


class LearningRoom:
    """Every LearnStream call of one server.

    Args:
        sources: Finds the models.
        store: Where models are published.
        admission: Counts the calls.
        scheduler: Gives the turns.
        max_message_bytes: The largest reply.
    """

    def __init__(
        self,
        sources: Sources,
        store: Store,
        admission: Admission,
        scheduler: Scheduler,
        *,
        max_message_bytes: int,
    ) -> None:
        self._sources = sources
        self._store = store
        self._admission = admission
        self._scheduler = scheduler
        self._max_message_bytes = max_message_bytes

    async def learn_stream(
        self, requests: AsyncIterator[pb.LearnStreamRequest]
    ) -> AsyncIterator[pb.LearnStreamResponse]:
        """Yields the answer to each request of a stream."""
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "not yet")
        yield
