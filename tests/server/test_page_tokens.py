"""Lists and the tokens of their pages."""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from treadle.server.errors import StatusError
from treadle.server.messages import page_tokens
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Caller, Server, fields_of, tiny_spec
from .test_service import refused

Start = Callable[..., Server]


@pytest.mark.parametrize("place", [["m"], ["ü/\u2028"], [1.0 / 3, "0abc"], [1e9 + 1e-7, ""]])
def test_a_token_gives_back_its_place(place: list[Any]) -> None:
    listing = "models" if len(place) == 1 else "jobs"
    token = page_tokens.make(listing, ["a", "b"], place)
    assert page_tokens.read(token, listing, ["a", "b"]) == place
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_no_token_is_the_first_page() -> None:
    assert page_tokens.read("", "models", []) == []


def damaged(token: str) -> list[str]:
    """Returns what is nearly a token."""
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    flipped = bytes([*data[:-1], data[-1] ^ 1])
    return [
        token[:-1],
        token[1:],
        token + "A",
        token + "=",
        token.swapcase(),
        token + "\n",
        base64.urlsafe_b64encode(flipped).decode().rstrip("="),
    ]


RUBBISH = [
    "m",
    "0",
    "-1",
    "x" * 5000,
    "../",
    "/etc",
    "ü",
    "\0",
    " ",
    "AAAA",
    "AAAAAAAAAAAA",
    "====",
]


@pytest.mark.parametrize("token", [*RUBBISH, *damaged(page_tokens.make("jobs", ["a"], [2.0, "b"]))])
def test_what_the_server_did_not_give_is_refused(token: str) -> None:
    with pytest.raises(StatusError, match="next_page_token of an earlier reply") as caught:
        page_tokens.read(token, "jobs", ["a"])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


FORGED = [
    b"5",
    b"{}",
    b"[1, 2, 3]",
    b'["jobs", "", []]',
    b'["jobs", "", "ab"]',
    b'["jobs", "", [1, "b"]]',
    b'["models", "", [5]]',
    b'[[], "", [1.0, "b"]]',
    b"[" * 100_000,
    b"\xff",
]


@pytest.mark.parametrize("payload", FORGED, ids=lambda payload: str(payload[:24]))
def test_a_payload_of_another_form_is_refused(payload: bytes) -> None:
    data = hashlib.sha256(payload).digest()[:8] + payload
    token = base64.urlsafe_b64encode(data).decode().rstrip("=")
    with pytest.raises(StatusError, match="next_page_token of an earlier reply"):
        page_tokens.read(token, "jobs", ["a"])


def test_a_token_is_of_one_list_and_one_filter() -> None:
    token = page_tokens.make("jobs", ["a"], [2.0, "b"])
    with pytest.raises(StatusError, match="of a list of jobs, not of models"):
        page_tokens.read(token, "models", ["a"])
    with pytest.raises(StatusError, match="with another filter"):
        page_tokens.read(token, "jobs", ["a", "b"])


LISTS: dict[str, type] = {
    "ListModels": pb.ListModelsRequest,
    "ListJobs": pb.ListJobsRequest,
    "ListFiles": pb.ListFilesRequest,
}


def test_every_list_of_the_contract_is_walked_here() -> None:
    service = pb.DESCRIPTOR.services_by_name["SequenceService"]
    paged = {
        each.name for each in service.methods if "page_token" in each.input_type.fields_by_name
    }
    assert paged == set(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_lists_refuse_what_is_no_token_of_theirs(caller: Caller, model: str, name: str) -> None:
    jobs = list(caller.jobs(model=model))
    others = {
        "ListModels": page_tokens.make("jobs", ["model="], [1.0, jobs[0].id]),
        "ListJobs": page_tokens.make("models", (), [model]),
        "ListFiles": page_tokens.make("models", (), [model]),
    }
    call = getattr(caller.stub, name)
    for token in ("m", "-1", "/etc", "ü", "x" * 5000, model, jobs[0].id, others[name]):
        with pytest.raises(grpc.RpcError) as caught:
            call(LISTS[name](page_token=token), timeout=PATIENCE_S)
        assert fields_of(caught.value) == ["page_token"]
    for size in (0, 1000, 1001, 2**32 - 1):
        call(LISTS[name](page_size=size), timeout=PATIENCE_S)


def test_a_page_of_jobs_does_not_need_the_last_one_of_the_page_before(start: Start) -> None:
    server = start()
    caller = server.caller
    made = [list(caller.train(tiny_spec("m", max_steps=1), b"abcabc"))[-1].job for _ in range(3)]
    first = caller.stub.ListJobs(pb.ListJobsRequest(page_size=1, model="m"), timeout=PATIENCE_S)
    assert [job.id for job in first.jobs] == made[2:]
    caller.stub.DeleteJob(pb.DeleteJobRequest(job=made[2]), timeout=PATIENCE_S)
    rest = pb.ListJobsRequest(page_token=first.next_page_token, model="m")
    assert [job.id for job in caller.stub.ListJobs(rest, timeout=PATIENCE_S).jobs] == made[1::-1]
    rest.model = ""
    assert fields_of(refused(lambda: caller.stub.ListJobs(rest))) == ["page_token"]
    rest.model = "m"
    rest.states.append(pb.JOB_STATE_SUCCEEDED)
    assert fields_of(refused(lambda: caller.stub.ListJobs(rest))) == ["page_token"]
