"""`Submission` turns a Train call into a job: it validates, stores and queues the request."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from treadle.model.config import TrainConfig
from treadle.model.data.files import check_not_empty
from treadle.model.errors import CorpusError
from treadle.model.network.shape import Shape
from treadle.model.training.fine_tuning import BaseModelInfo
from treadle.server.access.audit.audited_call import audit_change
from treadle.server.access.caller import current_caller
from treadle.server.access.model_rights import check_read, check_write
from treadle.server.access.quota_book import CallerUse, QuotaBook
from treadle.server.access.request_id import current_request_id
from treadle.server.errors import StatusError, corpus_not_found, from_model, invalid
from treadle.server.failures import DatabaseError
from treadle.server.jobs.job import outlast
from treadle.server.jobs.submissions import idempotency
from treadle.server.jobs.submissions.upload import Upload
from treadle.server.messages import requests as convert
from treadle.server.messages.caller_info import StoredUse
from treadle.server.names import is_name, name_violations
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import UploadLimits
from treadle.server.storage.job_damage import damage
from treadle.server.storage.job_state import FINAL_STATES, UNFINISHED_STATES, JobState
from treadle.server.storage.schema import JobRow
from treadle.server.storage.upload_files import UploadedFile, UploadFiles
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.jobs.manager import JobManager
    from treadle.server.resources.memory_budget import MemoryBudget
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.model_version import StoredModel

logger = logging.getLogger(__name__)

_WEIGHT_BYTES = 4

_FINAL = sorted(FINAL_STATES)

_MOST_JOBS = 10_000
"""Jobs of a caller that are counted, the newest first."""


class Submission:
    """Takes requests to train.

    Args:
        data_dir: Where corpora and models are stored.
        jobs: Takes the jobs.
        limits: Limits of an upload.
        training_bytes: The most memory that a training run may take; None: all of the machine.
        budget: Counts the bytes that are kept for callers.
        quotas: Counts the jobs, models and corpora of each caller.
        has_nodes: Whether a job may have several nodes.
    """

    def __init__(
        self,
        data_dir: DataDir,
        jobs: JobManager,
        limits: UploadLimits,
        training_bytes: int | None,
        budget: MemoryBudget,
        quotas: QuotaBook,
        has_nodes: bool = False,
    ) -> None:
        self._data_dir = data_dir
        self._jobs = jobs
        self._limits = limits
        self._training_bytes = training_bytes
        self._budget = budget
        self._quotas = quotas
        self._has_nodes = has_nodes

    async def take(self, requests: AsyncIterator[pb.TrainRequest]) -> str:
        """Reads a request of the current caller to its end and queues its job.

        Args:
            requests: The stream of the call.

        Returns:
            The job's id, or that of the earlier job where the request repeats one of the caller.

        Raises:
            StatusError: The request cannot be taken.
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        caller = current_caller()
        use = self._quotas.current()
        upload = Upload(requests, self._limits, self._jobs.closing)
        asked = await upload.spec()
        if is_name(asked.model):
            check_write(asked.model)
        earlier = await self._jobs.registry.earlier(caller.name, asked.request_id)
        if earlier is not None:
            idempotency.check_spec(earlier, asked)
            if not await upload.ends_with_spec():
                with use.admit_repeat(), self._jobs.queue.admit_repeated():
                    again = await upload.receive(idempotency.ComparedCorpora())
                idempotency.check_corpus(earlier, again)
            audit_change(job=earlier.id)
            return earlier.id
        self._jobs.check_trains()
        spec = pb.TrainSpec()
        spec.CopyFrom(asked)
        if spec.nodes > 1 and not self._has_nodes:
            text = (
                f"nodes is {spec.nodes}, and this server trains on one machine: leave it out, or "
                "have the server started with --mpirun"
            )
            raise invalid([("spec.nodes", text)])
        base, spec.init_from_version = await self._base(spec)
        config = convert.train_config(spec, self._training_bytes, await self._beginning(base))
        backlog = await self._jobs.backlog()
        await thread_pools.DATABASE.run(
            self._data_dir.models.check_new, spec.model, "", backlog.models()
        )
        waiting = partial(backlog.waiting_of, caller.name)
        with use.admit_upload(waiting), self._jobs.admit(backlog):
            corpora = await self._check_bytes(use, config)
            stored = UploadFiles(
                self._data_dir.corpora,
                partial(use.count_upload, stored=corpora),
                None if caller.is_admin else caller.name,
            )
            try:
                await thread_pools.UPLOADS.run(self._data_dir.space.require)
                files = await upload.receive(stored)
                _check_files(files)
                await self._check_bytes(use, config)  # other uploads may be stored meanwhile
                # Once begun it runs to its end: a cancelled call leaves no half of it.
                kept, job = await outlast(
                    self._queue(stored, spec, asked, config, files, base, caller.name)
                )
            finally:
                await outlast(_close(stored))
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # which `outlast` kept from the work
            raise asyncio.CancelledError
        if kept.id != job:  # the job of another call at the same time
            idempotency.check_spec(kept, asked)
            idempotency.check_corpus(kept, files)
        return kept.id

    async def stored_use(self, owner: str) -> StoredUse:
        """Returns what a caller keeps on the server.

        Args:
            owner: The caller's name.

        Raises:
            DatabaseError: The database failed.
        """
        database = self._data_dir.database
        backlog = await self._jobs.backlog()
        stored = await thread_pools.DATABASE.run(database.model_bytes, owner)
        kept = await thread_pools.LISTS.run(self._kept_bytes, owner)
        return StoredUse(
            jobs_queued=backlog.waiting_of(owner),
            jobs_running=backlog.running_of(owner),
            model_bytes=stored + kept,
            corpus_bytes=await thread_pools.DATABASE.run(database.corpus_bytes, owner),
        )

    async def promised_model_bytes(self, owner: str) -> int:
        """Returns the bytes of a caller's models: stored ones, and those that its jobs will store.

        Args:
            owner: The caller's name.

        Raises:
            DatabaseError: The database failed.
        """
        stored = await self.stored_use(owner)
        return stored.model_bytes + await thread_pools.DATABASE.run(self._coming_bytes, owner)

    async def _check_bytes(self, use: CallerUse, config: TrainConfig) -> int:
        """Checks what a caller keeps already, and will keep.

        Args:
            use: The caller's use.
            config: The settings of its new job.

        Returns:
            The bytes of its corpora; 0 where it has no quota of bytes.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: a quota is used up.
        """
        if use.quotas.model_bytes is None and use.quotas.corpus_bytes is None:
            return 0
        stored = await self.stored_use(use.name)
        if use.quotas.model_bytes is not None:
            coming = await thread_pools.DATABASE.run(self._coming_bytes, use.name)
            use.check_model_bytes(stored.model_bytes + coming, _least_bytes(config))
        use.count_upload(0, stored.corpus_bytes)
        return stored.corpus_bytes

    def _kept_bytes(self, owner: str) -> int:
        """Returns the bytes of the weights that jobs of an owner keep after their end."""
        jobs = self._data_dir.database.jobs(_FINAL, limit=_MOST_JOBS, owner=owner)
        return sum(self._data_dir.jobs.own_bytes(row) for row in jobs)

    def _coming_bytes(self, owner: str) -> int:
        """Returns about the bytes of the models that unfinished jobs of an owner will store."""
        jobs = self._data_dir.database.jobs(UNFINISHED_STATES, limit=_MOST_JOBS, owner=owner)
        return sum(
            _least_bytes(TrainConfig.from_json(json.loads(row.config)))
            for row in jobs
            if not damage(row)
        )

    async def _queue(
        self,
        stored: UploadFiles,
        spec: pb.TrainSpec,
        asked: pb.TrainSpec,
        config: TrainConfig,
        files: list[UploadedFile],
        base: StoredModel | None,
        owner: str,
    ) -> tuple[JobRow, str]:
        """Makes a complete upload a job, or leaves nothing of it.

        Returns:
            The job, or the earlier one with the same request id, and the id made for a new job.
        """
        job = new_id()
        try:
            await thread_pools.UPLOADS.run(stored.store)
            checkpoint = await thread_pools.STORE.run(self._lay_out, job, files, base)
            row = new_row(job, spec, config, files, asked.init_from_version, owner)
            kept = await self._jobs.submit(replace(row, checkpoint=checkpoint))
        except BaseException:
            if await self._jobs.registry.unknown(job):
                await thread_pools.STORE.run(self._data_dir.jobs.remove, job)
            raise
        if kept.id == job:
            stored.keep()
        audit_change(job=kept.id, corpora=[file.sha256 for file in files])
        return kept, job

    async def _base(self, spec: pb.TrainSpec) -> tuple[StoredModel | None, int]:
        """Returns the model to start from and its version; None and 0 where the spec names none."""
        if not spec.init_from:
            return None, spec.init_from_version
        faults = name_violations(spec.init_from.partition("@")[0], "spec.init_from")
        if faults:
            raise invalid(faults)
        check_read(spec.init_from, spec.init_from_version)
        base = await thread_pools.DATABASE.run(
            self._data_dir.models.find, spec.init_from, spec.init_from_version
        )
        return base, base.version

    async def _beginning(self, base: StoredModel | None) -> BaseModelInfo | None:
        if base is None:
            return None
        about = await thread_pools.LISTS.run(self._data_dir.models.describe, base)
        return BaseModelInfo(about.network, about.tokenizer, about.layout, about.vocabulary_size)

    def _lay_out(self, job: str, files: list[UploadedFile], base: StoredModel | None) -> str:
        """Makes a job's directory and puts the model to start from in it.

        Returns:
            The `checkpoint` of the job's row.
        """
        for file in files:
            if self._data_dir.corpora.touch(file.sha256) is None:  # removed by hand meanwhile
                raise corpus_not_found(file.sha256)
        try:
            return self._data_dir.jobs.begin(job, base, self._data_dir.space)
        except FileNotFoundError:
            if base is None:
                raise
            raise _gone(base) from None


