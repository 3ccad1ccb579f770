"""`Sweep` submits the trials of a sweep, follows them, stops hopeless ones, and names the best one.

It keeps nothing but what the server has: each trial is a job with tags and with a request id that
follows from the sweep's name and the trial's number. A later run finds the jobs by their tags,
reads their events again, and comes to the same decisions, since each one depends on nothing but
the results of certain earlier trials: those that are at least `parallel` before it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, Unpack, cast

from treadle.client.errors import (
    FailedPreconditionError,
    InputError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServerError,
)
from treadle.client.files.corpus import Corpora
from treadle.client.messages.enums import field_word
from treadle.client.options import TrainOptions
from treadle.client.replicas.retry import RECONNECT_S
from treadle.client.sweep.corpus import SweepCorpus
from treadle.client.sweep.job_follower import Break, JobFollower, Update, Watcher
from treadle.client.sweep.sampler import make_sampler
from treadle.client.sweep.spec import SweepSpec
from treadle.client.sweep.trial import OPEN_STATES, Trial, TrialState, ranked
from treadle.client.sweep.trial_news import apply_event, apply_job
from treadle.client.sweep.trial_tags import (
    DIGEST,
    SWEEP,
    TRIAL,
    differing_parts,
    read_parameters,
    request_id,
    spec_digest,
    trial_tags,
)
from treadle.client.training_run import TrainingRun
from treadle.v1.sequence_pb2 import GetServerInfoResponse, Job, Model

_REFUSALS = 10
"""So many trials may be refused before one is accepted: then something that they share is wrong."""

_BUSY_S = 2.0
"""Seconds until a job that a full server did not take is submitted again, unless it says more."""

_LONGEST_WAIT_S = 3600.0

_PAGE = 500
"""Jobs in one reply."""

EventKind = Literal[
    "found", "queued", "progress", "pruned", "ended", "refused", "waiting", "finished", "alias"
]


@dataclass(frozen=True)
class SweepEvent:
    """Something that happened in a sweep."""

    kind: EventKind
    """`found`: earlier trials were found; `queued`: a job was submitted; `progress`: a trial has
    come further; `pruned`: it was stopped; `ended`: it has its result; `refused`: the server did
    not take it; `waiting`: the server is full or out of reach; `finished`: all trials have ended;
    `alias`: the best model has its alias."""
    trial: Trial | None = None
    """The trial; for `alias` the best one."""
    text: str = ""
    """What is to be said about it; empty where there is nothing."""


class SweepClient(Watcher, Protocol):
    """The part of a `Client` that a sweep uses."""

    def train(
        self,
        corpus: Corpora,
        *,
        model: str = "",
        timeout_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
        **options: Unpack[TrainOptions],
    ) -> TrainingRun:
        """Trains a model."""

    def jobs(self, *, tags: Mapping[str, str] | None = None, page_size: int = 0) -> Iterator[Job]:
        """Yields jobs."""

    def cancel_job(self, job: str) -> Job:
        """Ends a job for good."""

    def set_alias(self, model: str, alias: str, *, version: int = 0) -> Model:
        """Gives a version of a model an alias."""

    def server_info(self) -> GetServerInfoResponse:
        """Describes the server and the caller."""


class Sweep:
    """A sweep under way: iterate over its events, or wait for `result()`.

    Leaving it early stops no job. The same sweep, made again here or on another machine, continues.

    Args:
        client: The connection to the server.
        spec: What to do.
        reconnect_s: How long to try to reconnect where the connection breaks, in seconds.

    Raises:
        InputError: A file cannot be read, or a package is missing.
    """

    def __init__(
        self, client: SweepClient, spec: SweepSpec, *, reconnect_s: float = RECONNECT_S
    ) -> None:
        self.spec = spec
        """What it does."""
        self.trials: dict[int, Trial] = {}
        """The trials so far, by their number."""
        self._client = client
        self._sampler = make_sampler(spec)
        self._corpus = SweepCorpus(spec.files)
        self._digest = spec_digest(spec, self._corpus.hashes)
        self._jobs = JobFollower(client, reconnect_s)
        self._events = self._run()
        self._total = spec.trials
        self._next = 1
        self._settled = 0
        self._prefix = 0  # the first trials up to this one are settled
        self._begin_s: float | None = None
        self._retry_at = 0.0
        self._is_waiting = False
        self._is_broken = False
        self._is_stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SweepEvent:
        return next(self._events)

    def close(self) -> None:
        """Stops following the sweep; its jobs continue."""
        self._jobs.close()

    def result(self) -> list[Trial]:
        """Runs the sweep to its end.

        Returns:
            The trials, the best one first.

        Raises:
            InputError: The sweep of this name has other settings, or a file has changed.
            ServerError: A call failed.
        """
        for _ in self:
            pass
        return self.ranked()

    def ranked(self) -> list[Trial]:
        """Returns the trials so far, the best one first."""
        return ranked(self.trials.values(), self.spec.metric)

    def best(self) -> Trial | None:
        """Returns the best trial that has made a model; None without one."""
        metric = self.spec.metric
        found = (trial for trial in self.ranked() if trial.version and trial.state != "pruned")
        return next((trial for trial in found if trial.value(metric) is not None), None)

    @property
    def total(self) -> int:
        """How many trials there will be, as far as no time limit ends the sweep."""
        return self._total

    def cancel(self) -> list[Trial]:
        """Cancels the jobs that have not ended.

        Returns:
            Their trials.

        Raises:
            ServerError: A call failed.
        """
        cancelled = []
        for job in self._found():
            trial = self._restored(job)
            if trial.state in OPEN_STATES:
                self._cancel(trial)
                cancelled.append(trial)
        return sorted(cancelled, key=lambda trial: trial.number)

    # --------------------------------------------------------------------- the run

    def _run(self) -> Iterator[SweepEvent]:
        """Runs the sweep."""
        yield from self._restore()
        while True:
            yield from self._submit()
            if self._is_done():
                break
            try:
                update = self._jobs.updates.get(timeout=self._wait_s())
            except queue.Empty:
                pass
            else:
                yield from self._take(update)
            if self._is_late() and not self._is_stopping:
                self._is_stopping = True
                for trial in self._open():
                    self._cancel(trial)
                yield from self._judge_all(self._advance())
        yield SweepEvent("finished")
        best = self.best()
        if self.spec.alias and best is not None:
            self._jobs.patiently(
                lambda: self._client.set_alias(
                    self.spec.model, self.spec.alias, version=best.version
                )
            )
            yield SweepEvent("alias", best)

    def _restore(self) -> Iterator[SweepEvent]:
        """Finds the jobs of earlier runs."""
        jobs = self._found()
        for job in jobs:
            self._check_same(job, len(jobs))
            trial = self._restored(job)
            self.trials[trial.number] = trial
            self._begin_at(_accepted_s(job))
            self._jobs.follow(trial.number, job.id, is_over=trial.state not in OPEN_STATES)
        self._total = max([self.spec.trials, *self.trials])
        if jobs:
            yield SweepEvent("found", text=f"{len(jobs):,} of its trials are there already")

    def _found(self) -> list[Job]:
        """Returns the jobs of the sweep, one for each trial."""

        def load() -> list[Job]:
            owner = self._client.server_info().caller.name
            tags = {SWEEP: self.spec.name}
            return [
                job
                for job in self._client.jobs(tags=tags, page_size=_PAGE)
                if job.owner == owner and _is_of_sweep(job, self.spec.name)
            ]

        return self._jobs.patiently(load)

    def _check_same(self, job: Job, count: int) -> None:
        """Checks that a job belongs to the same sweep, and not to another one of its name.

        Raises:
            InputError: It does not.
        """
        parts = differing_parts(job.spec.tags[DIGEST], self._digest)
        if parts:
            jobs = "job" if count == 1 else "jobs"
            differ = "differs" if len(parts) == 1 else "differ"
            raise InputError(
                f"sweep {self.spec.name!r} has {count:,} {jobs} of another file: "
                f"{' and '.join(parts)} {differ}; "
                "take another name, or restore the file to continue"
            )

    def _restored(self, job: Job) -> Trial:
        """Returns a trial as the tags of its job say, without its results."""
        chosen = read_parameters(job.spec.tags)
        parameters = {name: chosen[name] for name in self.spec.search if name in chosen}
        trial = Trial(int(job.spec.tags[TRIAL]), parameters, job=job.id)
        trial.state = cast(TrialState, field_word(job, "state"))
        return trial

    def _is_done(self) -> bool:
        """Returns whether every trial is settled, and no other one is to come."""
        is_complete = self._next > self._total or self._is_late()
        return is_complete and self._settled == len(self.trials)

    def _is_late(self) -> bool:
        """Returns whether the time limit of the sweep has passed."""
        return self._is_stopping or self._left_s() <= 0

    def _left_s(self) -> float:
        """Returns how many seconds the sweep has left."""
        if self.spec.max_time_s is None or self._begin_s is None:
            return float("inf")
        return self._begin_s + self.spec.max_time_s - time.time()

    def _begin_at(self, time_s: float) -> None:
        """Notes that a job was accepted at a time; the first one begins the sweep."""
        self._begin_s = time_s if self._begin_s is None else min(time_s, self._begin_s)

    def _wait_s(self) -> float:
        """Returns how long to wait for news, in seconds."""
        if self._is_stopping:
            return _LONGEST_WAIT_S
        retry = self._retry_at - time.monotonic() if self._retry_at else _LONGEST_WAIT_S
        return max(0.0, min(self._left_s(), retry, _LONGEST_WAIT_S))

    def _open(self) -> list[Trial]:
        """Returns the trials whose jobs have not ended."""
        return [trial for trial in self.trials.values() if not trial.is_over]

    # ------------------------------------------------------------------ submission

    def _submit(self) -> Iterator[SweepEvent]:
        """Submits the next trials, as many as may be open."""
        while self._next <= self._total and not self._is_late():
            if self._next in self.trials:
                self._next += 1
                continue
            is_ripe = not self.spec.needs_order or self._is_ripe(self._next)
            if len(self._open()) >= self.spec.parallel or not is_ripe:
                return
            if time.monotonic() < self._retry_at:
                return
            self._retry_at = 0.0
            trial = self._chosen(self._next)
            try:
                begun_s = self._jobs.patiently(
                    lambda: self._train(trial),  # noqa: B023 - called here
                    unless=(ResourceExhaustedError,),  # the results of the others are read
                )
            except ResourceExhaustedError as error:
                self._retry_at = time.monotonic() + (error.retry_delay_s or _BUSY_S)
                if not self._is_waiting:
                    self._is_waiting = True
                    yield SweepEvent("waiting", trial, f"the server takes no job now: {error}")
                return
            except InvalidArgumentError as error:
                trial.state = "refused"
                trial.reason = str(error)
                trial.is_over = True
                self.trials[trial.number] = trial
                self._check_refusals(error)
                yield SweepEvent("refused", trial, trial.reason)
                yield from self._judge(trial)
                continue
            self._is_waiting = False
            self.trials[trial.number] = trial
            self._begin_at(begun_s)
            self._jobs.follow(trial.number, trial.job)
            yield SweepEvent("queued", trial)

    def _chosen(self, number: int) -> Trial:
        """Returns a new trial with the settings that are chosen for it."""
        if not self.spec.needs_order:
            return Trial(number, self._sampler.choose(number, [], []))
        counted = self._counted(number)
        settled = [self.trials[each] for each in counted]
        pending = [self.trials[each] for each in range(len(counted) + 1, number)]
        return Trial(number, self._sampler.choose(number, settled, pending))

    def _train(self, trial: Trial) -> float:
        """Submits the job of a trial, and notes its id; a repeated call finds the same job.

        Returns:
            When the server took it, in seconds since 1970.

        Raises:
            InputError: There is a job of this request id that is no trial of this sweep.
            ServerError: The server does not take it.
        """
        spec = self.spec
        options: dict[str, Any] = {
            **spec.train,
            **trial.parameters,
            "request_id": request_id(spec.name, trial.number),
            "tags": trial_tags(spec, self._digest, trial.number, trial.parameters),
        }
        sent = [self._corpus.stored, self._corpus.whole]
        for files in sent:
            try:
                with self._client.train(
                    files(), model=spec.model, reconnect_s=0.0, **cast(TrainOptions, options)
                ) as run:
                    first = next(run)
            except NotFoundError:
                if files == sent[-1]:
                    raise
            except FailedPreconditionError as error:
                if error.code != "ALREADY_EXISTS":
                    raise
                return self._adopt(trial, error)
            else:
                trial.job = first.job
                return first.event_time.ToNanoseconds() / 1e9
        raise AssertionError

    def _adopt(self, trial: Trial, error: ServerError) -> float:
        """Takes the job that another run of the sweep has submitted for a trial meanwhile.

        Its tags may be others, and with another version of Optuna its settings.

        Args:
            trial: The trial, which gets the job and its settings.
            error: Why the server does not take a job for it.

        Returns:
            When the server took the job, in seconds since 1970.

        Raises:
            InputError: It is no trial of this sweep.
            ServerError: A call failed.
        """
        for job in self._found():
            other = self._restored(job)
            if other.number == trial.number and job.spec.tags[DIGEST] == self._digest:
                trial.job = other.job
                trial.parameters = other.parameters
                return _accepted_s(job)
        raise InputError(
            f"trial {trial.number} of sweep {self.spec.name!r} exists with other settings or "
            f"files: take another name for the sweep ({error})"
        ) from error

    def _check_refusals(self, error: ServerError) -> None:
        """Raises the error of the last trial where the server has refused all that there are."""
        refused = sum(trial.state == "refused" for trial in self.trials.values())
        if refused == len(self.trials) and refused >= min(_REFUSALS, self._total):
            raise error

    # --------------------------------------------------------------------- results

    def _take(self, update: Update) -> Iterator[SweepEvent]:
        """Applies news of a job to its trial."""
        trial = self.trials.get(update.trial)
        if trial is None or trial.job != update.job:
            return
        news = update.news
        if isinstance(news, NotFoundError):
            # Somebody has deleted the job, so that it is as if it had never been.
            yield from self._forget(trial)
            return
        if isinstance(news, Exception):
            raise news
        if isinstance(news, Break):
            if not self._is_broken:
                self._is_broken = True
                text = f"{news.reason}; the jobs continue, reconnecting to the server ..."
                yield SweepEvent("waiting", text=text)
            return
        self._is_broken = False
        if isinstance(news, Job):
            apply_job(trial, news)
        else:
            apply_event(trial, news)
        yield SweepEvent("progress", trial)
        yield from self._judge(trial)

    def _forget(self, trial: Trial) -> Iterator[SweepEvent]:
        """Forgets a trial whose job is gone; it is submitted again, unless the time is over."""
        del self.trials[trial.number]
        self._settled -= trial.is_settled
        self._next = min(self._next, trial.number)
        self._prefix = min(self._prefix, trial.number - 1)
        yield from self._judge_all(self._advance())

    def _counted(self, number: int) -> range:
        """Returns the trials whose results count for a trial's settings and for its end.

        They are those that must have ended before it could begin, if the sweep kept to its order,
        so that it does not matter which of the later ones happened to be faster.
        """
        counts = self.spec.prune or self.spec.needs_order
        return range(1, number - self.spec.parallel + 1) if counts else range(1, 1)

    def _is_ripe(self, number: int) -> bool:
        """Returns whether the results that count for a trial are known."""
        return len(self._counted(number)) <= self._prefix

    def _judge(self, trial: Trial) -> Iterator[SweepEvent]:
        """Stops a trial if it is hopeless, settles it if it is over, and then those that follow."""
        yield from self._judge_all([trial.number])

    def _judge_all(self, waiting: list[int]) -> Iterator[SweepEvent]:
        """Judges trials by their numbers, and those that follow."""
        while waiting:
            number = waiting.pop(0)
            judged = self.trials.get(number)
            if judged is None or judged.is_settled or not self._is_ripe(number):
                continue
            yield from self._prune(judged)
            if not judged.is_over:
                continue
            judged.is_settled = True
            self._settled += 1
            if judged.state not in ("pruned", "refused"):
                yield SweepEvent("ended", judged)
            waiting += self._advance()

    def _advance(self) -> list[int]:
        """Moves on over the trials that are settled.

        Once the time is over, a trial that is missing stays so, and nobody waits for it.

        Returns:
            The numbers that may be ripe now.
        """
        before = self._prefix
        last = max(self.trials, default=0)
        while self._prefix < last:
            following = self.trials.get(self._prefix + 1)
            if not (self._is_stopping if following is None else following.is_settled):
                break
            self._prefix += 1
        return [each + self.spec.parallel for each in range(before + 1, self._prefix + 1)]

    def _prune(self, trial: Trial) -> Iterator[SweepEvent]:
        """Stops a trial at its first validation that the rule calls hopeless."""
        if not self.spec.prune or trial.pruned_after:
            return
        counted = self._counted(trial.number)
        settled = [self.trials[number] for number in counted if number in self.trials]
        while trial.judged < len(trial.validations):
            trial.judged += 1
            if 0 < trial.total_steps <= trial.validations[trial.judged - 1].step:
                continue  # it has come to its end by itself
            if self._sampler.is_hopeless(trial, trial.judged, settled):
                trial.pruned_after = trial.judged
                trial.state = "pruned"
                trial.reason = ""
                if not trial.is_over:
                    self._cancel(trial)
                yield SweepEvent("pruned", trial)
                return

    def _cancel(self, trial: Trial) -> None:
        """Cancels the job of a trial, unless it has ended or is gone."""

        def cancel() -> None:
            with suppress(FailedPreconditionError, NotFoundError):
                self._client.cancel_job(trial.job)

        self._jobs.patiently(cancel)


def _accepted_s(job: Job) -> float:
    """Returns when the server took a job, in seconds since 1970."""
    return float(job.create_time.ToNanoseconds() / 1e9)


def _is_of_sweep(job: Job, sweep: str) -> bool:
    """Returns whether a job is a trial of a sweep, and does not only have its tag."""
    trial = job.spec.tags.get(TRIAL, "")
    is_number = trial.isascii() and trial.isdecimal()
    return is_number and job.spec.request_id == request_id(sweep, int(trial))
