"""Train calls whose request id is known: the same order follows its job, another is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.errors import StatusError
from treadle.server.jobs.submissions import idempotency
from treadle.server.storage.schema import UNKNOWN_VERSION
from treadle.server.storage.upload_files import UploadedFile
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, Server, detail_of, fields_of, requests, tiny_spec
from .samples import job_row

Start = Callable[..., Server]


def ordered(name: str = "once") -> pb.TrainSpec:
    spec = tiny_spec(name, max_steps=1)
    spec.request_id = f"order of {name}"
    return spec


def parts(spec: pb.TrainSpec, *files: tuple[pb.CorpusFile, bytes]) -> Iterator[pb.TrainRequest]:
    """Yields the messages of an upload of several files."""
    yield pb.TrainRequest(spec=spec)
    for head, data in files:
        yield pb.TrainRequest(corpus_file=head)
        if data:
            yield pb.TrainRequest(corpus_chunk=data)
    size = sum(len(data) for _, data in files)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size))


def refusal(call: Callable[[], object], job: str) -> str:
    """Returns the sentence of an ALREADY_EXISTS that names a job."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS, caught.value
    resource = detail_of(caught.value, "ResourceInfo")
    assert isinstance(resource, error_details_pb2.ResourceInfo)
    assert resource.resource_name == job
    text = str(caught.value.details())
    assert job in text
    return text


@pytest.fixture(scope="module")
def first(server: Server) -> list[pb.JobEvent]:
    """The events of the job that the first order made."""
    return list(server.caller.train(ordered(), TEXT))


def test_the_same_order_follows_its_job(caller: Caller, first: list[pb.JobEvent]) -> None:
    job = first[0].job
    assert list(caller.train(ordered(), TEXT)) == first
    # In other chunks, as a file with a name, and by its hash.
    assert list(caller.train(ordered(), TEXT[:7], TEXT[7:])) == first
    named = parts(ordered(), (pb.CorpusFile(name="new name", weight=1), TEXT))
    assert list(caller.train(ordered(), source=named)) == first
    by_hash = parts(ordered(), (pb.CorpusFile(sha256=hashlib.sha256(TEXT).hexdigest()), b""))
    assert list(caller.train(ordered(), source=by_hash)) == first
    # A client that only comes back sends no corpus.
    assert list(caller.train(ordered(), source=[pb.TrainRequest(spec=ordered())])) == first
    assert [each.id for each in caller.jobs(model="once")] == [job]


def test_another_spec_is_refused_with_the_fields_that_differ(
    caller: Caller, first: list[pb.JobEvent]
) -> None:
    job = first[0].job
    spec = ordered()
    spec.network.hidden_size = 9
    spec.seed = 1
    text = refusal(lambda: list(caller.train(spec, TEXT)), job)
    assert "it differs in spec.network.hidden_size, spec.seed)" in text
    other = ordered()
    other.model = "twice"
    refusal(lambda: list(caller.train(other, TEXT)), job)
    # A value of 0 is not an unset one.
    zero = ordered()
    zero.data.validation_fraction = 0
    assert "data.validation_fraction" in refusal(lambda: list(caller.train(zero, TEXT)), job)
    # The spec alone is enough to be refused.
    refusal(lambda: list(caller.train(spec, source=[pb.TrainRequest(spec=spec)])), job)


def test_another_corpus_is_refused(caller: Caller, first: list[pb.JobEvent]) -> None:
    job = first[0].job
    stored = len(list(caller.jobs()))
    head = pb.CorpusFile
    others: list[Iterator[pb.TrainRequest]] = [
        requests(ordered(), TEXT + b"."),
        requests(ordered(), TEXT[:-1]),
        parts(ordered(), (head(weight=2), TEXT)),
        parts(ordered(), (head(), TEXT), (head(role=pb.CORPUS_ROLE_VALID), TEXT)),
        parts(ordered(), (head(), TEXT), (head(), TEXT)),
        parts(ordered(), (head(sha256="0" * 64), b"")),
    ]
    for source in others:
        text = refusal(lambda: list(caller.train(ordered(), source=source)), job)  # noqa: B023
        assert "with another corpus" in text
    assert len(list(caller.jobs())) == stored
    # What never was whole is no corpus.
    broken = [pb.TrainRequest(spec=ordered()), pb.TrainRequest(corpus_chunk=TEXT)]
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(ordered(), source=broken))
    assert fields_of(caught.value) == ["corpus_end"]


def test_two_orders_at_once_under_one_id_make_one_job(caller: Caller) -> None:
    def order(text: bytes) -> Any:
        try:
            return next(caller.train(ordered("race"), text)).job
        except grpc.RpcError as error:
            return error.code()

    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(order, [b"abcabcabc"] * 3 + [b"xyzxyzxyz"] * 3))
    [job] = [each.id for each in caller.jobs(model="race")]
    exists = grpc.StatusCode.ALREADY_EXISTS
    assert set(outcomes) == {job, exists}
    halves = [set(outcomes[:3]), set(outcomes[3:])]
    assert sorted(halves, key=str) == sorted([{job}, {exists}], key=str)


def test_an_order_may_be_repeated_though_the_newest_version_is_another_by_now(
    start: Start,
) -> None:
    caller = start().caller
    caller.trained(tiny_spec("base", max_steps=1), b"abcabc")
    spec = pb.TrainSpec(model="tuned", init_from="base", request_id="r")
    spec.limits.max_steps = 1
    made = list(caller.train(spec, b"abcabc"))
    assert caller.job(made[0].job).spec.init_from_version == 1
    caller.trained(tiny_spec("base", max_steps=1), b"abcabc")
    assert list(caller.train(spec, b"abcabc")) == made
    spec.init_from_version = 2
    text = refusal(lambda: list(caller.train(spec, b"abcabc")), made[0].job)
    assert "init_from_version" in text
    caller.stub.DeleteJob(pb.DeleteJobRequest(job=made[0].job), timeout=PATIENCE_S)
    assert next(caller.train(spec, b"abcabc")).job != made[0].job


def test_a_job_stored_before_versions_were_noted_is_still_followed() -> None:
    spec = pb.TrainSpec(model="m", request_id="r", init_from="b", init_from_version=4)
    row = job_row("j", request_id="r", spec=spec.SerializeToString())
    old = replace(row, init_from_version=UNKNOWN_VERSION)
    for version in (0, 4):
        spec.init_from_version = version
        idempotency.check_spec(old, spec)
    with pytest.raises(StatusError, match="init_from_version"):
        idempotency.check_spec(row, spec)
    spec.seed = 3
    with pytest.raises(StatusError, match=r"differs in spec\.seed"):
        idempotency.check_spec(old, spec)


def test_the_order_and_the_weights_of_files_count_and_their_names_do_not() -> None:
    a, b = (UploadedFile(sha, sha, "train", 1.0, 3) for sha in "ab")
    row = job_row("j", request_id="r", files=json.dumps([vars(a), vars(b)]))
    idempotency.check_corpus(row, [a, replace(b, name="other")])
    wrong = ([b, a], [a], [a, b, b], [a, replace(b, weight=2.0)], [a, replace(b, role="test")])
    for files in wrong:
        with pytest.raises(StatusError, match="another corpus"):
            idempotency.check_corpus(row, files)
