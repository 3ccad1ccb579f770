"""`LearnHandler` answers the calls that learn from a stream, each with its own copy of a model."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import grpc

from treadle.model import Model
from treadle.model.online.memory_estimate import learner_bytes
from treadle.model.warmup.groups import KernelGroup
from treadle.server.access.audit.audited_call import audit_change, audit_note, audit_refusal
from treadle.server.access.model_rights import check_write
from treadle.server.access.quota_book import CallerUse
from treadle.server.errors import StatusError
from treadle.server.inference.admission import InferenceAdmission
from treadle.server.inference.call_task import CallTask
from treadle.server.inference.learn_stream import LearnStream
from treadle.server.inference.model_resolver import ModelResolver
from treadle.server.inference.open_streams import PendingStreams
from treadle.server.inference.scheduler import Scheduler
from treadle.server.messages import learn_request, responses
from treadle.server.messages.learn_request import Publication
from treadle.server.resources import thread_pools
from treadle.server.resources.call_deadline import work_within
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.storage.model_version import MODEL_FILE, StoredModel
from treadle.server.storage.models import CLAIMS, ModelStore, always_deleted
from treadle.server.telemetry import metrics
from treadle.v1 import sequence_pb2 as pb

logger = logging.getLogger(__name__)

_LEARNED = metrics.SCORED_TOKENS.labels("LearnStream")

_PATIENCE_S = 1.0
"""Seconds that a stream may wait for its memory."""


class LearnHandler:
    """Answers the LearnStream calls of a server.

    Args:
        resolver: Finds the models.
        model_store: Stores models that are published.
        admission: Limits the streams.
        pending_streams: Waits for their specs.
        scheduler: Gives the turns.
        budget: Holds the memory of the calls.
        max_message_bytes: The largest reply.
        max_call_s: Seconds that a request of a stream may take.
    """

    def __init__(
        self,
        resolver: ModelResolver,
        model_store: ModelStore,
        admission: InferenceAdmission,
        pending_streams: PendingStreams,
        scheduler: Scheduler,
        budget: MemoryBudget,
        *,
        max_message_bytes: int,
        max_call_s: float,
    ) -> None:
        self._resolver = resolver
        self._model_store = model_store
        self._admission = admission
        self._pending_streams = pending_streams
        self._scheduler = scheduler
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._max_call_s = max_call_s

    async def learn_stream(
        self, requests: AsyncIterator[pb.LearnStreamRequest]
    ) -> AsyncIterator[pb.LearnStreamResponse]:
        """Yields the reply to each request of a stream.

        Between two requests a stream counts as open and keeps its copy of the model, but occupies
        no thread.

        Raises:
            StatusError: The request is refused or fails; this ends the call.
        """
        spec = learn_request.first_message(await self._pending_streams.first(requests))
        asked = learn_request.learning(spec)
        await self._resolver.require(KernelGroup.LEARNING)
        use = self._admission.quotas.current()
        meter = use.meter()
        tokens = 0
        with use.admit_sessions():
            async with self._admission.learning_streams.admit() as open_stream:
                source = await self._resolver.stored(spec.model, spec.version)
                units = asked.on_error != pb.ON_ERROR_UNSPECIFIED
                size = learner_bytes(source.model.parameters.shape, asked.config, units)
                with (
                    self._budget.reserve(0, "learning streams") as held,
                    self._budget.reserve(0, "replies to streams") as held_reply,
                ):
                    # A silent stream may be closed for this one.
                    await held.resize_patiently(size, _PATIENCE_S)
                    stream = LearnStream(
                        source.model, asked, self._max_message_bytes, held, held_reply
                    )
                    task = CallTask(self._scheduler, use.name)
                    await task.run_steps(stream.begin())
                    while await self._answer(
                        await open_stream.next(requests), stream, task, asked.name
                    ):
                        tokens += stream.reply.piece.token_count
                        _LEARNED.inc(stream.reply.piece.token_count)
                        await meter.pay("pieces", tokens)
                        yield stream.reply
                        stream.sent()

    async def _answer(
        self,
        message: pb.LearnStreamRequest | None,
        stream: LearnStream,
        task: CallTask,
        default_name: str,
    ) -> bool:
        """Answers a request; returns whether there was one.

        It is a function of its own, so that a silent stream does not keep its last request.

        Returns:
            Whether there was a request.
        """
        if message is None:
            return False
        if learn_request.check_later(message) == "publish":
            await self._answer_publish(stream, message.publish, default_name)
        else:
            async with work_within(self._max_call_s, "send smaller pieces"):
                steps = stream.answer(message)
                del message
                await task.run_steps(steps)
        return True

    async def _answer_publish(
        self, stream: LearnStream, request: pb.Publish, default_name: str
    ) -> None:
        """Stores the model of a stream, or only checks its names, and makes that the reply."""
        try:
            names = learn_request.publication(request, default_name)
            audit_note(model=names.name, version=0, alias=names.alias)
            check_write(names.name)
            if request.validate_only:
                await thread_pools.STORE.run(self._model_store.check_new, names.name, names.alias)
                stream.published(pb.Model(name=names.name))
                return
            stream.published(await self._publish(stream, names))
        except Exception as error:
            stream.not_published(error)
            audit_refusal(error)  # the call continues

    async def _publish(self, stream: LearnStream, names: Publication) -> pb.Model:
        """Stores the model of a stream as it is now, as a whole or not at all."""
        # If the call is cancelled meanwhile the thread runs to its end; the model learns no more.
        use = self._admission.quotas.current()
        return await thread_pools.STORE.run(self._store_model, stream, names, use)

    def _store_model(self, stream: LearnStream, names: Publication, use: CallerUse) -> pb.Model:
        """Stores a model as a new version, and gives it its alias.

        If that version is deleted before it can be described, the model is stored as another one.

        Returns:
            The stored model.
        """
        self._model_store.check_new(names.name, names.alias)
        for left in reversed(range(CLAIMS)):
            try:
                return self._store_once(stream, names, use)
            except FileNotFoundError as error:
                if not left:
                    raise always_deleted(names.name) from error
            except StatusError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                if not left:
                    raise always_deleted(names.name) from error
        raise AssertionError

    def _store_once(self, stream: LearnStream, names: Publication, use: CallerUse) -> pb.Model:
        stored = self._claim(names.name, stream.learner.current(), use)
        # Here and not in the task of the call, which may be cancelled meanwhile.
        audit_change(model=stored.name, version=stored.version, alias=names.alias)
        if names.alias:
            self._model_store.set_alias(names.name, names.alias, stored.version)
        aliases = self._model_store.aliases.of_version(stored.name, stored.version)
        model = responses.model(stored, self._model_store.describe(stored), aliases)
        logger.info(
            "a learning stream stored %s version %d after %d updates",
            stored.name,
            stored.version,
            stream.learner.updates,
        )
        return model

    def _claim(self, name: str, model: Model, use: CallerUse) -> StoredModel:
        draft = self._model_store.new_draft()
        try:
            model.save(draft / MODEL_FILE, self._model_store.space.require)
            if use.quotas.model_bytes is not None:
                size = (draft / MODEL_FILE).stat().st_size
                use.check_model_bytes(self._model_store.bytes_of(use.name), size)
            return self._model_store.claim(name, draft, 0, use.name)
        finally:
            self._model_store.discard(draft)
