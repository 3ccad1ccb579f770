"""`many_states` and others attack what callers share: the event loop and its threads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.target import (
    MESSAGE,
    STALL_MS,
    Target,
    aio_status,
    counted,
    scenario,
    timed,
)
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub

_MODELS = 2000
_JOBS = 990


@scenario("many-states", stall_ms=STALL_MS)
def many_states(target: Target) -> list[Figure]:
    """ListJobs with 4 MB of states."""
    request = pb.ListJobsRequest(states=[pb.JOB_STATE_QUEUED] * MESSAGE)
    seconds, status = timed(lambda: target.stub.ListJobs(request, timeout=60.0))
    return [Figure("answered after", seconds, "s", note=status), _internal(status)]


def _internal(status: str) -> Figure:
    return Figure("INTERNAL", float(status in ("INTERNAL", "UNKNOWN")), "", 0.0, status)


@scenario("token-biases", stall_ms=STALL_MS)
def token_biases(target: Target) -> list[Figure]:
    """Generates with 1.3 million empty token biases."""
    request = pb.GenerateRequest(
        model="characters", max_new_tokens=1, token_biases=[pb.TokenBias()] * (MESSAGE // 3)
    )
    seconds, status = timed(lambda: list(target.stub.Generate(request, timeout=60.0)))
    return [Figure("answered after", seconds, "s", note=status)]


@scenario("long-subwords", stall_ms=STALL_MS)
def long_subwords(target: Target) -> list[Figure]:
    """A text of 4 MB for a subword model of lower case, whose sigmas depend on their neighbours."""
    text = "ΑΣ " + template.letters(target.few(MESSAGE) - 10)
    score = pb.ScoreRequest(model="subwords", texts=[text])
    generate = pb.GenerateRequest(model="subwords", prompt=text, max_new_tokens=1)
    scored, status = timed(lambda: target.stub.Score(score, timeout=30.0))
    made, other = timed(lambda: list(target.stub.Generate(generate, timeout=30.0)))
    return [
        Figure("Score answered after", scored, "s", note=status),
        Figure("Generate answered after", made, "s", note=other),
    ]


def _queue_jobs(folder: Path, data_dir: Path) -> None:
    template.add_jobs(folder, data_dir, _JOBS)


@scenario("list-queued", prepare=_queue_jobs, stall_ms=STALL_MS)
def list_queued(target: Target) -> list[Figure]:
    """ListJobs of 1,000 jobs while 990 wait."""
    request = pb.ListJobsRequest(page_size=1000)
    worst = max(timed(lambda: target.stub.ListJobs(request, timeout=60.0))[0] for _ in range(5))
    return [Figure("answered after", worst, "s", 1.0)]


@scenario("beam-of-60000", stall_ms=STALL_MS)
def beam_of_60000(target: Target) -> list[Figure]:
    """best_of with 60,000 tokens and alternatives: no work may be lost at the end."""
    request = pb.GenerateRequest(
        model="characters",
        prompt="a",
        best_of=2,
        n=1,
        top_log_probabilities=20,
        max_new_tokens=target.few(60_000),
    )
    largest = 0
    status = "OK"
    began = time.perf_counter()
    try:
        for reply in target.stub.Generate(request, timeout=60.0):
            largest = max(largest, reply.ByteSize())
    except grpc.RpcError as error:
        status = error.code().name
    seconds = time.perf_counter() - began
    # A refusal at once costs nothing; one after the work has lost it.
    lost = status != "OK" and seconds > 1.0
    return [
        Figure("work lost", float(lost), "", 0.0, f"{status} after {seconds:.1f} s"),
        Figure("largest reply", largest / 1e6, "MB", 4.2),
    ]


def _copy_models(folder: Path, data_dir: Path) -> None:
    source = template.model_dir(data_dir, "log")
    for number in range(_MODELS):
        place = template.model_dir(data_dir, f"copy-{number:04d}")
        place.mkdir(parents=True)
        for file in source.iterdir():
            os.link(file, place / file.name)


@scenario("list-many-models", prepare=_copy_models, stall_ms=STALL_MS)
def list_many_models(target: Target) -> list[Figure]:
    """24 callers of ListModels(1000) with 2,000 models, while somebody trains."""
    ended = threading.Event()
    statuses: list[str] = []

    async def list_on(stub: AsyncStub) -> None:
        async def keep_listing() -> None:
            request = pb.ListModelsRequest(page_size=1000)
            while not ended.is_set():
                statuses.append(await aio_status(stub.ListModels(request, timeout=60.0)))

        await asyncio.gather(*(keep_listing() for _ in range(24)))

    thread = threading.Thread(target=target.run, args=(list_on,))
    thread.start()
    corpus = template.words(5000).encode()

    def is_taken() -> bool:
        call = target.train(template.upload(template.spec("other"), corpus), timeout=30.0)
        next(call)
        call.cancel()
        return True

    try:
        time.sleep(1.0)
        seconds = target.seconds_until(is_taken, 30.0)
    finally:
        ended.set()
        thread.join()
    note = counted(statuses)
    return [Figure("Train answered after", seconds, "s", 2.0, note)]


@scenario("many-watchers", stall_ms=STALL_MS)
def many_watchers(target: Target) -> list[Figure]:
    """1,000 watchers of a job that reports every 50 ms, while somebody generates."""
    report = pb.ReportSpec(
        progress_interval_s=0.05, sample_tokens=0, validation_interval_steps=10**12
    )
    spec = template.endless_spec("watched", report=report)
    job = target.begin(template.upload(spec, template.words(50_000).encode()))
    ended = threading.Event()

    async def watch(stub: AsyncStub) -> None:
        async def follow() -> None:
            async for _ in stub.WatchJob(pb.WatchJobRequest(job=job), timeout=60.0):
                pass

        count = target.few(1000)
        tasks = [asyncio.create_task(aio_status(follow())) for _ in range(count)]
        while not ended.is_set():
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    thread = threading.Thread(target=target.run, args=(watch,))
    thread.start()
    times = []
    try:
        time.sleep(3.0)
        until = time.monotonic() + (2.0 if target.is_quick else 6.0)
        while time.monotonic() < until:
            times.append(timed(target.generates)[0])
    finally:
        ended.set()
        thread.join()
    return [Figure("Generate answered after", max(times), "s", 0.5, f"{len(times)} calls")]


@scenario("slow-expressions")
def slow_expressions(target: Target) -> list[Figure]:
    """12 expressions that take long to make, while a small one waits."""
    hostile = [
        f"(({'ab'[number % 2]}|b)*a(a|b){{{12 + number % 3}}}){number}" for number in range(12)
    ]

    async def ask(stub: AsyncStub) -> tuple[float, list[str]]:
        async def read(regex: str) -> None:
            request = pb.GenerateRequest(model="characters", regex=regex, max_new_tokens=20)
            async for _ in stub.Generate(request, timeout=60.0):
                pass

        tasks = [asyncio.create_task(aio_status(read(regex))) for regex in hostile]
        await asyncio.sleep(0.3)
        began = time.perf_counter()
        small = await aio_status(read("[a-z]{2,8}"))
        seconds = time.perf_counter() - began
        statuses = [small]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        return seconds, statuses

    seconds, statuses = target.run(ask)
    return [Figure("small expression after", seconds, "s", 5.0, counted(statuses))]
