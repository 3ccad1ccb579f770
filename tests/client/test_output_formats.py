"""The output formats of lists and details: table, json and plain."""

from __future__ import annotations

import json

import pytest

from treadle.client.cli.display.plain_rows import plain_fields, plain_row
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import objects, out


def test_models_as_plain_rows(server: FakeServer) -> None:
    first = out(server.address, "models", "--output", "plain").splitlines()[0]
    assert first.split("\t") == [
        "model-1",
        "1",
        "lstm",
        "2",
        "128",
        "characters",
        "4",
        "12345",
        "0.75",
        "50000",
        "2023-11-14T22:13:20Z",
    ]


def test_jobs_as_plain_rows(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    cells = out(server.address, "jobs", "--output", "plain").splitlines()[0].split("\t")
    assert cells[:3] == [job, "m", "succeeded"]
    assert len(cells) == 8


def test_details_as_plain_fields(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    for words, line in (
        (["models", "show", "m"], "model.network.hidden_size\t128"),
        (["models", "list"], "model-1\t1\tlstm"),
        (["jobs", "show", job], f"id\t{job}"),
        (["info"], "threads\t"),
        (["models", "alias", "m", "stable"], "version\t2"),
    ):
        assert line in out(server.address, *words, "--output", "plain")


def test_scores_as_plain_rows(server: FakeServer) -> None:
    words = ["score", "m", "--output", "plain", "--tokens", "--text", "a\tb", "c"]
    rows = [line.split("\t") for line in out(server.address, *words).splitlines()]
    assert rows[0] == ["1", "3", "-3.0", "1.0", "2.71828", "1.4427", "a\\tb"]
    assert rows[2] == ["", "1", "-1.0", "0", "\\t"]
    assert rows[4][0] == "2"
    assert len(rows) == 6


@pytest.mark.parametrize(
    "words",
    [["models"], ["models", "show", "m"], ["jobs"], ["info"], ["score", "m", "--text", "a"]],
)
def test_json_is_output_json(server: FakeServer, words: list[str]) -> None:
    as_json = out(server.address, *words, "--output", "json")
    assert out(server.address, *words, "--json") == as_json
    assert objects(as_json) is not None
    assert out(server.address, *words, "--output", "table") == out(server.address, *words)


def test_a_plain_row_is_one_line_of_as_many_cells() -> None:
    model = v1.Model(name="世界\t\x1b[31m\n", version=3, aliases=["a", "b"])
    paths = ["name", "version", "training.valid_loss"]
    assert plain_row(model, paths) == "世界\\t\\x1b[31m\\n\t3\t"
    fields = dict(line.split("\t") for line in plain_fields(model))
    assert fields["aliases.1"] == "b"
    assert json.loads(fields["novelty_index"]) is False
