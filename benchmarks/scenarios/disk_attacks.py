"""`full_disk` and others attack the disk: multiplied corpora, broken uploads, leftovers."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.memory_use import MIB
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.target import Target, counted, scenario, status_of, timed
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub

_DISK_BYTES = 1024 * MIB
_DAY_S = 86_400.0


def _small_disk(folder: Path, data_dir: Path) -> None:
    """Puts the data directory on a disk of its own: others write to the machine's."""
    kept = data_dir.with_name("kept")
    shutil.move(data_dir, kept)
    data_dir.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "abuse", str(data_dir)],
        capture_output=True,
    )
    if done.returncode:
        data_dir.rmdir()
        shutil.move(kept, data_dir)
        return
    shutil.copytree(kept, data_dir, dirs_exist_ok=True)
    shutil.rmtree(kept)


_MIN_FREE = 512 * MIB
_SMALL_DISK = ("--min-free-bytes", str(_MIN_FREE), "--training-slots", "2")


@scenario("weight-100", prepare=_small_disk, flags=_SMALL_DISK)
def weight_100(target: Target) -> list[Figure]:
    """A corpus of 4 MB that is read 100 times a pass, on a disk that is to keep 512 MiB free."""
    if not os.path.ismount(target.data_dir):
        return [Figure("not measured", None, note="a small disk needs root to mount a tmpfs")]
    bystander = target.begin(
        template.upload(template.endless_spec("bystander"), template.words(50_000).encode())
    )
    corpus = template.words(4_000_000).encode()
    call = target.train(
        [
            pb.TrainRequest(spec=template.endless_spec("heavy")),
            pb.TrainRequest(corpus_file=pb.CorpusFile(name="a", weight=100.0)),
            *(
                pb.TrainRequest(corpus_chunk=corpus[start : start + (1 << 20)])
                for start in range(0, len(corpus), 1 << 20)
            ),
            pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus))),
        ]
    )
    with suppress(grpc.RpcError):
        next(call)
    call.cancel()
    least = _free(target.data_dir)
    paused = 0
    until = time.monotonic() + (5.0 if target.is_quick else 20.0)
    while time.monotonic() < until:
        least = min(least, _free(target.data_dir))
        paused = max(paused, target.job(bystander).state == pb.JOB_STATE_PAUSED)
        time.sleep(0.1)
    return [
        Figure("below min_free_bytes by", max(0, _MIN_FREE - least) / MIB, "MiB", 8.0),
        Figure("other jobs paused", float(paused), "", 0.0),
    ]


@scenario("full-disk", prepare=_small_disk, flags=("--training-slots", "2"))
def full_disk(target: Target) -> list[Figure]:
    """PauseJob and CancelJob on a disk that is full to the last byte; then SIGTERM."""
    if not os.path.ismount(target.data_dir):
        return [Figure("not measured", None, note="a small disk needs root to mount a tmpfs")]
    corpus = template.words(50_000).encode()
    first, second = (
        target.begin(template.upload(template.endless_spec(name), corpus)) for name in ("a", "b")
    )
    with (target.data_dir / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 65536)
    pause = pb.PauseJobRequest(job=first)
    cancel = pb.CancelJobRequest(job=second)
    paused, status = timed(lambda: target.stub.PauseJob(pause, timeout=45.0))
    cancelled, other = timed(lambda: target.stub.CancelJob(cancel, timeout=45.0))
    free = target.seconds_until_free(45.0)
    target.collect()
    target.may_end = True
    return [
        Figure("PauseJob answered after", paused, "s", 1.0, status),
        Figure("CancelJob answered after", cancelled, "s", 1.0, other),
        Figure("slots free after", free, "s", 40.0),
        Figure("ended after SIGTERM", target.server.terminate(), "s", 9.0),
    ]


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _files(path: Path) -> set[str]:
    return {str(file) for file in path.rglob("*") if file.is_file()} if path.exists() else set()


@scenario("broken-upload")
def broken_upload(target: Target) -> list[Figure]:
    """An upload of 50 files that ends without its end."""
    before = _files(target.data_dir / "corpora")
    messages = [pb.TrainRequest(spec=template.spec("broken"))]
    for number in range(50):
        messages.append(pb.TrainRequest(corpus_file=pb.CorpusFile(name=f"f{number}")))
        messages.append(pb.TrainRequest(corpus_chunk=template.words(20_000, number).encode()))
    status = status_of(lambda: list(target.train(messages)))
    time.sleep(2.0)
    left = _files(target.data_dir / "corpora") - before
    return [Figure("files left", float(len(left)), "", 0.0, status)]