def _least_bytes(config: TrainConfig) -> int:
    """Returns the bytes of the weights of a model, as far as they are known before it is trained.

    What depends on the vocabulary is not.
    """
    return _WEIGHT_BYTES * Shape.of(config.network, vocabulary_size=1).parameter_count


async def _close(stored: UploadFiles) -> None:
    try:
        await thread_pools.UPLOADS.run(stored.close)
    except (OSError, DatabaseError) as error:  # the error of the upload itself says more
        logger.warning("an upload left something behind: %s", error)


def _check_files(files: list[UploadedFile]) -> None:
    """Refuses a corpus of empty files."""
    try:
        check_not_empty(files)
    except CorpusError as error:
        raise from_model(error, "corpus_chunk") from None


def _gone(base: StoredModel) -> StatusError:
    text = f"version {base.version} of model {base.name!r} was just deleted"
    return invalid([("spec.init_from", text)])


def new_id() -> str:
    """Returns the id of a new job; ids sort by the time of their creation."""
    return f"{time.time_ns() // 1_000_000:011x}-{secrets.token_hex(4)}"


def new_row(
    id: str,  # noqa: A002
    spec: pb.TrainSpec,
    config: TrainConfig,
    files: Sequence[UploadedFile],
    init_from_version: int = 0,
    owner: str = "",
) -> JobRow:
    """Returns the row of a new job.

    Args:
        id: The job's id.
        spec: The request, with the version of `init_from` that the job starts from.
        config: The same as settings.
        files: The job's corpus.
        init_from_version: The version of `init_from` in the request; 0: the newest.
        owner: The caller that the job belongs to; empty: no known one.
    """
    now = time.time()
    return JobRow(
        id=id,
        model=spec.model,
        state=JobState.QUEUED,
        reason="",
        spec=spec.SerializeToString(),
        config=json.dumps(config.to_json()),
        files=json.dumps([asdict(file) for file in files], ensure_ascii=False),
        corpus_bytes=sum(file.size for file in files),
        request_id=spec.request_id,
        init_from=spec.init_from,
        created_s=now,
        queued_s=now,
        started_s=None,
        ended_s=None,
        last_sequence=0,
        restarts=0,
        started=b"",
        progress=b"",
        version=0,
        claim=0,
        error_code=0,
        error=b"",
        ran_s=0.0,
        init_from_version=init_from_version,
        owner=owner,
        call_id=current_request_id(),
    )
