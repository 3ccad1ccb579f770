"""Every RPC over HTTP: the same replies as over gRPC, and the same errors."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.v1 import sequence_pb2 as pb

from .harness import TEXT, Server, requests, tiny_spec
from .web import SERVICE, Answer, Web, envelope, parsed


def test_one_reply_is_that_of_grpc(web: Web, http_server: Server, http_model: str) -> None:
    request = pb.GetModelRequest(model=http_model)
    answer = web.call("GetModel", request)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == MessageToDict(http_server.caller.stub.GetModel(request))


def test_protobuf_has_the_bytes_of_grpc(web: Web, http_server: Server, http_model: str) -> None:
    request = pb.ScoreRequest(
        model=http_model, texts=["the quick"], log_probabilities=True, return_states=True
    )
    answer = web.ask(
        "POST",
        f"{SERVICE}/Score",
        request.SerializeToString(),
        content_type="application/proto",
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/proto"
    assert answer.body == http_server.caller.stub.Score(request).SerializeToString()


@pytest.mark.parametrize("codec", ["json", "proto"])
def test_text_log_probabilities_and_states_have_the_bits_of_grpc(
    web: Web, http_server: Server, http_model: str, codec: str
) -> None:
    request = pb.GenerateRequest(
        model=http_model,
        prompt="the ",
        seed=7,
        max_new_tokens=40,
        log_probabilities=True,
        return_state=True,
    )
    end, replies = web.replies("Generate", request, codec=codec)
    found = [
        parsed(data, pb.GenerateResponse())
        if codec == "json"
        else pb.GenerateResponse.FromString(data)
        for data in replies
    ]
    expected = [*http_server.caller.stub.Generate(request)]
    assert "error" not in end
    assert joined(found) == joined(expected)


def joined(replies: list[pb.GenerateResponse]) -> Any:
    """Returns all of a generation but for where it was cut into replies."""
    texts = "".join(reply.text for reply in replies)
    tokens = [token.SerializeToString() for reply in replies for token in reply.tokens]
    return texts, tokens, replies[-1].result.SerializeToString()


def test_an_error_has_the_status_the_message_and_the_details_of_grpc(web: Web) -> None:
    answer = web.call("GetModel", pb.GetModelRequest(model="missing"))
    assert answer.status == 404
    assert answer.json["code"] == "not_found"
    assert answer.json["message"] == "there is no model 'missing'"
    [detail] = answer.json["details"]
    assert detail["type"] == "google.rpc.ResourceInfo"
    assert detail["debug"] == {"resourceType": "treadle.v1.Model", "resourceName": "missing"}
    packed = base64.b64decode(detail["value"] + "==")
    assert error_details_pb2.ResourceInfo.FromString(packed).resource_name == "missing"


def test_a_stream_that_fails_says_so_in_its_last_message(web: Web) -> None:
    end, replies = web.replies("Generate", pb.GenerateRequest(model="missing"), x_request_id="mine")
    assert replies == []
    assert end["error"]["code"] == "not_found"
    assert end["metadata"] == {"x-request-id": ["mine"]}


def test_a_plain_request_of_a_stream_is_answered_in_lines(web: Web, http_model: str) -> None:
    fields = {"model": http_model, "prompt": "the ", "seed": 7, "maxNewTokens": 5}
    answer = web.post(f"{SERVICE}/Generate", fields)
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert len("".join(line.get("text", "") for line in lines)) == 5
    assert "result" in lines[-1]


def test_a_plain_request_that_fails_at_once_has_the_status(web: Web, http_model: str) -> None:
    answer = web.post(f"{SERVICE}/Generate", {"model": http_model, "temperature": -1})
    assert answer.status == 400
    [detail] = answer.json["details"]
    assert detail["debug"]["fieldViolations"][0]["field"] == "temperature"


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('{"model": "x", "promt": ""}', "promt", "is prompt meant?"),
        ('{"model": "x", "maxNewTokens": "many"}', "maxNewTokens", 'whole number, not "many"'),
        ('{"model": "x", "max_new_tokens": 1.5}', "max_new_tokens", "a whole number, not 1.5"),
        ('{"model": "x", "maxNewTokens": -1}', "maxNewTokens", "0 to 4294967295, not -1"),
        ('{"model": "x", "tokenBiases": [{"bias": {}}]}', "tokenBiases[0].bias", "a number"),
        ('{"model": "x", "stopSequences": "x"}', "stopSequences", 'must be a list, not "x"'),
        ('{"model": "x", "stopSequences": [null]}', "stopSequences[0]", "must be a text, not null"),
        ('{"model": 3}', "model", "must be a text, not 3"),
        ('{"model": "x", "state": "??"}', "state", "base64"),
        ('{"model": "x", "echo": "true"}', "echo", 'true or false, not "true"'),
        ('{"model": "x", "unknownPolicy": "SKIP"}', "unknownPolicy", "or UNKNOWN_POLICY_UNKNOWN"),
        ('{"model": "x", "model": "y"}', "", "the member 'model' appears twice"),
        ('{"model": "x"', "", "JSON"),
        ("", "", "{} for an empty request"),
        ("[]", "", "not a JSON object"),
        ('{"model": "\\ud800"}', "model", "a text"),
        ("[" * 50_000, "", "nested too deeply"),
        ("[" * 100_000, "", "more than 65,536 values"),
        (f'{{"model": "x", "texts": [{"1," * 100_000}1]}}', "", "more than 65,536 values"),
    ],
)
def test_what_is_not_the_request_is_named(web: Web, text: str, field: str, words: str) -> None:
    answer = web.ask("POST", f"{SERVICE}/Generate", text.encode(), content_type="application/json")
    assert answer.status == 400, answer
    assert words in answer.json["message"]
    violations = answer.json["details"][0]["debug"].get("fieldViolations", [])
    assert [violation["field"] for violation in violations] == [field] * bool(field)


def test_bytes_that_are_no_message_are_refused(web: Web) -> None:
    answer = web.ask("POST", f"{SERVICE}/GetModel", b"\xff", content_type="application/proto")
    assert (answer.status, answer.json["code"]) == (400, "invalid_argument")


@pytest.mark.parametrize(
    ("method", "path", "content_type", "status"),
    [
        ("POST", f"{SERVICE}/Nothing", "application/json", 404),
        ("POST", f"{SERVICE}/GetModel/more", "application/json", 404),
        ("POST", "/other.Service/GetModel", "application/json", 404),
        ("GET", f"{SERVICE}/GetModel", "application/json", 405),
        ("POST", f"{SERVICE}/GetModel", "text/plain", 415),
        ("POST", f"{SERVICE}/GetModel", "application/connect+json", 415),
        ("POST", f"{SERVICE}/Train", "application/json", 415),
    ],
)
def test_what_does_not_exist_is_an_error(
    web: Web, method: str, path: str, content_type: str, status: int
) -> None:
    answer = web.ask(method, path, b"{}", content_type=content_type)
    assert answer.status == status
    assert answer.json["code"] in ("unimplemented", "not_found")


def test_a_corpus_is_uploaded_and_its_job_followed(web: Web, http_server: Server) -> None:
    end, events = web.replies("Train", *requests(tiny_spec("uploaded"), TEXT))
    assert "error" not in end
    assert "completed" in json.loads(events[-1])
    job = json.loads(events[0])["job"]
    end, replies = web.replies("WatchJob", pb.WatchJobRequest(job=job), codec="proto")
    watched = [pb.WatchJobResponse.FromString(data).event for data in replies]
    assert watched == [*http_server.caller.watch(job)]


def test_a_stream_is_scored_piece_by_piece(web: Web, http_server: Server, http_model: str) -> None:
    sent = [
        pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model=http_model)),
        pb.ScoreStreamRequest(piece=pb.TextPiece(text="the quick ")),
        pb.ScoreStreamRequest(piece=pb.TextPiece(text="brown", end=True)),
    ]
    end, replies = web.replies("ScoreStream", *sent, codec="proto")
    expected = [*http_server.caller.stub.ScoreStream(iter(sent))]
    assert "error" not in end
    assert replies == [reply.SerializeToString() for reply in expected]


def test_bodies_may_be_compressed(web: Web, http_model: str) -> None:
    request = {"model": http_model, "texts": ["the quick " * 200], "logProbabilities": True}
    plain = web.post(f"{SERVICE}/Score", request)
    packed = web.ask(
        "POST",
        f"{SERVICE}/Score",
        gzip.compress(json.dumps(request).encode()),
        content_type="application/json",
        content_encoding="gzip",
        accept_encoding="gzip",
    )
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body


def test_a_time_limit_of_the_client_ends_its_call(web: Web, http_model: str) -> None:
    request = pb.GenerateRequest(model=http_model, max_new_tokens=100_000)
    end, _ = web.replies("Generate", request, connect_timeout_ms="50")
    assert end["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["-1", "1.5", "soon", "12345678901"])
def test_a_time_limit_that_is_none_is_refused(web: Web, value: str) -> None:
    answer = web.post(f"{SERVICE}/ListModels", {}, connect_timeout_ms=value)
    assert answer.status == 400
    assert "Connect-Timeout-Ms" in answer.json["message"]


def test_the_version_of_the_protocol_is_checked(web: Web) -> None:
    assert web.post(f"{SERVICE}/ListModels", {}, connect_protocol_version="1").status == 200
    assert web.post(f"{SERVICE}/ListModels", {}, connect_protocol_version="2").status == 400


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (envelope(b"{}")[:4], "invalid_argument"),
        (envelope(b'{"job": "x"}')[:-1], "invalid_argument"),
        (envelope(b'{"job": "x"}', 1), "invalid_argument"),
        (envelope(b"{}", 2), "invalid_argument"),
        (b"", "invalid_argument"),
        (envelope(b'{"job": "x"}') * 2, "unimplemented"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
    ],
)
def test_a_stream_that_is_malformed_is_refused(web: Web, body: bytes, code: str) -> None:
    content_type = "application/connect+json"
    answer = web.ask("POST", f"{SERVICE}/WatchJob", body, content_type=content_type)
    assert answer.status == 200
    assert json.loads(answer.body[5:])["error"]["code"] == code


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_calls_and_streams(web: Web, http_server: Server, http_model: str) -> None:
    def curl(method: str, fields: dict[str, Any], *options: str) -> str:
        command = ["curl", "-sS", "--noproxy", "*", *options, "--data", json.dumps(fields)]
        command += ["-H", "Content-Type: application/json", f"{web.url}{SERVICE}/{method}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert json.loads(curl("GetModel", {"model": http_model}))["model"]["name"] == http_model
    fields = {"model": http_model, "prompt": "the ", "seed": "7", "max_new_tokens": 9}
    expected = http_server.caller.text(http_model, prompt="the ", seed=7, max_new_tokens=9)
    for options in (("--no-buffer",), ("--http2",), ("--http1.0",)):
        lines = map(json.loads, curl("Generate", fields, *options).splitlines())
        assert "".join(line.get("text", "") for line in lines) == expected


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        (["a"], "tags must be an object"),
        ("a", "tags must be an object"),
        ({"a": 1}, "must be a text, not 1"),
        ({"a": None}, "tags must map texts to values"),
        ({"a": {"b": "c"}}, "must be a text"),
    ],
)
def test_a_map_is_an_object_of_texts(web: Web, tags: object, fault: str) -> None:
    def listed(tags: object) -> Answer:
        data = json.dumps({"tags": tags}).encode()
        return web.ask("POST", f"{SERVICE}/ListJobs", data, content_type="application/json")

    answer = listed(tags)
    assert answer.status == 400
    assert answer.json["code"] == "invalid_argument"
    assert fault in answer.json["message"]
    right = listed({"no-job": "has this"})
    assert (right.status, right.json) == (200, {})
