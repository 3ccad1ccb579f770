"""Unknown names of commands, flags, words and models get the nearest one in the same sentence."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, status_pb2  # type: ignore[import-untyped]

from treadle.client.cli.main import main
from treadle.client.cli.options.suggestion import suggestion

from .fake import FakeServer, FakeService, a_model
from .shell import complaint, run

NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian", "x"], "invalid choice: 'trian': did you mean 'train'?"),
        (["Generate", "x"], "invalid choice: 'Generate': did you mean 'generate'?"),
        (["models", "lsit"], "invalid choice: 'lsit': did you mean 'list'?"),
        (["train", "x", "--model", "m", "--cell", "lst"], "'lst': did you mean 'lstm'?"),
        (["jobs", "--state", "runing"], "'runing': did you mean 'running'?"),
        (["generate", "m", "--temprature", "1"], "--temprature 1: did you mean --temperature?"),
        (["generate", "m", "--greddy=1"], "--greddy=1: did you mean --greedy?"),
        (["train", "x", "--modle", "m"], "required: --model: did you mean --model?"),
    ],
)
def test_the_nearest_name_is_offered(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert line.endswith("--help`)")


@pytest.mark.parametrize("words", [["knit"], ["info", "--zzz"], ["train", "x"]])
def test_nothing_is_offered_where_nothing_is_near(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_value_that_looks_like_a_flag_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", "--server", NOBODY, "m", "--prompt", "x", "--", "--greddy"])
    assert "did you mean" not in capsys.readouterr().err


def test_names_keep_their_letters() -> None:
    assert suggestion("BRAD", ["Bard", "names"]) == ": did you mean 'Bard'?"
    assert suggestion("", ["a"]) == ""


def _without_model(service: FakeService, name: str) -> None:
    service.refusals[""] = status_pb2.Status(
        code=code_pb2.NOT_FOUND, message=f"there is no model '{name}'"
    )


def test_an_unknown_model_is_compared_with_those_of_the_server(
    server: FakeServer, service: FakeService
) -> None:
    assert a_model("model-1").name == "model-1"
    _without_model(service, "modl-1")
    said = complaint(run(server.address, "generate", "modl-1"), 1)
    assert said == "treadle: there is no model 'modl-1': did you mean 'model-1'?"


def test_an_unknown_model_stays_so_where_the_server_lists_none(server: FakeServer) -> None:
    server.service.failure = status_pb2.Status(
        code=code_pb2.NOT_FOUND, message="there is no model 'm'"
    )
    assert complaint(run(server.address, "generate", "m"), 1) == "treadle: there is no model 'm'"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://treadle.example.com:443", "give treadle.example.com:443 with --tls"),
        ("HTTPS://[::1]:443/", "give [::1]:443 with --tls"),
        ("http://localhost:50051/", "give localhost:50051"),
        ("https://treadle.example.com/path", "give HOST:PORT with --tls"),
    ],
)
def test_a_url_is_no_address(address: str, expected: str) -> None:
    said = complaint(run(address, "info"), 2)
    assert f"{address!r} is a URL, not a host and a port; {expected}" in said
