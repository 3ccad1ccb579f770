"""Jobs and aliases against a server that answers by rote."""

from __future__ import annotations

import pytest

from treadle.client import Client, InputError, NotFoundError
from treadle.v1 import sequence_pb2 as v1

from .fake import PAUSED, STUCK, FakeService


@pytest.fixture
def jobs(service: FakeService) -> list[str]:
    """The ids of five jobs, oldest first."""
    return [service.accept(v1.TrainSpec(model=name)) for name in ("m", STUCK, "m", PAUSED, "m")]


def test_all_pages_are_walked_newest_first(
    client: Client, service: FakeService, jobs: list[str]
) -> None:
    assert [job.id for job in client.jobs()] == jobs[::-1]
    assert [r.page_token for r in service.requests] == ["", "2", "4"]
    assert [job.id for job in client.jobs(page_size=1000)] == jobs[::-1]
    assert service.requests[-1].page_size == 1000


def test_jobs_are_filtered(client: Client, service: FakeService, jobs: list[str]) -> None:
    assert [job.id for job in client.jobs("running")] == [jobs[1]]
    assert [job.id for job in client.jobs(["running", "paused"])] == [jobs[3], jobs[1]]
    assert [job.id for job in client.jobs([v1.JOB_STATE_PAUSED])] == [jobs[3]]
    assert [job.id for job in client.jobs("succeeded", model="m")] == [jobs[4], jobs[2], jobs[0]]
    assert service.requests[-1] == v1.ListJobsRequest(
        states=[v1.JOB_STATE_SUCCEEDED], model="m", page_token="2"
    )
    with pytest.raises(InputError, match="states cannot be 'tired': it is one of queued, running"):
        next(client.jobs("tired"))  # type: ignore[arg-type]


def test_one_job(client: Client, jobs: list[str]) -> None:
    assert client.get_job(jobs[1]).model == STUCK
    assert client.pause_job(jobs[1]).reason == "pausing on request"
    assert client.get_job(jobs[1]).state == v1.JOB_STATE_PAUSED
    assert client.resume_job(jobs[1]).state == v1.JOB_STATE_QUEUED
    assert client.cancel_job(jobs[1]).state == v1.JOB_STATE_CANCELLED
    client.delete_job(jobs[1])
    with pytest.raises(NotFoundError, match=jobs[1]):
        client.get_job(jobs[1])


def test_aliases(client: Client, service: FakeService) -> None:
    assert list(client.set_alias("m", "stable", version=3).aliases) == ["stable"]
    client.delete_alias("m", "stable")
    assert service.requests == [
        v1.SetAliasRequest(model="m", alias="stable", version=3),
        v1.DeleteAliasRequest(model="m", alias="stable"),
    ]


def test_the_weights_of_a_job(client: Client, service: FakeService) -> None:
    client.generate_text(prompt="h", job="a1", job_weights="best")
    texts = ["x"] * 1001
    assert len(list(client.score("", texts, job="a1"))) == 1001
    assert service.requests[0] == v1.GenerateRequest(
        prompt="h", job="a1", job_weights=v1.JOB_WEIGHTS_BEST
    )
    assert [(r.job, r.model, r.version) for r in service.requests[1:]] == [("a1", "", 0)] * 2


@pytest.mark.parametrize(("model", "job"), [("", ""), ("m", "a1")])
def test_either_a_model_or_a_job(client: Client, model: str, job: str) -> None:
    with pytest.raises(InputError, match="either a model or a job"):
        client.generate(model, job=job)
    with pytest.raises(InputError, match="either a model or a job"):
        client.score_text(model, "x", job=job)


def test_an_alias_passes_through(client: Client, service: FakeService) -> None:
    client.generate_text("m@stable")
    assert service.requests[0].model == "m@stable"
