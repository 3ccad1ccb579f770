"""Every method over HTTP by every role: what each may do is what it may do over gRPC."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from treadle.v1 import sequence_pb2 as pb

from .conftest import company_jobs
from .tenants import CALLERS, READ_PROBES, Company, upload
from .test_rights_matrix import CELLS, CODES
from .web import SERVICE, Web

METHODS = pb.DESCRIPTOR.services_by_name["SequenceService"].methods_by_name


@pytest.fixture(scope="module")
def web_company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    folder = tmp_path_factory.mktemp("web-company")
    company = Company(folder, company_jobs(), "--http-address", "127.0.0.1:0")
    yield company
    company.close()


def web_of(company: Company, caller: str) -> Web:
    """Returns a client with the token of a caller; of none with an empty name."""
    context = ssl.create_default_context(cafile=str(company.authority.ca_file))
    token = company.tokens[caller] if caller else ""
    return Web(company.server.http_url.removeprefix("https:"), context, token)


def code_of(web: Web, method: str, request: Any) -> grpc.StatusCode:
    """Returns the status of a call."""
    messages = [request] if isinstance(request, Message) else [*request]
    if not (METHODS[method].client_streaming or METHODS[method].server_streaming):
        answer = web.call(method, messages[0])
        word = "ok" if answer.status == 200 else answer.json["code"]
    else:
        end, _ = web.replies(method, *messages, codec="proto")
        word = end.get("error", {"code": "ok"})["code"]
    return grpc.StatusCode[word.upper()]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_caller_may_do_what_it_may_do_over_grpc(
    web_company: Company, cell: str, caller: str
) -> None:
    codes, request = CELLS[cell]
    expected = CODES[codes[list(CALLERS).index(caller)]]
    web = web_of(web_company, caller)
    assert code_of(web, *request(f"for-{caller}")) is expected


@pytest.mark.parametrize("cell", CELLS)
def test_nobody_may_do_anything_without_a_token(web_company: Company, cell: str) -> None:
    _, request = CELLS[cell]
    assert code_of(web_of(web_company, ""), *request("for-root")) is (
        grpc.StatusCode.UNAUTHENTICATED
    )


def test_a_call_without_a_token_says_how_to_log_in(web_company: Company) -> None:
    answer = web_of(web_company, "").post(f"{SERVICE}/ListModels", {})
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "send the header 'Authorization: Bearer TOKEN'" in answer.json["message"]


def test_a_stranger_is_refused_before_its_request_is_read(web_company: Company) -> None:
    """A body that never comes, which would otherwise keep the call waiting."""
    with web_of(web_company, "").connection() as connection:
        connection.putrequest("POST", f"{SERVICE}/Score")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders()
        assert connection.getresponse().status == 401


def test_no_token_in_a_path_is_logged(web_company: Company) -> None:
    """The server logs everything here, and its end checks that no token is in it."""
    token = web_company.tokens["root"]
    assert web_of(web_company, "root").get(f"/{token}?{token}").status == 404


def test_the_probes_need_no_token(web_company: Company) -> None:
    web = web_of(web_company, "")
    assert (web.get("/healthz").status, web.get("/readyz").status) == (200, 200)


def test_a_page_under_another_name_may_call_where_a_token_is_needed(web_company: Company) -> None:
    answer = web_of(web_company, "reader").post(f"{SERVICE}/ListModels", {}, host="treadle.example")
    assert answer.status == 200


def test_the_audit_log_and_the_caller_are_those_of_grpc(web_company: Company) -> None:
    answer = web_of(web_company, "user").call(*READ_PROBES["GetModel"](model="team-b-mine"))
    assert answer.json["message"] == "there is no model 'team-b-mine'"
    info = web_of(web_company, "ann").call("GetServerInfo", pb.GetServerInfoRequest()).json
    assert info["caller"]["name"] == "ann"


def test_a_stream_of_a_role_that_may_not_upload_is_refused(web_company: Company) -> None:
    requests = upload(pb.TrainSpec(model="team-a-new"), b"x")
    end, replies = web_of(web_company, "user").replies("Train", *requests)
    assert replies == []
    assert "requires the role trainer" in json.dumps(end)
