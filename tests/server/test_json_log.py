"""`--log-format json`: one object a line, with what is known of the call."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle.server.telemetry.json_log import JsonFormatter

from .harness import PATIENCE_S, TEXT, Server, requests, tiny_spec

Start = Callable[..., Server]


def line(fields: dict[str, str] | None = None, **given: Any) -> dict[str, Any]:
    record = logging.LogRecord("treadle.x", logging.INFO, "x.py", 1, "%s!", ("a\nb",), None)
    vars(record).update(given)
    text = JsonFormatter(lambda: fields or {}).format(record)
    assert "\n" not in text
    read: dict[str, Any] = json.loads(text)
    return read


def test_a_line_is_an_object() -> None:
    found = line({"request_id": "r1", "caller": ""}, created=1e9)
    assert found == {
        "time": "2001-09-09T01:46:40.000Z",
        "level": "info",
        "logger": "treadle.x",
        "message": "a\nb!",
        "request_id": "r1",
    }


def test_an_exception_is_a_field() -> None:
    try:
        raise ValueError("half a character: \ud800")
    except ValueError:
        found = line(exc_info=sys.exc_info())
    assert "ValueError" in found["exception"]
    assert "Traceback" in found["exception"]


@pytest.fixture
def lines(start: Start) -> list[dict[str, Any]]:
    server = start("--log-format", "json", "--log-level", "debug")
    stub = server.caller.stub
    metadata = (("x-request-id", "train-1"),)
    events = stub.Train(requests(tiny_spec("m"), TEXT), timeout=PATIENCE_S, metadata=metadata)
    assert list(events)[-1].HasField("completed")
    server.end()
    return [json.loads(text) for text in server.log.splitlines()]


def test_a_server_and_its_workers_log_objects(lines: list[dict[str, Any]]) -> None:
    for each in lines:
        assert {"time", "level", "logger", "message"} <= each.keys()
    of_job = [each for each in lines if each.get("request_id") == "train-1"]
    assert "treadle.server.jobs.completion" in {each["logger"] for each in of_job}
    assert "treadle.server.jobs.worker_training" in {each["logger"] for each in of_job}
    assert any(each["message"] == "shutting down" and "request_id" not in each for each in lines)


def test_a_server_that_cannot_start_logs_an_object(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "treadle.server", "--data-dir", str(tmp_path / "data")]
    command += ["--otlp-endpoint", "nowhere", "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert json.loads(line)["level"] == "critical"
    assert json.loads(line)["message"].startswith("--otlp-endpoint must be http://HOST:PORT")
