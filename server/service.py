"""The servicer: each method reads a request, asks a room of the server, and writes the reply.

Errors are raised, not returned: `boundary.Boundary` turns them into statuses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from importlib.metadata import version

from treadle.model import compiled_for
from treadle.server import convert, records
from treadle.server.boundary import Context
from treadle.server.config import ServerConfig
from treadle.server.inference import InferenceRoom
from treadle.server.jobs import Job, JobRoom
from treadle.server.loaded import LoadedModels
from treadle.server.store import Store, StoredModel
from treadle.server.upload import Limits, Upload
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

SERVICE = "treadle.v1.SequenceService"


class SequenceService(sequence_pb2_grpc.SequenceServiceServicer):
    """The methods of treadle.v1.SequenceService; the contract describes each.

    Args:
        config: The server's settings.
        training_bytes: The most memory that a training run may take; None: whatever there is.
        store: Models on disk.
        models: Models in memory.
        jobs: Training.
        inference: Generation and scoring.
    """

    def __init__(
        self,
        config: ServerConfig,
        training_bytes: int | None,
        store: Store,
        models: LoadedModels,
        jobs: JobRoom,
        inference: InferenceRoom,
    ) -> None:
        self._config = config
        self._training_bytes = training_bytes
        self._store = store
        self._models = models
        self._jobs = jobs
        self._inference = inference
        self._began = time.monotonic()

    async def Train(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.TrainRequest], context: Context
    ) -> AsyncIterator[pb.TrainResponse]:
        """Takes the spec, then a place in the queue, then the corpus; follows the job."""
        limits = Limits(self._config.max_corpus_bytes, self._config.upload_idle_s)
        upload = Upload(request_iterator, limits, self._jobs.closing)
        name, config = convert.training_order(await upload.spec(), self._training_bytes)
        await asyncio.to_thread(self._store.check_free, name)
        with self._jobs.admit() as place:
            corpus = await asyncio.to_thread(self._store.new_file)
            try:
                await upload.save(corpus)
                job = Job(name, config, corpus)
                self._jobs.start(place, job)
            finally:
                if not place.taken:
                    await asyncio.to_thread(self._store.discard, corpus)
        async for event in job.watch():
            yield event

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams text as it is made."""
        async for reply in self._inference.generate(request):
            yield reply

    async def Score(  # noqa: N802
        self, request: pb.ScoreRequest, context: Context
    ) -> pb.ScoreResponse:
        """Scores texts."""
        return await self._inference.score(request)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Lists one page of models."""
        size, after = convert.page(request)
        return await asyncio.to_thread(self._list, size, after)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        """Describes one version of a model."""
        convert.check_name(request.model)
        return await asyncio.to_thread(self._get, request.model, request.version)

    async def DeleteModel(  # noqa: N802
        self, request: pb.DeleteModelRequest, context: Context
    ) -> pb.DeleteModelResponse:
        """Deletes versions of a model."""
        convert.check_name(request.model)
        gone = await asyncio.to_thread(self._store.delete, request.model, request.version)
        self._models.forget(request.model, gone)
        return pb.DeleteModelResponse(versions=gone)

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Describes the server."""
        return pb.GetServerInfoResponse(
            version=version("treadle"),
            cpu_target=compiled_for(),
            threads=self._config.threads,
            uptime_s=time.monotonic() - self._began,
            training_slots=self._config.training_slots,
            training_running=self._jobs.running,
            training_queued=self._jobs.queued,
            training_queue_limit=self._config.training_queue_limit,
            inference_limit=self._config.inference_limit,
            inference_running=self._inference.running,
            max_new_tokens_limit=self._config.max_new_tokens_limit,
            max_corpus_bytes=self._config.max_corpus_bytes,
            max_message_bytes=self._config.max_message_bytes,
        )

    def _list(self, size: int, after: str) -> pb.ListModelsResponse:
        stored, following = self._store.page(size, after)
        models = [self._describe(model) for model in stored]
        return pb.ListModelsResponse(models=models, next_page_token=following)

    def _get(self, name: str, number: int) -> pb.GetModelResponse:
        stored = self._store.find(name, number)
        return pb.GetModelResponse(
            model=self._describe(stored), versions=self._store.versions(name)
        )

    def _describe(self, stored: StoredModel) -> pb.Model:
        return records.model(stored, self._store.describe(stored))
