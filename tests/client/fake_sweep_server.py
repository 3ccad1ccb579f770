"""A server for sweeps in this process: its jobs have made-up losses, and run while it is asked.

It keeps what a real one keeps: jobs with their tags and request ids, and numbered events.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from treadle.client.errors import (
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from treadle.client.files.corpus import CorpusFile
from treadle.client.training_run import TrainingRun
from treadle.client.upload import make_spec
from treadle.v1 import sequence_pb2 as v1

STEPS = 10
VALIDATIONS = 5

Losses = Callable[[Mapping[str, Any]], list[float]]
"""Returns the losses of a trial's validations by its options."""


class FakeRun:
    """Stands for a `TrainingRun`."""

    def __init__(self, server: FakeSweepServer, job: str, after: int = 0) -> None:
        self._server = server
        self._job = job
        self.last_sequence = after

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __iter__(self) -> Iterator[v1.JobEvent]:
        while True:
            event = self._server.next_event(self._job, self.last_sequence)
            if event is None:
                break
            self.last_sequence = event.sequence
            yield event
        if self._server.get_job(self._job).state == v1.JOB_STATE_CANCELLED:
            raise CancelledError("the job was cancelled", code="CANCELLED")

    def __next__(self) -> v1.JobEvent:
        return next(iter(self))


class FakeSweepServer:
    def __init__(self, losses: Losses) -> None:
        self.losses = losses
        self.by_id: dict[str, v1.Job] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[v1.JobEvent]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.hashes: set[str] = set()
        self.uploads = 0
        """How often a corpus was sent and not only named."""
        self.submissions = 0
        """How many jobs were made."""
        self.refuse: Callable[[Mapping[str, Any]], Exception | None] = lambda options: None
        self.caller = ""
        """Who calls."""
        self.away = 0
        """How many of the next calls do not reach the server."""
        self.most_open = 0
        """The most jobs that were open at once."""
        self._lock = threading.RLock()

    def train(
        self, corpus: Any, *, model: str = "", reconnect_s: float = 0.0, **options: Any
    ) -> TrainingRun:
        with self._lock:
            files = cast(list[CorpusFile], corpus)
            spec = make_spec(model, None, cast(Any, options))
            self._reach()
            for job in self.by_id.values():
                if job.spec.request_id == spec.request_id and job.owner == self.caller:
                    if job.spec != spec:
                        raise FailedPreconditionError("it differs", code="ALREADY_EXISTS")
                    return cast(TrainingRun, FakeRun(self, job.id))
            refusal = self.refuse(options)
            if refusal is not None:
                raise refusal
            missing = [file for file in files if file.sha256 and file.sha256 not in self.hashes]
            if missing:
                raise NotFoundError("there is no such corpus file", code="NOT_FOUND")
            sent = [Path(cast(Any, file.data)) for file in files if not file.sha256]
            self.hashes |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in sent}
            self.uploads += bool(sent)
            return cast(TrainingRun, FakeRun(self, self._accept(model, spec, options)))

    def _accept(self, model: str, spec: v1.TrainSpec, options: dict[str, Any]) -> str:
        self.submissions += 1
        id_ = f"job-{self.submissions}"
        job = v1.Job(id=id_, model=model, state=v1.JOB_STATE_QUEUED, spec=spec, owner=self.caller)
        job.create_time.FromSeconds(1_700_000_000 + self.submissions)
        self.by_id[id_] = job
        self.options[id_] = options
        self.events[id_] = []
        self._add(id_, state=v1.JobStateChange(state=v1.JOB_STATE_QUEUED))
        self._add(id_, state=v1.JobStateChange(state=v1.JOB_STATE_RUNNING))
        started = v1.TrainingStarted(spec=spec, total_steps=STEPS * VALIDATIONS)
        self._add(id_, started=started)
        job.state = v1.JOB_STATE_RUNNING
        still_open = [each for each in self.by_id.values() if each.state == v1.JOB_STATE_RUNNING]
        self.most_open = max(self.most_open, len(still_open))
        return id_

    def _add(self, job: str, **event: Any) -> None:
        number = len(self.events[job]) + 1
        self.events[job].append(v1.JobEvent(sequence=number, job=job, **event))
        self.by_id[job].last_sequence = number

    def advance(self, job: str) -> None:
        """Lets a job do one more validation, or end."""
        with self._lock:
            about = self.by_id[job]
            if about.state != v1.JOB_STATE_RUNNING:
                return
            losses = self.losses(self.options[job])
            done = len(self.events[job]) - 3
            if done < len(losses):
                progress = v1.TrainingProgress(
                    step=(done + 1) * STEPS, train_loss=1.0, valid_loss=losses[done]
                )
                self._add(job, progress=progress)
                return
            about.version = self.submissions
            about.state = v1.JOB_STATE_SUCCEEDED
            record = v1.TrainingRecord(valid_loss=min(losses))
            model = v1.Model(name=about.model, version=about.version, training=record)
            self._add(job, completed=model)

    def next_event(self, job: str, after: int) -> v1.JobEvent | None:
        with self._lock:
            self._reach()
            if job not in self.by_id:
                raise NotFoundError(f"there is no job '{job}'", code="NOT_FOUND")
            if len(self.events[job]) == after:
                self.advance(job)
            events = self.events[job]
            return events[after] if len(events) > after else None

    def watch(
        self, job: str, after: int = 0, *, reconnect_s: float = 0.0, timeout_s: float | None = None
    ) -> TrainingRun:
        return cast(TrainingRun, FakeRun(self, job, after))

    def _reach(self) -> None:
        if self.away:
            self.away -= 1
            raise UnavailableError("no server answers", code="UNAVAILABLE", broken=True)

    def get_job(self, job: str) -> v1.Job:
        with self._lock:
            self._reach()
            if job not in self.by_id:
                raise NotFoundError(f"there is no job '{job}'", code="NOT_FOUND")
            copied = v1.Job()
            copied.CopyFrom(self.by_id[job])
            return copied

    def jobs(
        self, *, tags: Mapping[str, str] | None = None, page_size: int = 0
    ) -> Iterator[v1.Job]:
        with self._lock:
            ids = [
                job.id
                for job in reversed(self.by_id.values())
                if dict(tags or {}).items() <= dict(job.spec.tags).items()
            ]
        return map(self.get_job, ids)

    def cancel_job(self, job: str) -> v1.Job:
        with self._lock:
            about = self.by_id[job]
            if about.state != v1.JOB_STATE_RUNNING:
                raise FailedPreconditionError("it has ended", code="FAILED_PRECONDITION")
            about.state = v1.JOB_STATE_CANCELLED
            about.version = self.submissions
            self._add(job, state=v1.JobStateChange(state=v1.JOB_STATE_CANCELLED))
            return self.get_job(job)

    def set_alias(self, model: str, alias: str, *, version: int = 0) -> v1.Model:
        self.aliases[model, alias] = version
        return v1.Model(name=model, version=version)

    def server_info(self) -> v1.GetServerInfoResponse:
        info = v1.GetServerInfoResponse()
        info.caller.name = self.caller
        return info


def refused(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(text, code="INVALID_ARGUMENT")