@scenario("cancelled-uploads")
def cancelled_uploads(target: Target) -> list[Figure]:
    """1,000 uploads that are cancelled at random moments."""
    draw = random.Random(7)
    files_before = _files(target.data_dir / "tmp") | _files(target.data_dir / "corpora")

    async def upload(delay_s: float) -> AsyncIterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=template.spec("cancelled"))
        yield pb.TrainRequest(corpus_file=pb.CorpusFile(name="a"))
        while True:
            yield pb.TrainRequest(corpus_chunk=draw.randbytes(1000))
            await asyncio.sleep(delay_s)

    async def attack(stub: AsyncStub) -> None:
        async def one() -> None:
            for _ in range(target.few(1000) // 10):
                call = stub.Train(upload(draw.uniform(0, 0.002)))
                await asyncio.sleep(draw.uniform(0, 0.02))
                call.cancel()

        await asyncio.gather(*(one() for _ in range(10)))

    open_before = target.server.open_files()
    target.run(attack)
    time.sleep(3.0)
    left = (_files(target.data_dir / "tmp") | _files(target.data_dir / "corpora")) - files_before
    return [
        Figure("files left", float(len(left)), "", 0.0),
        Figure("descriptors left", float(target.server.open_files() - open_before), "", 5.0),
    ]


_KILLED = ("--checkpoint-interval-s", "0.5", "--max-restarts", "1000", "--standby-workers", "0")


@scenario("killed-workers", flags=_KILLED)
def killed_workers(target: Target) -> list[Figure]:
    """A job whose process is killed whenever it has begun to write a file: what do they leave?"""
    spec = template.endless_spec("killed", network=pb.NetworkSpec(hidden_size=1024))
    job = target.begin(template.upload(spec, template.words(100_000).encode()))
    jobs = target.data_dir / "jobs"
    kills = 0
    until = time.monotonic() + (5.0 if target.is_quick else 15.0)
    while time.monotonic() < until:
        if _unfinished(jobs):
            for pid in target.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            target.seconds_until(lambda: bool(target.workers()), 5.0)
            time.sleep(2.0)  # what the killed one left is not what the next one writes
        time.sleep(0.002)
    with suppress(grpc.RpcError):
        target.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=30.0)
    target.seconds_until_free(20.0)
    time.sleep(1.0)
    left = _unfinished(jobs)
    return [Figure("files left", float(len(left)), "", 0.0, f"{kills} kills")]


def _unfinished(jobs: Path) -> list[str]:
    return [str(file) for file in jobs.glob("*/*.tmp")]


def _finished_long_ago(folder: Path, data_dir: Path) -> None:
    """Makes all that there is 40 days old, which is what a clock 40 days ahead sees."""
    now = time.time()
    ended = {"state": "succeeded", "started_s": now - 10, "ended_s": now}
    template.add_jobs(folder, data_dir, 20, **ended)
    shift = 40 * _DAY_S
    template.execute(
        data_dir,
        f"UPDATE jobs SET created_s = created_s - {shift}, queued_s = queued_s - {shift}, "
        f"started_s = started_s - {shift}, ended_s = ended_s - {shift}",
    )
    (data_dir / "clock").unlink(missing_ok=True)  # where a server keeps the time known last
    template.execute(data_dir, f"UPDATE events SET time_s = time_s - {shift}")
    template.execute(data_dir, f"UPDATE corpora SET used_s = used_s - {shift}")
    for file in data_dir.rglob("*"):
        if file.name != template.MODEL_FILE:
            moved = file.stat().st_mtime - shift
            os.utime(file, (moved, moved))


@scenario("clock-ahead", prepare=_finished_long_ago)
def clock_ahead(target: Target) -> list[Figure]:
    """A start with a clock 40 days ahead: what is deleted at once?"""
    time.sleep(2.0 if target.is_quick else 6.0)
    jobs = target.stub.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=30.0).jobs
    left = sum(1 for job in jobs if job.id.startswith("job-"))
    corpora = _files(target.data_dir / "corpora")
    return [
        Figure("jobs deleted", 20.0 - left, "", 0.0),
        Figure("corpora deleted", float(not corpora), "", 0.0),
    ]


@scenario("many-aliases")
def many_aliases(target: Target) -> list[Figure]:
    """SetAlias until it is refused, at most 3,000 times; then the model is described."""

    async def attack(stub: AsyncStub) -> list[str]:
        statuses = []

        async def name(first: int) -> None:
            for number in range(first, first + target.few(3000) // 10):
                request = pb.SetAliasRequest(model="log", alias=f"alias-{number}", version=1)
                try:
                    await stub.SetAlias(request, timeout=30.0)
                    statuses.append("OK")
                except grpc.aio.AioRpcError as error:
                    statuses.append(error.code().name)
                    return

        await asyncio.gather(*(name(first * 1000) for first in range(10)))
        return statuses

    statuses = target.run(attack)
    named = statuses.count("OK")
    return [Figure("aliases of one version", float(named), "", 100.0, counted(statuses))]
