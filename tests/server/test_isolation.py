"""Two tenants of one server: nothing of one shows in what the other gets to see.

What Bob gets to see of a thing of Ann's is compared, byte for byte, with what he gets to see of one
that does not exist.
"""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest

from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, first_progress, long_spec, requests, tiny_spec, wait_for
from .tenants import (
    CORPUS,
    FILE_PROBES,
    JOB_PROBES,
    READ_PROBES,
    SHA256,
    WRITE_PROBES,
    Company,
    Outcome,
    drain,
    stored,
    upload,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED

HERS = "team-a-names"
"""A model of Ann's."""
NONE = "team-a-ghost"
"""A name that no model has, and that Bob may not read either."""
GHOST = "team-b-ghost"
"""A name that no model has, and that Bob may read."""

REFERENCES: dict[str, dict[str, Any]] = {
    "the newest": {},
    "a version": {"version": 1},
    "a version that is not there": {"version": 7},
    "an alias": {"alias": "@prod"},
    "an alias that is not there": {"alias": "@ghost"},
    "the alias of the newest": {"alias": "@latest"},
    "a version and an alias": {"version": 1, "alias": "@prod"},
    "a bare mark": {"alias": "@"},
}
"""The ways to name a version of a model."""

THERE = ("the newest", "a version", "an alias", "the alias of the newest")
"""Those that name one of HERS."""


def named(name: str, reference: str) -> dict[str, Any]:
    fields = dict(REFERENCES[reference])
    return {"model": name + fields.pop("alias", "")} | fields


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("method", READ_PROBES)
def test_a_model_of_another_is_one_that_does_not_exist(
    company: Company, method: str, reference: str
) -> None:
    def seen(name: str) -> Outcome:
        return company["bob"].outcome(*READ_PROBES[method](**named(name, reference)))

    hers = seen(HERS)
    assert hers.code in (NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    assert hers.renamed(HERS, GHOST) == seen(GHOST)
    assert hers.renamed(HERS, NONE) == seen(NONE)
    if reference in THERE:
        request = READ_PROBES[method](**named(HERS, reference))
        assert company["ann"].code(*request) is grpc.StatusCode.OK


@pytest.mark.parametrize("reference", REFERENCES)
def test_nothing_is_trained_from_a_model_of_another(company: Company, reference: str) -> None:
    def seen(name: str) -> Outcome:
        fields = named(name, reference)
        spec = pb.TrainSpec(model="team-b-tuned", init_from=fields["model"])
        spec.init_from_version = fields.get("version", 0)
        return company["bob"].outcome("Train", upload(spec, TEXT))

    hers = seen(HERS)
    assert hers.code in (NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    assert hers.renamed(HERS, GHOST) == seen(GHOST)


def test_novelty_of_a_model_of_another_is_not_told(company: Company) -> None:
    def seen(name: str) -> Outcome:
        return company["bob"].outcome(*READ_PROBES["Generate"](model=name, novelty=True))

    assert seen(HERS).code is NOT_FOUND
    assert seen(HERS).renamed(HERS, GHOST) == seen(GHOST)


def test_a_state_of_another_is_of_no_use(company: Company) -> None:
    asked = pb.GenerateRequest(model="shared", prompt="abc", max_new_tokens=2, return_state=True)
    state = [*company["ann"].call("Generate", asked)][-1].result.state
    assert state

    def seen(caller: str, state: bytes) -> list[Outcome]:
        given = {"model": "shared", "state": state}
        return [
            company[caller].outcome(*READ_PROBES[method](**given))
            for method in ("Generate", "Score", "ScoreStream")
        ]

    assert {outcome.code for outcome in seen("ann", state)} == {grpc.StatusCode.OK}
    broken = state[:-1] + bytes([state[-1] ^ 1])
    for caller in ("bob", "mate", "root"):
        refused = seen(caller, state)
        assert {outcome.code for outcome in refused} == {grpc.StatusCode.INVALID_ARGUMENT}
        assert refused == seen(caller, broken)  # nor is it said that it is whole


@pytest.mark.parametrize("probe", WRITE_PROBES)
def test_a_name_that_may_not_be_written_is_denied_whether_it_exists_or_not(
    company: Company, probe: str
) -> None:
    def seen(name: str) -> Outcome:
        return company["bob"].outcome(*WRITE_PROBES[probe](name))

    assert seen(HERS).code is DENIED
    assert seen(HERS).renamed(HERS, NONE) == seen(NONE)
    assert seen("shared-2").code is DENIED  # which he may read
    assert seen("shared-2").renamed("shared-2", "shared-3") == seen("shared-3")
    assert company["ann"].call("GetModel", pb.GetModelRequest(model=HERS)).versions == [1]
    assert company["ann"].call("GetModel", pb.GetModelRequest(model="shared-2")).versions == [1]


@pytest.mark.parametrize("caller", ["bob", "mate"])
@pytest.mark.parametrize("job", ["ann-done", "ann-held", "old-jobs"])
@pytest.mark.parametrize("probe", JOB_PROBES)
def test_a_job_of_another_is_one_that_does_not_exist(
    company: Company, probe: str, job: str, caller: str
) -> None:
    def seen(name: str) -> Outcome:
        return company[caller].outcome(*JOB_PROBES[probe](name))

    ghost = "g" * len(job)
    assert seen(job).code is NOT_FOUND
    assert seen(job).renamed(job, ghost) == seen(ghost)
    # It is not only hidden: nothing was done with it.
    left = company["root"].call("GetJob", pb.GetJobRequest(job=job)).job
    assert left.state == (pb.JOB_STATE_PAUSED if job == "ann-held" else pb.JOB_STATE_SUCCEEDED)
    assert left.last_sequence == 1


def test_it_holds_the_other_way_round(company: Company) -> None:
    ann = company["ann"]
    for probe in READ_PROBES.values():
        hidden = ann.outcome(*probe(model="team-b-mine"))
        assert hidden.code is NOT_FOUND
        assert hidden.renamed("team-b-mine", "team-a-nope") == ann.outcome(
            *probe(model="team-a-nope")
        )
    for write in WRITE_PROBES.values():
        assert ann.code(*write("team-b-mine")) is DENIED
    for about in JOB_PROBES.values():
        hidden = ann.outcome(*about("bob-0"))
        assert hidden.code is NOT_FOUND
        assert hidden.renamed("bob-0", "bob-9") == ann.outcome(*about("bob-9"))


def test_a_damaged_job_of_another_is_one_that_does_not_exist(company: Company) -> None:
    for probe in ("GetJob", "WatchJob", "CancelJob", "DeleteJob"):
        outcome = company["bob"].outcome(*JOB_PROBES[probe]("ann-damaged"))
        assert outcome.code is NOT_FOUND, probe
    wrong = company["ann"].code(*JOB_PROBES["GetJob"]("ann-damaged"))
    assert wrong is grpc.StatusCode.DATA_LOSS


def test_only_admins_see_what_is_of_no_known_caller(company: Company) -> None:
    def ids(name: str) -> set[str]:
        return {job.id for page in company[name].jobs() for job in page.jobs}

    assert "old-jobs" in ids("root")
    for name in ("reader", "user", "ann", "mate", "bob"):
        assert "old-jobs" not in ids(name), name


def place_in(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_list_of_models_is_of_what_a_caller_may_read(company: Company, size: int) -> None:
    pages = [*company["bob"].models(page_size=size)]
    names = [model.name for page in pages for model in page.models]
    assert names == ["shared", "shared-2", "team-b-mine", "team-b-more"]
    assert [len(page.models) for page in pages[:-1]] == [size] * (len(pages) - 1)  # each is full
    for page in pages:
        assert b"team-a" not in place_in(page.next_page_token)
        assert b"team-a" not in page.SerializeToString()
    everything = [model.name for page in company["root"].models() for model in page.models]
    assert {*names, HERS} < {*everything}


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("fields", [{}, {"states": [pb.JOB_STATE_SUCCEEDED]}, {"model": HERS}])
def test_a_list_of_jobs_is_of_ones_own(company: Company, size: int, fields: dict[str, Any]) -> None:
    pages = [*company["bob"].jobs(page_size=size, **fields)]
    found = [job.id for page in pages for job in page.jobs if job.id.startswith("bob-")]
    assert found == [f"bob-{number}" for number in reversed(range(5))]
    full = [len(page.jobs) for page in pages[:-1]]
    assert full == [size] * len(full)
    for page in pages:
        assert b"ann" not in page.SerializeToString()
        assert b"ann" not in place_in(page.next_page_token)


def test_a_page_token_of_another_leads_to_nothing_of_another(company: Company) -> None:
    first = next(company["ann"].jobs(page_size=1))
    hers = first.next_page_token
    assert first.jobs[0].id.encode() in place_in(hers)
    [page] = company["bob"].jobs(page_token=hers)
    assert {job.owner for job in page.jobs} <= {"bob"}
    hers = next(company["ann"].models(page_size=3)).next_page_token
    assert b"team-a" in place_in(hers)
    [models] = company["bob"].models(page_token=hers)
    assert [model.name for model in models.models] == ["team-b-mine", "team-b-more"]


def test_a_corpus_of_another_is_one_that_is_not_stored(company: Company) -> None:
    ghost = "0123456789abcdef" * 4

    def seen(caller: str, sha256: str) -> Outcome:
        spec = pb.TrainSpec(model="team-b-names" if caller == "bob" else "team-a-fresh")
        # The size is wrong, so that nothing is trained where the corpus is found.
        stated = pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=99))
        messages = [*upload(spec, pb.CorpusFile(sha256=sha256))][:-1]
        return company[caller].outcome("Train", iter([*messages, stated]))

    for caller in ("bob", "mate"):
        assert seen(caller, SHA256).code is NOT_FOUND
        assert seen(caller, SHA256).renamed(SHA256, ghost) == seen(caller, ghost)
    for caller in ("ann", "root"):
        assert seen(caller, SHA256).code is grpc.StatusCode.INVALID_ARGUMENT
    # Bob has the bytes himself, and from now on may name their hash.
    [first, *_] = company["bob"].call("Train", requests(tiny_spec("team-b-names"), CORPUS))
    assert seen("bob", SHA256).code is grpc.StatusCode.INVALID_ARGUMENT
    assert seen("mate", SHA256).code is NOT_FOUND
    assert company["bob"].code("CancelJob", pb.CancelJobRequest(job=first.job)) in (
        grpc.StatusCode.OK,
        grpc.StatusCode.FAILED_PRECONDITION,
    )


def test_a_request_id_of_another_neither_finds_nor_blocks(company: Company) -> None:
    request_id = "order-1"
    jobs = {}
    for caller, model in (("ann", "team-a-orders"), ("bob", "team-b-orders")):
        spec = tiny_spec(model)
        spec.request_id = request_id
        events = company[caller].trained(spec, TEXT)
        assert events[-1].completed.name == model
        [jobs[caller]] = {event.job for event in events}
        again = company[caller].trained(spec, TEXT)
        assert {event.job for event in again} == {jobs[caller]}
    assert jobs["ann"] != jobs["bob"]
    other = tiny_spec("team-b-others")
    other.request_id = request_id
    refused = company["bob"].outcome("Train", requests(other, TEXT))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert refused.shows(jobs["bob"])
    assert not refused.shows(jobs["ann"])


def test_live_weights_and_the_queue_of_another_stay_hidden(company: Company) -> None:
    events = company["ann"].call("Train", requests(long_spec("team-a-long"), TEXT))
    job = first_progress(events).job
    try:
        ready = READ_PROBES["Generate"](job=job)
        wait_for(lambda: company["ann"].code(*ready) is grpc.StatusCode.OK)
        for probe in JOB_PROBES.values():
            assert company["bob"].code(*probe(job)) is NOT_FOUND
        for page in company["bob"].jobs():
            assert job not in {found.id for found in page.jobs}
        info = company["bob"].call("GetServerInfo", pb.GetServerInfoRequest())
        for field in (
            *("training_running", "training_queued", "inference_running", "sessions_running"),
            *("score_streams_running", "learning_running", "models_loaded"),
            *("models_loaded_bytes", "memory_used_bytes"),
        ):
            assert not getattr(info, field), field
        assert info.session_limit
        seen = company["root"].call("GetServerInfo", pb.GetServerInfoRequest())
        assert seen.training_running
        assert seen.models_loaded_bytes
        assert company["ann"].call("GetJob", pb.GetJobRequest(job=job)).job.owner == "ann"
    finally:
        assert company["ann"].code("CancelJob", pb.CancelJobRequest(job=job)) is grpc.StatusCode.OK
        events.cancel()


def test_what_one_makes_counts_as_ones_own(company: Company) -> None:
    drain(company["mate"].trained(tiny_spec("team-a-mates"), TEXT))
    info = company["mate"].call("GetServerInfo", pb.GetServerInfoRequest())
    [model] = [
        model
        for page in company["mate"].models()
        for model in page.models
        if model.name == "team-a-mates"
    ]
    stored = info.caller.use.model_bytes
    assert stored >= model.size_bytes
    assert info.caller.use.corpus_bytes == len(TEXT)
    request = pb.DeleteModelRequest(model="team-a-mates", all_versions=True)
    assert company["ann"].code("DeleteModel", request) is grpc.StatusCode.OK
    info = company["mate"].call("GetServerInfo", pb.GetServerInfoRequest())
    assert info.caller.use.model_bytes == stored - model.size_bytes  # what the job keeps
    [job] = company["mate"].call("ListJobs", pb.ListJobsRequest(model="team-a-mates")).jobs
    assert company["mate"].code("DeleteJob", pb.DeleteJobRequest(job=job.id)) is grpc.StatusCode.OK
    info = company["mate"].call("GetServerInfo", pb.GetServerInfoRequest())
    assert info.caller.use.model_bytes == 0


def test_a_job_does_not_go_on_for_a_model_that_its_caller_may_not_write(company: Company) -> None:
    """Rights may be taken from a caller while a job of it is paused."""
    resume = ("ResumeJob", pb.ResumeJobRequest(job="held-by-bob"))
    assert company["bob"].code(*resume) is DENIED
    described = company["bob"].call("GetJob", pb.GetJobRequest(job="held-by-bob"))
    assert described.job.state == pb.JOB_STATE_PAUSED


@pytest.mark.parametrize("method", FILE_PROBES)
def test_a_file_of_another_is_one_that_does_not_exist(company: Company, method: str) -> None:
    def seen(name: str) -> Outcome:
        return company["bob"].outcome(*FILE_PROBES[method](name))

    hers = seen("file-of-ann")
    assert hers.code is NOT_FOUND
    assert hers.renamed("file-of-ann", "file-of-bea") == seen("file-of-bea")
    listed = company["bob"].call("ListFiles", pb.ListFilesRequest()).files
    assert not [file for file in listed if file.owner != "bob"]
    assert company["ann"].code(*FILE_PROBES["GetFile"]("file-of-ann")) is grpc.StatusCode.OK


def test_a_file_of_another_gives_no_right_to_its_bytes(company: Company) -> None:
    file = company["ann"].call("UploadFile", stored("what only ann may know")).file
    assert file.owner == "ann"
    mine = pb.CorpusFile(sha256=file.sha256)
    spec = pb.TrainSpec(model="team-b-taken")
    assert company["bob"].code("Train", upload(spec, mine)) is NOT_FOUND
    assert company["bob"].call("ListFiles", pb.ListFilesRequest()).next_page_token == ""
