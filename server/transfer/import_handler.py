"""`ImportHandler` answers ImportModel: a file that a client sends becomes a version of a model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from treadle.server.access.audit.audited_call import audit_change
from treadle.server.access.model_rights import check_write
from treadle.server.access.quota_book import CallerUse, QuotaBook
from treadle.server.errors import aborted
from treadle.server.jobs.job import outlast
from treadle.server.messages.import_request import check_import, vocabulary_config
from treadle.server.names import is_name
from treadle.server.resources import thread_pools
from treadle.server.resources.upload_pace import UploadLimits
from treadle.server.storage.model_version import StoredModel
from treadle.server.transfer import model_conversion
from treadle.server.transfer.incoming_model import IncomingModel
from treadle.server.transfer.model_draft import ModelDraft
from treadle.server.transfer.vocabulary import Vocabulary, unread_tokens
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig
    from treadle.model.enums import CorpusLayout
    from treadle.server.inference.admission import Admission
    from treadle.server.jobs.manager import JobManager
    from treadle.server.jobs.submissions.submission import Submission
    from treadle.server.resources.memory_budget import MemoryBudget, Reservation
    from treadle.server.storage.data_dir import DataDir

logger = logging.getLogger(__name__)

_PATIENCE_S = 20.0
"""Seconds for which a file that has arrived waits for the memory in which it is checked."""

_WHAT = "a model that is imported"


@dataclass(frozen=True)
class ImportedModel:
    """What an import has led to."""

    stored: StoredModel
    """The version."""
    is_reused: bool = False
    """Whether it was there before."""
    notices: tuple[str, ...] = ()
    """Sentences about a converted model."""


@dataclass(frozen=True)
class _Conversion:
    """How a state dict becomes a model."""

    config: TokenizerConfig
    layout: CorpusLayout
    tied_weights: bool


class ImportHandler:
    """Answers the ImportModel calls of a server.

    Args:
        data_dir: Where models are stored.
        jobs: Says which models unfinished jobs will store, and when the server is closing.
        submission: Says what a caller has stored.
        limits: Limits of an upload.
        admission: Limits the uploads at once.
        budget: Counts the bytes that are kept for callers.
        quotas: Counts what each caller uses.
    """

    def __init__(
        self,
        data_dir: DataDir,
        jobs: JobManager,
        submission: Submission,
        limits: UploadLimits,
        admission: Admission,
        budget: MemoryBudget,
        quotas: QuotaBook,
    ) -> None:
        self._store = data_dir.models
        self._jobs = jobs
        self._submission = submission
        self._limits = limits
        self._admission = admission
        self._budget = budget
        self._quotas = quotas

    async def take(self, requests: AsyncIterator[pb.ImportModelRequest]) -> ImportedModel:
        """Reads a file of the current caller to its end and stores it.

        Args:
            requests: The stream of the call.

        Returns:
            The version.

        Raises:
            StatusError: The file or the request cannot be taken.
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        use = self._quotas.current()
        incoming = IncomingModel(requests, self._limits, self._jobs.closing)
        spec = await incoming.spec()
        if is_name(spec.model):
            check_write(spec.model)
        check_import(spec, self._limits.most_bytes)
        conversion = None
        if spec.HasField("state_dict"):
            config, layout = vocabulary_config(spec.state_dict)
            conversion = _Conversion(config, layout, spec.state_dict.tied_weights)
        elif spec.reuse_identical and spec.sha256:
            found = await thread_pools.STORE.run(self._reuse, spec, spec.sha256)
            if found is not None:
                return found
        backlog = await self._jobs.backlog()
        coming = backlog.models()
        await thread_pools.DATABASE.run(self._store.check_new, spec.model, spec.alias, coming)
        waiting = partial(backlog.waiting_of, use.name)
        with (
            self._admission.admit(),
            use.admit_upload(waiting),
            self._budget.reserve(0, _WHAT) as held,
            self._budget.reserve(0, "a vocabulary") as words,
        ):
            needed = model_conversion.most_bytes(spec.size_bytes, conversion is not None)
            self._budget.check_possible(needed, _WHAT)
            count = partial(use.count_import, stored=await self._check_bytes(use, spec.size_bytes))
            draft = ModelDraft(self._store, count, conversion is not None)
            try:
                await thread_pools.UPLOADS.run(draft.open, spec.size_bytes)
                vocabulary = Vocabulary(words)
                sha256 = await incoming.receive(spec, vocabulary, draft)
                # Once begun it runs to its end: a cancelled call leaves no half of it.
                imported = await outlast(
                    self._finish(spec, sha256, draft, conversion, vocabulary, held, use)
                )
            finally:
                await outlast(_close(draft))
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # which `outlast` kept from the work
            raise asyncio.CancelledError
        return imported

    async def _check_bytes(self, use: CallerUse, more: int) -> int:
        """Checks that a caller may store another version.

        Args:
            use: The caller's use.
            more: Bytes of the new version, as far as they are known.

        Returns:
            The bytes of its models; 0 where it has no quota of them.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota is used up.
        """
        if use.quotas.model_bytes is None:
            return 0
        stored = await self._submission.promised_model_bytes(use.name)
        use.check_model_bytes(stored, more)
        return stored

    async def _finish(
        self,
        spec: pb.ImportModelSpec,
        sha256: str,
        draft: ModelDraft,
        conversion: _Conversion | None,
        vocabulary: Vocabulary,
        held: Reservation,
        use: CallerUse,
    ) -> ImportedModel:
        """Makes a file that has arrived a version, or leaves nothing of it."""
        source = draft.source
        needed = await thread_pools.UPLOADS.run(
            model_conversion.check_bytes, source, conversion is not None
        )
        await held.resize_patiently(needed, _PATIENCE_S)
        notices = await thread_pools.UPLOADS.run(
            self._check, spec.model, draft, conversion, vocabulary
        )
        sha256 = await thread_pools.UPLOADS.run(draft.settle, sha256)
        held.release()
        use.count_import(0, await self._check_bytes(use, 0))  # jobs may have stored some meanwhile
        coming = (await self._jobs.backlog()).models()
        return await thread_pools.STORE.run(
            self._store_version, spec, sha256, draft, coming, use.name, notices
        )

    def _check(
        self, name: str, draft: ModelDraft, conversion: _Conversion | None, vocabulary: Vocabulary
    ) -> tuple[str, ...]:
        """Checks a model, or makes that of a state dict; returns what is to be said about it."""
        notice = ""
        if conversion is None:
            model = model_conversion.check_model(draft.source)
        else:
            tokenizer = vocabulary.tokenizer(conversion.config, conversion.layout)
            model = model_conversion.convert(
                draft.source,
                draft.model,
                tokenizer,
                conversion.tied_weights,
                self._store.space.require,
            )
            notice = unread_tokens(tokenizer)
        size = draft.model.stat().st_size
        model_conversion.check_description(model, StoredModel(name, 1, draft.model, 0.0, size))
        return (notice,) if notice else ()

    def _store_version(
        self,
        spec: pb.ImportModelSpec,
        sha256: str,
        draft: ModelDraft,
        coming: list[str],
        owner: str,
        notices: tuple[str, ...],
    ) -> ImportedModel:
        """Makes a checked draft a version, unless the same one exists and may be taken."""
        if spec.reuse_identical:
            found = self._reuse(spec, sha256)
            if found is not None:
                return ImportedModel(found.stored, is_reused=True, notices=notices)
        assert draft.folder is not None
        self._store.check_new(spec.model, spec.alias, coming)
        try:
            stored = self._store.claim(spec.model, draft.folder, 0, owner)
        except FileNotFoundError as error:
            text = f"the new version of model {spec.model!r} was deleted while it was stored"
            raise aborted(f"{text}: send it again") from error
        self._name(stored, spec.alias)
        logger.info("version %d of %s was imported", stored.version, stored.name)
        return ImportedModel(stored, notices=notices)

    def _reuse(self, spec: pb.ImportModelSpec, sha256: str) -> ImportedModel | None:
        """Returns the version of a model with the same file, with the alias; None without one."""
        stored = self._store.find_identical(spec.model, sha256)
        if stored is None:
            return None
        self._name(stored, spec.alias)
        return ImportedModel(stored, is_reused=True)

    def _name(self, stored: StoredModel, alias: str) -> None:
        # Here and not in the task of the call, which may be cancelled meanwhile.
        audit_change(model=stored.name, version=stored.version, alias=alias)
        if alias:
            self._store.set_alias(stored.name, alias, stored.version)


async def _close(draft: ModelDraft) -> None:
    try:
        await thread_pools.UPLOADS.run(draft.close)
    except OSError as error:  # the error of the import itself says more
        logger.warning("an import left something behind: %s", error)
