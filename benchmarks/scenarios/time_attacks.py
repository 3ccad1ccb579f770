"""`silent_score_streams` and others attack time: silent streams, jobs that do not stop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.target import Target, scenario, timed
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub

ANSWER_S = 1.0
"""CancelJob and PauseJob answer within this, whatever the job does."""
SLOT_S = 40.0
"""After that a job that is to stop has left its place to the next one."""
GRACE_S = 8.0
_SLACK_S = 1.0
_GIVE_UP_S = 45.0


def _held(
    target: Target, opened: Callable[[AsyncStub], list[Any]], probe: Callable[[], bool], most: float
) -> float:
    """Returns the seconds until a caller is served while silent calls are open."""
    ready = threading.Event()
    ended = threading.Event()

    async def hold(stub: AsyncStub) -> None:
        calls = opened(stub)
        await asyncio.sleep(1.0)
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()

    thread = threading.Thread(target=target.run, args=(hold,))
    thread.start()
    try:
        ready.wait(30.0)
        return target.seconds_until(probe, most)
    finally:
        ended.set()
        thread.join()


async def _nothing() -> AsyncIterator[Any]:
    await asyncio.sleep(3600.0)
    yield None


@scenario("silent-score-streams")
def silent_score_streams(target: Target) -> list[Figure]:
    """512 ScoreStreams that never send a spec, while somebody generates."""
    count = 512  # the limit: fewer would block nobody
    seconds = _held(
        target,
        lambda stub: [stub.ScoreStream(_nothing()) for _ in range(count)],
        target.generates,
        20.0,
    )
    return [Figure("Generate served after", seconds, "s", 2.0)]


@scenario("silent-learn-streams")
def silent_learn_streams(target: Target) -> list[Figure]:
    """16 LearnStreams that never send a spec, while somebody learns."""

    def learns() -> bool:
        messages = [
            pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="log")),
            pb.LearnStreamRequest(learn=pb.TextPiece(text="2026", end=True)),
        ]
        return bool(list(target.stub.LearnStream(iter(messages), timeout=20.0)))

    seconds = _held(
        target, lambda stub: [stub.LearnStream(_nothing()) for _ in range(16)], learns, 20.0
    )
    return [Figure("LearnStream served after", seconds, "s", 2.0)]


def _trains(target: Target) -> bool:
    corpus = template.words(5000).encode()
    call = target.train(template.upload(template.spec("other"), corpus))
    next(call)
    call.cancel()
    return True


@scenario("silent-trains")
def silent_trains(target: Target) -> list[Figure]:
    """16 Train calls that never send a spec, while somebody trains."""
    seconds = _held(
        target,
        lambda stub: [stub.Train(_nothing()) for _ in range(16)],
        lambda: _trains(target),
        20.0,
    )
    return [Figure("Train served after", seconds, "s", 2.0)]


async def _drip() -> AsyncIterator[pb.TrainRequest]:
    yield pb.TrainRequest(spec=template.spec("drip"))
    while True:
        yield pb.TrainRequest(corpus_chunk=b"a")
        await asyncio.sleep(1.0)


@scenario("slow-uploads")
def slow_uploads(target: Target) -> list[Figure]:
    """16 uploads of a byte a second, while somebody trains."""
    most = 5.0 if target.is_quick else 75.0
    seconds = _held(
        target,
        lambda stub: [stub.Train(_drip()) for _ in range(16)],
        lambda: _trains(target),
        most,
    )
    return [Figure("Train served after", seconds, "s", 70.0)]


def large_step(model: str) -> Iterator[pb.TrainRequest]:
    """Yields an upload for a job of which one step takes minutes."""
    spec = template.endless_spec(
        model,
        network=pb.NetworkSpec(hidden_size=512),
        data=pb.DataSpec(batch_size=64, window=64, validation_fraction=0.0),
        optimizer=pb.OptimizerSpec(accumulation_steps=4096),
    )
    return template.upload(spec, template.words(1_000_000).encode())


def _stop_figures(target: Target, job: str, stop: Callable[[], object], name: str) -> list[Figure]:
    seconds, status = timed(stop)
    free = target.seconds_until_free(_GIVE_UP_S)
    state = pb.JobState.Name(target.job(job).state).removeprefix("JOB_STATE_").lower()
    return [
        Figure(f"{name} answered after", seconds, "s", ANSWER_S, status),
        Figure("slot free after", free, "s", SLOT_S, state),
    ]


@scenario("cancel-large-step")
def cancel_large_step(target: Target) -> list[Figure]:
    """CancelJob in the middle of a step of 4,096 batches."""
    job = target.begin(large_step("large-step"), until="started")
    time.sleep(3.0)
    cancel = pb.CancelJobRequest(job=job)
    return _stop_figures(
        target, job, lambda: target.stub.CancelJob(cancel, timeout=_GIVE_UP_S), "CancelJob"
    )


@scenario("large-step-time-limit", flags=("--max-training-s", "8"))
def large_step_time_limit(target: Target) -> list[Figure]:
    """A step of 4,096 batches on a server that lets jobs run for 8 s."""
    target.begin(large_step("large-step"), until="started")
    return [Figure("slot free after", target.seconds_until_free(_GIVE_UP_S), "s", 8.0 + 30.0)]


def _stopped_job(target: Target) -> str:
    """Returns a job whose process has been stopped by a signal, as a debugger would."""
    job = target.begin(
        template.upload(template.endless_spec("stopped"), template.words(50_000).encode())
    )
    for pid in target.workers():
        os.kill(pid, signal.SIGSTOP)
    return job


_ONE_WORKER = ("--standby-workers", "0")


@scenario("stopped-worker-pause", flags=_ONE_WORKER)
def stopped_worker_pause(target: Target) -> list[Figure]:
    """PauseJob of a job whose process was stopped by SIGSTOP."""
    job = _stopped_job(target)
    pause = pb.PauseJobRequest(job=job)
    return _stop_figures(
        target, job, lambda: target.stub.PauseJob(pause, timeout=_GIVE_UP_S), "PauseJob"
    )


@scenario("stopped-worker-cancel", flags=_ONE_WORKER)
def stopped_worker_cancel(target: Target) -> list[Figure]:
    """CancelJob of a job whose process was stopped by SIGSTOP."""
    job = _stopped_job(target)
    cancel = pb.CancelJobRequest(job=job)
    return _stop_figures(
        target, job, lambda: target.stub.CancelJob(cancel, timeout=_GIVE_UP_S), "CancelJob"
    )


@scenario("stopped-worker-limit", flags=(*_ONE_WORKER, "--max-training-s", "5"))
def stopped_worker_limit(target: Target) -> list[Figure]:
    """A job stopped by SIGSTOP on a server that lets jobs run for 5 s."""
    _stopped_job(target)
    return [Figure("slot free after", target.seconds_until_free(_GIVE_UP_S), "s", SLOT_S)]


@scenario("stopped-worker-sigterm", flags=_ONE_WORKER)
def stopped_worker_sigterm(target: Target) -> list[Figure]:
    """SIGTERM to a server whose training process was stopped by SIGSTOP."""
    _stopped_job(target)
    return [_ending(target)]


@scenario("large-step-sigterm")
def large_step_sigterm(target: Target) -> list[Figure]:
    """SIGTERM in the middle of a step of 4,096 batches."""
    target.begin(large_step("large-step"), until="started")
    time.sleep(2.0)
    return [_ending(target)]


def _ending(target: Target) -> Figure:
    target.collect()
    target.may_end = True
    seconds = target.server.terminate()
    code = target.server.exit_code
    return Figure("ended after SIGTERM", seconds, "s", GRACE_S + _SLACK_S, f"exit code {code}")


def _queued(target: Target) -> str:
    """Returns a job that waits behind one that trains."""
    corpus = template.words(20_000).encode()
    target.begin(template.upload(template.endless_spec("first"), corpus))
    return target.begin(template.upload(template.spec("second"), corpus), until="state")


def _stepping(target: Target) -> str:
    """Returns a job that trains."""
    spec = template.endless_spec("stepping")
    return target.begin(template.upload(spec, template.words(20_000).encode()))


def _preparing(target: Target) -> str:
    """Returns a job that learns subwords from its corpus."""
    words = pb.TokenizerSpec(kind=pb.TOKENIZER_KIND_SUBWORDS, max_vocabulary_size=5000)
    corpus = template.words(target.few(12_000_000), 3).encode()
    spec = template.endless_spec("preparing", tokenizer=words)
    job = target.begin(template.upload(spec, corpus), until="state")
    time.sleep(2.0)
    return job


def _validating(target: Target) -> str:
    """Returns a job whose validation after each step takes long."""
    spec = template.endless_spec(
        "validating",
        network=pb.NetworkSpec(hidden_size=512),
        data=pb.DataSpec(validation_fraction=0.9),
        limits=pb.LimitsSpec(max_steps=2),
        report=pb.ReportSpec(validation_interval_steps=1, progress_interval_s=0.1),
    )
    corpus = template.words(target.few(4_000_000)).encode()
    job = target.begin(template.upload(spec, corpus), until="started")
    time.sleep(2.0)
    return job


_STATES: dict[str, Callable[[Target], str]] = {
    "queued": _queued,
    "stepping": _stepping,
    "preparing": _preparing,
    "validating": _validating,
}


def _stop_in_every_state(target: Target, stop: Callable[[str], object]) -> list[Figure]:
    """Stops a job in each state; shows the slowest of them."""
    answers: dict[str, float] = {}
    frees: dict[str, float] = {}
    for state, begin in _STATES.items():
        job = begin(target)
        answers[state], _ = timed(partial(stop, job))
        if state == "queued":  # the one before it continues
            for running in target.stub.ListJobs(pb.ListJobsRequest(), timeout=60.0).jobs:
                if running.state == pb.JOB_STATE_RUNNING:
                    target.stub.CancelJob(pb.CancelJobRequest(job=running.id), timeout=60.0)
        frees[state] = target.seconds_until_free(_GIVE_UP_S)
    slowest = max(answers, key=lambda state: answers[state])
    busiest = max(frees, key=lambda state: frees[state])
    return [
        Figure("slowest answer", answers[slowest], "s", ANSWER_S, slowest),
        Figure("slot free after", frees[busiest], "s", SLOT_S, busiest),
    ]


@scenario("cancel-in-every-state")
def cancel_in_every_state(target: Target) -> list[Figure]:
    """CancelJob while queued, stepping, preparing, validating; then SIGTERM while preparing."""

    def cancel(job: str) -> object:
        return target.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=_GIVE_UP_S)

    figures = _stop_in_every_state(target, cancel)
    _preparing(target)
    return [*figures, _ending(target)]


@scenario("pause-in-every-state")
def pause_in_every_state(target: Target) -> list[Figure]:
    """PauseJob while queued, stepping, preparing, validating; then SIGTERM while validating."""

    def pause(job: str) -> object:
        return target.stub.PauseJob(pb.PauseJobRequest(job=job), timeout=_GIVE_UP_S)

    figures = _stop_in_every_state(target, pause)
    _validating(target)
    return [*figures, _ending(target)]


@scenario("long-context")
def long_context(target: Target) -> list[Figure]:
    """Scores of 1,000 short texts after a context of 400,000 characters."""
    request = pb.ScoreRequest(
        model="characters",
        context=template.words(target.few(400_000)),
        texts=["abc def"] * 1000,
    )
    seconds, status = timed(lambda: target.stub.Score(request, timeout=30.0))
    return [Figure("answered after", seconds, "s", 10.0, status)]
