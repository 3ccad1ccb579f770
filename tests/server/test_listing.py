"""Lists of many jobs, and many who watch, on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from treadle.server.storage.data_dir import DataDir
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, detail_of, first_progress, long_spec
from .samples import job_row

JOBS = 300
MESSAGE_BYTES = 4 << 20


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with jobs that take more than a message, and one place to watch."""
    root: Path = tmp_path_factory.mktemp("crowded") / "data"
    data_dir = DataDir(root)
    for number in range(JOBS):
        row = job_row(f"old-{number}", state="failed", reason="x" * 20_000, ended_s=1e10)
        data_dir.database.add_job(row, b"")
    data_dir.close()
    server = Server(root, "--watch-limit", "1", "--job-retention-s", "0")
    yield server
    server.close()


def test_a_page_of_jobs_ends_where_a_message_does(crowded: Server) -> None:
    seen = list[str]()
    token = ""
    pages = 0
    while True:
        request = pb.ListJobsRequest(page_size=1000, page_token=token)
        reply = crowded.caller.stub.ListJobs(request, timeout=PATIENCE_S)
        assert reply.ByteSize() <= MESSAGE_BYTES
        seen += [job.id for job in reply.jobs]
        pages += 1
        token = reply.next_page_token
        if not token:
            break
    assert pages == 2
    assert len(seen) == JOBS
    assert set(seen) == {f"old-{number}" for number in range(JOBS)}


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail_of(caught.value, "RetryInfo")


def test_watchers_are_counted(crowded: Server) -> None:
    caller = crowded.caller
    training = caller.train(long_spec("long"), TEXT)
    job = first_progress(training).job
    watching = caller.watch(job)
    assert next(watching).job == job
    refused(lambda: next(caller.watch(job)))
    refused(lambda: next(caller.train(long_spec("other"), TEXT)))
    caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S)
    list(watching)
    list(training)
    assert next(caller.watch(job)).sequence == 1
