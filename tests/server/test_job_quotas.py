"""Callers take turns in the training queue, and have quotas of jobs and of bytes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.access.caller import Caller, Role, set_current_caller
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.quotas import Quotas
from treadle.server.errors import StatusError
from treadle.server.jobs.job_queue import JobLimits
from treadle.server.jobs.manager import JobManager
from treadle.server.jobs.submissions.submission import Submission
from treadle.server.jobs.worker_request import RunLimits
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.upload_pace import UploadLimits
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.upload_files import UploadFiles
from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, until
from .samples import job_row
from .test_jobs import FakeWorkerPool, StubbornWorker

SIZE = len(TEXT)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


class Place:
    """A queue, and what puts jobs into it."""

    def __init__(self, data_dir: DataDir, slots: int = 1) -> None:
        self.quotas = dict[str, Quotas]()
        self.book = QuotaBook(self.quotas.get)
        limits = RunLimits(1, checkpoint_interval_s=1.0, min_free_bytes=0, max_run_s=0)
        pool = FakeWorkerPool(StubbornWorker)
        self.manager = JobManager(
            data_dir, pool, JobLimits(slots, 99, 9, 2), limits, quotas=self.book
        )
        upload = UploadLimits(1 << 20, 60.0)
        self.submission = Submission(
            data_dir, self.manager, upload, None, MemoryBudget(1 << 30), self.book
        )

    async def submit(
        self,
        owner: str,
        model: str = "m",
        corpus: bytes = TEXT,
        end: asyncio.Event | None = None,
        request_id: str = "",
    ) -> str:
        """Submits a job as a caller."""

        async def requests() -> AsyncIterator[pb.TrainRequest]:
            yield pb.TrainRequest(spec=pb.TrainSpec(model=model, request_id=request_id))
            yield pb.TrainRequest(corpus_chunk=corpus)
            if end is not None:
                await end.wait()
            yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(corpus)))

        async def call() -> str:
            quotas = self.quotas.get(owner, Quotas())
            set_current_caller(Caller(owner, Role.TRAINER, quotas=quotas))
            return await self.submission.take(requests())

        return await asyncio.create_task(call())  # a context of its own, as each call has

    def running(self) -> list[str]:
        return [job.id for job in self.manager.queue.running]

    async def end_running(self) -> None:
        """Cancels the jobs that run, and waits until others do."""
        before = self.running()
        for job in before:
            await self.manager.decisions.cancel(job)
        await until(lambda: not set(before) & set(self.running()))


def in_place(
    data_dir: DataDir, run: Callable[[Place], Coroutine[Any, Any, None]], slots: int = 1
) -> None:
    async def whole() -> None:
        place = Place(data_dir, slots)
        try:
            await run(place)
        finally:
            await place.manager.close("the test is over")
            await place.manager.kill()

    asyncio.run(whole())


async def refused(submitting: Coroutine[Any, Any, object]) -> StatusError:
    """Returns the error of a submission that is beyond a quota."""
    with pytest.raises(StatusError) as caught:
        await submitting
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    kinds = {type(detail) for detail in caught.value.details}
    assert {error_details_pb2.QuotaFailure, error_details_pb2.RetryInfo} <= kinds
    return caught.value


def quota_of(error: StatusError) -> str:
    failure = next(d for d in error.details if isinstance(d, error_details_pb2.QuotaFailure))
    return str(failure.violations[0].quota_id)


def test_callers_take_turns_whatever_the_length_of_their_queues(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        ann = [await place.submit("ann") for _ in range(5)]
        bob = [await place.submit("bob") for _ in range(2)]
        cat = [await place.submit("cat")]
        fair = [ann[0], bob[0], cat[0], ann[1], bob[1], *ann[2:]]
        assert list(place.manager.queue.positions()) == fair
        place.manager.open()
        for job in fair:
            assert place.running() == [job]
            waiting = fair[fair.index(job) + 1 :]
            assert list(place.manager.queue.positions()) == waiting
            await place.end_running()

    in_place(data_dir, run)


def test_the_caller_that_started_last_is_last(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        place.manager.open()
        first = await place.submit("ann")
        second = await place.submit("ann")
        other = await place.submit("bob")
        assert place.running() == [first]
        await place.end_running()
        assert place.running() == [other]
        await place.end_running()
        assert place.running() == [second]

    in_place(data_dir, run)


def test_without_callers_the_oldest_job_is_the_next(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        jobs = [await place.submit("") for _ in range(4)]
        assert list(place.manager.queue.positions()) == jobs

    in_place(data_dir, run)


def test_as_many_jobs_run_as_the_quota_allows_and_slots_do_not_stay_empty(
    data_dir: DataDir,
) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(jobs_running=1)
        ann = [await place.submit("ann") for _ in range(3)]
        bob = [await place.submit("bob") for _ in range(2)]
        place.manager.open()
        assert sorted(place.running()) == sorted([ann[0], *bob])
        assert place.manager.queue.running_of("ann") == 1
        await place.end_running()
        assert place.running() == [ann[1]]
        place.quotas["ann"] = Quotas()  # the file of callers was changed
        place.manager.queue.schedule()
        assert place.running() == ann[1:]

    in_place(data_dir, run, slots=3)


def test_jobs_that_wait_are_counted_with_those_that_upload(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(jobs_queued=2)
        await place.submit("ann")
        end = asyncio.Event()
        uploading = asyncio.create_task(place.submit("ann", end=end))
        use = place.book.of(Caller("ann", Role.TRAINER, quotas=place.quotas["ann"]))
        await until(lambda: use.uploads == 1)
        error = await refused(place.submit("ann"))
        assert quota_of(error) == "jobs_queued"
        assert "2 of 2 jobs wait" in error.message
        await place.submit("bob")
        end.set()
        await uploading
        assert use.uploads == 0
        assert quota_of(await refused(place.submit("ann"))) == "jobs_queued"
        place.manager.open()  # one of them runs now
        await place.submit("ann")

    in_place(data_dir, run)


def test_a_paused_job_counts_as_one_that_waits(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(jobs_queued=1)
        job = await place.submit("ann")
        await place.manager.decisions.pause(job)
        await refused(place.submit("ann"))
        await place.manager.decisions.delete(job)
        await place.submit("ann")

    in_place(data_dir, run)


def test_uploads_that_repeat_others_are_counted_as_well(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(jobs_queued=1)
        job = await place.submit("ann", request_id="once")
        end = asyncio.Event()
        again = asyncio.create_task(place.submit("ann", end=end, request_id="once"))
        use = place.book.of(Caller("ann", Role.TRAINER, quotas=place.quotas["ann"]))
        await until(lambda: use.repeats == 1)
        assert quota_of(await refused(place.submit("ann", request_id="once"))) == "jobs_queued"
        end.set()
        assert await again == job
        assert await place.submit("ann", request_id="once") == job
        assert use.repeats == 0

    in_place(data_dir, run)


def test_a_call_that_is_ended_while_its_job_is_stored_leaves_a_whole_job_and_ends(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(place: Place) -> None:
        storing = threading.Event()
        ended = threading.Event()
        store = UploadFiles.store

        def slow(files: UploadFiles) -> None:
            storing.set()
            assert ended.wait(60)
            store(files)

        monkeypatch.setattr(UploadFiles, "store", slow)
        call = asyncio.create_task(place.submit("ann"))
        await until(storing.is_set)
        call.cancel()  # as the interceptor does where a token is revoked
        await asyncio.sleep(0)
        ended.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        [row] = data_dir.database.jobs()
        assert list(place.manager.queue.positions()) == [row.id]
        assert data_dir.corpora.has(hashlib.sha256(TEXT).hexdigest())

    in_place(data_dir, run)


def test_bytes_of_corpora_are_counted_once_for_equal_ones(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(corpus_bytes=2 * SIZE + 10)
        await place.submit("ann")
        await place.submit("ann")  # the same corpus
        assert (await place.submission.stored_use("ann")).corpus_bytes == SIZE
        error = await refused(place.submit("ann", corpus=b"x" * (SIZE + 11)))
        assert quota_of(error) == "corpus_bytes"
        await place.submit("bob", corpus=b"x" * (SIZE + 11))
        await place.submit("ann", corpus=b"x" * (SIZE + 10))
        assert (await place.submission.stored_use("ann")).corpus_bytes == 2 * SIZE + 10
        assert quota_of(await refused(place.submit("ann", corpus=b"y"))) == "corpus_bytes"
        assert (await place.submission.stored_use("bob")).corpus_bytes == SIZE + 11

    in_place(data_dir, run)


def test_a_corpus_that_is_refused_leaves_nothing(data_dir: DataDir, tmp_path: Path) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(corpus_bytes=SIZE - 1)
        await refused(place.submit("ann"))
        stored = tmp_path / "corpora" / hashlib.sha256(TEXT).hexdigest()
        assert not stored.exists()
        place.quotas["ann"] = Quotas(corpus_bytes=SIZE)
        await place.submit("ann")  # what was refused does not count
        assert stored.exists()

    in_place(data_dir, run)


def test_uploads_at_once_cannot_pass_the_quota_together(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(corpus_bytes=1000)
        corpora = [bytes([65 + number]) * 400 for number in range(4)]
        uploads = [place.submit("ann", corpus=corpus) for corpus in corpora]
        ended = await asyncio.gather(*uploads, return_exceptions=True)
        stored = (await place.submission.stored_use("ann")).corpus_bytes
        assert stored == 400 * sum(isinstance(each, str) for each in ended)
        assert 0 < stored <= 1000

    in_place(data_dir, run)


def test_bytes_of_models_are_those_that_are_stored(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        data_dir.database.set_version_owner("m", 1, "ann", 500_000, 0.0)
        place.quotas["ann"] = Quotas(model_bytes=500_000)
        error = await refused(place.submit("ann"))
        assert quota_of(error) == "model_bytes"
        assert "500,000 of 500,000 bytes of models are stored or being trained" in error.message
        await place.submit("bob")
        data_dir.database.forget_versions("m", [1])
        await place.submit("ann")

    in_place(data_dir, run)


def test_models_that_jobs_will_make_have_to_fit_into_the_quota(data_dir: DataDir) -> None:
    async def run(place: Place) -> None:
        weights = 396_036  # of the default network, without its vocabulary
        place.quotas["ann"] = Quotas(model_bytes=weights - 1)
        error = await refused(place.submit("ann"))
        assert quota_of(error) == "model_bytes"
        assert f"and the new one has {weights:,}" in error.message
        place.quotas["ann"] = Quotas(model_bytes=2 * weights)
        jobs = [await place.submit("ann") for _ in range(2)]
        assert quota_of(await refused(place.submit("ann"))) == "model_bytes"
        await place.submit("bob")
        await place.manager.decisions.pause(jobs[0])
        await place.manager.decisions.delete(jobs[0])
        await place.submit("ann")

    in_place(data_dir, run)


def test_weights_that_a_job_keeps_after_its_end_count(data_dir: DataDir) -> None:
    data_dir.database.add_job(job_row("a0", owner="ann", state="succeeded"))
    kept = data_dir.jobs.directory("a0") / "last.safetensors"
    kept.write_bytes(b"x" * 500_000)

    async def run(place: Place) -> None:
        place.quotas["ann"] = Quotas(model_bytes=500_000)
        assert (await place.submission.stored_use("ann")).model_bytes == 500_000
        assert quota_of(await refused(place.submit("ann"))) == "model_bytes"
        other = data_dir.jobs.directory("b0") / "model"
        other.hardlink_to(kept)
        assert (await place.submission.stored_use("ann")).model_bytes == 0  # it counts there
        await place.submit("ann")

    in_place(data_dir, run)


@pytest.mark.parametrize("state", ["succeeded", "cancelled"])
def test_what_the_end_of_a_job_is_about_to_remove_does_not_count(
    data_dir: DataDir, state: str
) -> None:
    """The end is recorded first, and the caller may train again at once."""
    data_dir.database.add_job(job_row("a0", owner="ann", state=state))
    data_dir.database.add_job(job_row("a1", owner="ann", state="failed"))
    files = ["state.safetensors", "state.safetensors.previous", "final.safetensors", "x.tmp"]
    for job in ("a0", "a1"):
        for name in (*files, "best.safetensors"):
            (data_dir.jobs.directory(job) / name).write_bytes(b"x" * 1000)

    async def run(place: Place) -> None:
        # A failed job keeps its checkpoint.
        assert (await place.submission.stored_use("ann")).model_bytes == 1000 + 5000

    in_place(data_dir, run)


def test_a_new_version_has_to_fit_into_the_quota() -> None:
    use = QuotaBook().of(Caller("ann", Role.TRAINER, quotas=Quotas(model_bytes=1000)))
    use.check_model_bytes(400, 600)
    with pytest.raises(StatusError, match="are stored or being trained, and the new one has 601"):
        use.check_model_bytes(400, 601)


def test_jobs_keep_their_owner_when_the_server_starts_again(data_dir: DataDir) -> None:
    for number in range(3):
        data_dir.database.add_job(job_row(f"a{number}", owner="ann", queued_s=float(number)))
    data_dir.database.add_job(job_row("b", owner="bob", queued_s=9.0))

    async def run(place: Place) -> None:
        await place.manager.recover()
        assert list(place.manager.queue.positions()) == ["a0", "b", "a1", "a2"]

    in_place(data_dir, run)
