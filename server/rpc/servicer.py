"""`SequenceService` is the gRPC servicer: each method hands a request to its handler.

Errors are raised, not returned: `Interceptor` turns them into statuses.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from treadle.model import InferencePrecision, compiled_for
from treadle.server.access.audit.audited_call import audit_note
from treadle.server.access.caller import ANONYMOUS, Caller, current_caller
from treadle.server.access.model_rights import check_read, check_write
from treadle.server.jobs.job import outlast
from treadle.server.messages import page_tokens, requests, responses
from treadle.server.messages.caller_info import caller_info
from treadle.server.messages.inference_precision import precision_number
from treadle.server.messages.page import Page
from treadle.server.names import check_model_and_alias, check_reference
from treadle.server.release import RELEASE
from treadle.server.resources import thread_pools
from treadle.server.storage.job_state import JobState
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from treadle.server.config import ServerConfig
    from treadle.server.inference.admission import ControlAdmission, InferenceAdmission
    from treadle.server.inference.generate import GenerateHandler
    from treadle.server.inference.learn import LearnHandler
    from treadle.server.inference.model_cache import ModelCache
    from treadle.server.inference.score import ScoreHandler
    from treadle.server.jobs.manager import JobManager
    from treadle.server.jobs.submissions.submission import Submission
    from treadle.server.resources.memory_budget import MemoryBudget
    from treadle.server.rpc.interceptor import Context
    from treadle.server.rpc.model_descriptions import ModelDescriptions
    from treadle.server.storage.models import ModelStore
    from treadle.server.storage.schema import JobRow
    from treadle.server.transfer.export_handler import ExportHandler
    from treadle.server.transfer.import_handler import ImportHandler
    from treadle.server.uploads.file_handler import FileHandler
    from treadle.server.warmup import Warmup

_JOBS = 100
"""Jobs of a list that are read from the database at once."""

_MOST_READ = 5_000
"""Jobs that are read for one page of a list by tags. They are compared with the stored specs, so
that a caller whose tags match few jobs gets short pages instead of a slow one."""

_USE_OF_ALL = (
    *("training_running", "training_queued", "inference_running", "sessions_running"),
    *("score_streams_running", "learning_running", "models_loaded", "models_loaded_bytes"),
    "memory_used_bytes",
)
"""The fields of GetServerInfo that show what all callers do, which is for admins to know."""

SERVICE = "treadle.v1.SequenceService"


class SequenceService(sequence_pb2_grpc.SequenceServiceServicer):
    """Implements treadle.v1.SequenceService; the contract describes each method.

    Args:
        config: The server's settings.
        model_store: Models on disk.
        models: Models in memory.
        submission: Validates, stores and queues training jobs.
        jobs: Training jobs.
        generating: Handles Generate.
        scoring: Handles Score, ScoreStream and Embed.
        learning: Handles LearnStream.
        exporting: Handles ExportModel.
        importing: Handles ImportModel.
        descriptions: Describes stored models.
        files: Handles the calls about files.
        admission: Counts calls, generated texts and streams.
        control_admission: Counts calls that list and watch.
        budget: Counts the bytes that are kept for callers.
        warmup: Says which kernels are ready.
    """

    def __init__(
        self,
        config: ServerConfig,
        model_store: ModelStore,
        models: ModelCache,
        submission: Submission,
        jobs: JobManager,
        generating: GenerateHandler,
        scoring: ScoreHandler,
        learning: LearnHandler,
        exporting: ExportHandler,
        importing: ImportHandler,
        descriptions: ModelDescriptions,
        files: FileHandler,
        admission: InferenceAdmission,
        control_admission: ControlAdmission,
        budget: MemoryBudget,
        warmup: Warmup,
    ) -> None:
        self._config = config
        self._model_store = model_store
        self._models = models
        self._submission = submission
        self._jobs = jobs
        self._generating = generating
        self._scoring = scoring
        self._learning = learning
        self._exporting = exporting
        self._importing = importing
        self._files = files
        self._admission = admission
        self._control_admission = control_admission
        self._budget = budget
        self._warmup = warmup
        self._descriptions = descriptions
        self._began = time.monotonic()

    async def Train(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.TrainRequest], context: Context
    ) -> AsyncIterator[pb.JobEvent]:
        """Accepts the spec, a place in the queue and the corpus; then follows the job."""
        with self._control_admission.submissions.admit():
            job = await self._submission.take(request_iterator)
            async for event in self._jobs.registry.watch(job):
                yield event

    async def WatchJob(  # noqa: N802
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """Streams the events of a job."""
        with self._control_admission.watchers.admit():
            async for event in self._jobs.registry.watch(request.job, request.after_sequence):
                yield pb.WatchJobResponse(event=event)

    async def GetJob(  # noqa: N802
        self, request: pb.GetJobRequest, context: Context
    ) -> pb.GetJobResponse:
        """Describes a job."""
        return pb.GetJobResponse(job=await self._job(request.job))

    async def ListJobs(  # noqa: N802
        self, request: pb.ListJobsRequest, context: Context
    ) -> pb.ListJobsResponse:
        """Lists one page of jobs."""
        size = requests.page_size(request)
        states = requests.job_states(request)
        tags = dict(request.tags)
        filters = (*states, f"model={request.model}", *map(str, sorted(tags.items())))
        place = page_tokens.read(request.page_token, "jobs", filters)
        after = (place[0], place[1]) if place else None
        page: Page[pb.Job] = Page(size, self._config.max_message_bytes)
        with self._control_admission.lists.admit():
            more = await self._fill(page, states, request.model, tags, after)
        token = page_tokens.make("jobs", filters, more) if more else ""
        return pb.ListJobsResponse(jobs=page.items, next_page_token=token)

    async def CancelJob(  # noqa: N802
        self, request: pb.CancelJobRequest, context: Context
    ) -> pb.CancelJobResponse:
        """Ends a job for good."""
        row = await self._jobs.decisions.cancel(request.job)
        return pb.CancelJobResponse(job=await self._job(row.id))

    async def PauseJob(  # noqa: N802
        self, request: pb.PauseJobRequest, context: Context
    ) -> pb.PauseJobResponse:
        """Pauses a job."""
        row = await self._jobs.decisions.pause(request.job)
        return pb.PauseJobResponse(job=await self._job(row.id))

    async def ResumeJob(  # noqa: N802
        self, request: pb.ResumeJobRequest, context: Context
    ) -> pb.ResumeJobResponse:
        """Puts a paused job back into the queue, if its caller may still write its model."""
        check_write((await self._jobs.registry.row(request.job)).model)
        row = await self._jobs.decisions.resume(request.job)
        return pb.ResumeJobResponse(job=await self._job(row.id))

    async def DeleteJob(  # noqa: N802
        self, request: pb.DeleteJobRequest, context: Context
    ) -> pb.DeleteJobResponse:
        """Deletes a job."""
        await self._jobs.decisions.delete(request.job)
        return pb.DeleteJobResponse()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams text while it is generated."""
        async for reply in self._generating.generate(request):
            yield reply

    async def Score(  # noqa: N802
        self, request: pb.ScoreRequest, context: Context
    ) -> pb.ScoreResponse:
        """Scores texts."""
        return await self._scoring.score(request)

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Scores a stream while it arrives."""
        async for reply in self._scoring.score_stream(request_iterator):
            yield reply

    async def LearnStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.LearnStreamRequest], context: Context
    ) -> AsyncIterator[pb.LearnStreamResponse]:
        """Scores a stream and learns from it."""
        async for reply in self._learning.learn_stream(request_iterator):
            yield reply

    async def Embed(  # noqa: N802
        self, request: pb.EmbedRequest, context: Context
    ) -> pb.EmbedResponse:
        """Returns the vectors of texts."""
        return await self._scoring.embed(request)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Lists one page of models."""
        place = page_tokens.read(request.page_token, "models", ())
        after = place[0] if place else ""
        size = requests.page_size(request)
        with self._control_admission.lists.admit():
            models, more = await thread_pools.LISTS.run(
                self._descriptions.page, size, after, current_caller().may_read
            )
        token = page_tokens.make("models", (), [more]) if more else ""
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse:
        """Describes one version of a model."""
        check_reference(request.model)
        check_read(request.model, request.version)
        return await thread_pools.LISTS.run(self._get, request.model, request.version)

    async def DeleteModel(  # noqa: N802
        self, request: pb.DeleteModelRequest, context: Context
    ) -> pb.DeleteModelResponse:
        """Deletes versions of a model."""
        version = requests.deletion(request)
        check_write(request.model)
        delete = self._model_store.delete
        # To its end, so that the audit log says of an ended call whether it has changed something.
        gone = await outlast(
            thread_pools.STORE.run(delete, request.model, version, force=request.force)
        )
        self._models.forget(request.model, gone)
        audit_note(versions=gone)
        return pb.DeleteModelResponse(versions=gone)

    async def SetAlias(  # noqa: N802
        self, request: pb.SetAliasRequest, context: Context
    ) -> pb.SetAliasResponse:
        """Gives an alias to a version, or moves it there."""
        check_model_and_alias(request.model, request.alias)
        check_write(request.model)
        set_alias = self._model_store.set_alias
        stored = await outlast(
            thread_pools.STORE.run(set_alias, request.model, request.alias, request.version)
        )
        return pb.SetAliasResponse(
            model=await thread_pools.LISTS.run(self._descriptions.describe, stored)
        )

    async def DeleteAlias(  # noqa: N802
        self, request: pb.DeleteAliasRequest, context: Context
    ) -> pb.DeleteAliasResponse:
        """Removes an alias."""
        check_model_and_alias(request.model, request.alias)
        check_write(request.model)
        delete = self._model_store.delete_alias
        await outlast(thread_pools.STORE.run(delete, request.model, request.alias))
        return pb.DeleteAliasResponse()

    async def ExportModel(  # noqa: N802
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelResponse]:
        """Sends the file of a version."""
        async for reply in self._exporting.send(request):
            yield reply

    async def ImportModel(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ImportModelRequest], context: Context
    ) -> pb.ImportModelResponse:
        """Stores a file as a new version."""
        with self._control_admission.submissions.admit():
            imported = await self._importing.take(request_iterator)
        return pb.ImportModelResponse(
            model=await thread_pools.LISTS.run(self._descriptions.describe, imported.stored),
            reused=imported.is_reused,
            notices=imported.notices,
        )

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Context
    ) -> pb.UploadFileResponse:
        """Stores a file."""
        return await self._files.upload(request_iterator)

    async def ListFiles(  # noqa: N802
        self, request: pb.ListFilesRequest, context: Context
    ) -> pb.ListFilesResponse:
        """Lists one page of files."""
        return await self._files.list(request)

    async def GetFile(  # noqa: N802
        self, request: pb.GetFileRequest, context: Context
    ) -> pb.GetFileResponse:
        """Describes a file."""
        return await self._files.get(request)

    async def ReadFile(  # noqa: N802
        self, request: pb.ReadFileRequest, context: Context
    ) -> AsyncIterator[pb.ReadFileResponse]:
        """Streams the bytes of a file."""
        async for reply in self._files.read(request):
            yield reply

    async def DeleteFile(  # noqa: N802
        self, request: pb.DeleteFileRequest, context: Context
    ) -> pb.DeleteFileResponse:
        """Deletes a file."""
        return await self._files.delete(request)

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Describes the server."""
        kernels_ready, kernels_total = self._warmup.progress
        caller = current_caller()
        info = pb.GetServerInfoResponse(
            caller=None if caller is ANONYMOUS else await self._describe(caller),
            version=RELEASE,
            replica=self._jobs.replica_id,
            cpu_target=compiled_for(),
            threads=self._config.threads,
            uptime_s=time.monotonic() - self._began,
            training_slots=self._config.training_slots,
            training_running=self._jobs.queue.running_count,
            training_queued=self._jobs.waiting_count,
            training_queue_limit=self._config.training_queue_limit,
            inference_limit=self._config.inference_limit,
            inference_running=self._admission.calls.running,
            max_new_tokens_limit=self._config.max_new_tokens_limit,
            max_corpus_bytes=self._config.max_corpus_bytes,
            max_model_bytes=self._config.max_model_bytes,
            max_message_bytes=self._config.max_message_bytes,
            sessions_running=self._admission.sequences.running,
            session_limit=self._config.session_limit,
            score_streams_running=self._admission.streams.running,
            score_stream_limit=self._config.stream_limit,
            learning_running=self._admission.learning_streams.running,
            learning_limit=self._config.learning_limit,
            models_loaded=self._models.count,
            models_loaded_bytes=self._models.size_bytes,
            kernels_ready=kernels_ready,
            kernels_total=kernels_total,
            memory_budget_bytes=self._budget.limit,
            memory_used_bytes=self._budget.used,
            inference_precision=precision_number(
                InferencePrecision(self._config.inference_precision)
            ),
        )
        if not caller.is_admin:
            for field in _USE_OF_ALL:
                setattr(info, field, 0)
        return info

    async def _describe(self, caller: Caller) -> pb.CallerInfo:
        stored = await self._submission.stored_use(caller.name)
        return caller_info(caller, self._admission.quotas.of(caller), stored)

    async def _fill(
        self,
        page: Page[pb.Job],
        states: list[str],
        model: str,
        tags: dict[str, str],
        after: tuple[float, str] | None,
    ) -> tuple[float, str] | None:
        """Fills a page with jobs, newest first, a few at a time.

        Returns:
            The place after which the next page begins; None if this is the last one.
        """
        read = 0
        while rows := await self._jobs.registry.page(states, model, after, _JOBS):
            positions = (await self._jobs.backlog()).positions()
            jobs = await thread_pools.LISTS.run(self._listed_jobs, rows, tags, positions)
            for row, job in zip(rows, jobs, strict=True):
                if job is not None and not page.take(job):
                    return after
                after = row.place
            read += len(rows)
            if tags and read >= _MOST_READ:
                return after
        return None

    def _get(self, name: str, number: int) -> pb.GetModelResponse:
        stored = self._model_store.find(name, number)
        return pb.GetModelResponse(
            model=self._descriptions.describe(stored),
            versions=self._model_store.versions(stored.name),
        )

    async def _job(self, job: str) -> pb.Job:
        row = await self._jobs.registry.row(job)
        is_queued = row.state == JobState.QUEUED
        position = (await self._jobs.backlog()).position(job) if is_queued else 0
        return responses.job(row, position)

    def _listed_jobs(
        self, rows: list[JobRow], tags: Mapping[str, str], positions: Mapping[str, int]
    ) -> list[pb.Job | None]:
        """Describes jobs for a list; a damaged one is marked and does not fail the call.

        Returns:
            The jobs; None in the place of one that does not have all of the tags.
        """
        fault = self._jobs.registry.fault
        return [
            responses.listed_job(row, positions.get(row.id, 0), fault(row))
            if not tags or responses.has_tags(row, tags)
            else None
            for row in rows
        ]
