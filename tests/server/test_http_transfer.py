"""Models travel over HTTP as over gRPC."""

from __future__ import annotations

from treadle.v1 import sequence_pb2 as pb

from .harness import Server
from .travel import fetch_model, import_requests
from .web import Web


def test_a_model_travels_over_http(web: Web, http_server: Server, http_model: str) -> None:
    about, data = fetch_model(http_server.caller, http_model)
    end, replies = web.replies(
        "ExportModel", pb.ExportModelRequest(model=http_model), codec="proto"
    )
    assert "error" not in end
    parts = [pb.ExportModelResponse.FromString(reply) for reply in replies]
    assert parts[0].model == about
    assert b"".join(part.chunk for part in parts) == data

    sent = import_requests(pb.ImportModelSpec(model="over-http"), data)
    end, replies = web.replies("ImportModel", *sent)
    assert "error" not in end
    assert len(replies) == 1
    assert fetch_model(http_server.caller, "over-http")[1] == data

    end, replies = web.replies("ImportModel", *import_requests(pb.ImportModelSpec(), data))
    assert end["error"]["code"] == "invalid_argument"
