"""`treadle generate`, `score` and `embed` of many texts, states and vectors, by rote."""

from __future__ import annotations

from pathlib import Path

import pytest

from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import complaint, objects, out, run


def test_options_become_the_request(
    server: FakeServer, service: FakeService, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"\x00\xff kept")
    words = (
        "m --typical-p 0.9 --repetition-penalty 1.2 --presence-penalty 0.5 --frequency-penalty -1 "
        "--ban e --ban id:7 --ban id:end --bias a=-2 --bias id:3=0.5 --force Ro --min-tokens 3 "
        "--max-time 5s --echo --ranks --top 2 --novelty --regex [a-z]+ --state"
    )
    run(server.address, "generate", *words.split(), str(state))
    run(server.address, "generate", "m", "--best-of", "8")
    assert service.requests == [
        v1.GenerateRequest(
            model="m",
            typical_p=0.9,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=-1,
            banned_tokens=[
                v1.TokenReference(text="e"),
                v1.TokenReference(id=7),
                v1.TokenReference(end=True),
            ],
            token_biases=[
                v1.TokenBias(token=v1.TokenReference(text="a"), bias=-2),
                v1.TokenBias(token=v1.TokenReference(id=3), bias=0.5),
            ],
            forced_tokens=[v1.TokenReference(text="Ro")],
            min_new_tokens=3,
            max_time_s=5,
            echo=True,
            ranks=True,
            top_log_probabilities=2,
            novelty=True,
            regex="[a-z]+",
            state=b"\x00\xff kept",
        ),
        v1.GenerateRequest(model="m", best_of=8),
    ]


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        (["--int8"], v1.INFERENCE_PRECISION_INT8),
        (["--inference-precision", "int8"], v1.INFERENCE_PRECISION_INT8),
        (["--inference-precision", "fp32"], v1.INFERENCE_PRECISION_FP32),
        ([], v1.INFERENCE_PRECISION_UNSPECIFIED),
    ],
)
def test_every_command_that_computes_takes_a_precision(
    server: FakeServer, service: FakeService, words: list[str], precision: int
) -> None:
    for command in (
        ["generate", "m"],
        ["score", "m", "--text", "a"],
        ["embed", "m", "a"],
        ["chat", "m"],
        ["score-stream", "m"],
    ):
        service.requests.clear()
        run(server.address, *command, *words, data=b"a\n")
        asked = service.requests[-1]
        assert getattr(asked, "spec", asked).inference_precision == precision


def test_a_precision_is_given_once_and_reported(server: FakeServer, service: FakeService) -> None:
    done = run(server.address, "generate", "m", "--int8", "--inference-precision", "fp32")
    assert "not allowed with argument --int8" in complaint(done, 2)
    done = run(server.address, "generate", "m", "--int8", "--log-probabilities")
    assert b"seed 9223372036854775808, version 1, int8\n" in done.stderr
    assert "precision" not in out(server.address, "info")  # an older server does not tell it
    service.precision = v1.INFERENCE_PRECISION_FP32
    assert "precision      fp32\n" in out(server.address, "info")


def test_objects_tell_the_precision(server: FakeServer) -> None:
    scored = objects(out(server.address, "score", "m", "--text", "a", "--json", "--int8"))
    embedded = objects(out(server.address, "embed", "m", "a", "--int8"))
    for row in (*scored, *embedded):
        assert row["inference_precision"] == "int8"
    words = ("score-stream", "m", "--json", "--int8")
    streamed = objects(out(server.address, *words, data=b"a\nb\n"))
    assert streamed[-1]["total"]["inference_precision"] == "int8"


def test_ranks_and_alternatives_are_printed_next_to_the_text(server: FakeServer) -> None:
    done = run(server.address, "generate", "m", "--ranks", "--top", "2")
    assert done.stdout == b"ello\n"
    head, first, *_ = done.stderr.decode().splitlines()
    assert head.split() == ["token", "nats", "probability", "rank", "likeliest"]
    assert first.split() == ["e", "-0.500", "60.7%", "5", "a", "77.9%,", "b", "60.7%"]


def test_a_state_goes_from_call_to_call(
    server: FakeServer, service: FakeService, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    words = ["generate", "m", "--save-state", str(state)]
    assert out(server.address, *words, "--prompt", "h") == "ello\n"
    assert state.read_bytes() == b"hello"
    out(server.address, *words, "--state", str(state), "--json")
    assert state.read_bytes() == b"helloello"
    assert service.requests[1].state == b"hello"
    assert list(tmp_path.iterdir()) == [state]
    wrong = str(tmp_path / "no" / "such")
    done = run(server.address, "generate", "m", "--save-state", wrong)
    assert f"cannot write {wrong}: there is no folder" in complaint(done, 2)


def test_the_state_after_a_scored_text(
    server: FakeServer, service: FakeService, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    words = ["score", "m", "--text", "abc", "--save-state", str(state)]
    out(server.address, *words)
    assert state.read_bytes() == b"abc"
    (response,) = objects(out(server.address, *words, "--state", str(state), "--json", "--ranks"))
    assert state.read_bytes() == b"abcabc"
    assert response["state"] == ""  # it is in the file
    assert [token["rank"] for token in response["tokens"]] == [0, 2, 3]
    assert service.requests[1].return_states
    assert service.requests[1].state == b"abc"


def test_one_text_a_line(server: FakeServer, service: FakeService) -> None:
    service.novel = {"ann": True, "b\tb": False}
    lines = out(server.address, "generate", "m", "-n", "9", "--seed", "1").splitlines()
    assert len(lines) == 9
    assert set(lines) == {"ann", r"b\tb"}
    rows = out(
        server.address, "generate", "m", "-n", "2", "--unique", "--novelty", "--with-likelihood"
    )
    assert sorted(rows.splitlines()) == ["ann\t-3.000\tnew", "b\\tb\t-3.000\tknown"]
    (only,) = out(server.address, "generate", "m", "--novel", "--with-likelihood").splitlines()
    assert only == "ann\t-3.000\tnew"
    assert out(server.address, "generate", "m", "-n", "1", "--with-likelihood", "--seed", "1") in (
        "ann\t-3.000\n",
        "b\\tb\t-3.000\n",
    )


def test_the_same_seed_prints_the_same_lines_in_the_same_order(
    server: FakeServer, service: FakeService
) -> None:
    service.novel = dict.fromkeys(["ann", "bea", "cay", "dee", "eva"], True)
    words = ["generate", "m", "-n", "500", "--seed", "7"]
    lines = out(server.address, *words).splitlines()
    assert len(lines) == 500
    calls = [each for each in service.requests if isinstance(each, v1.GenerateRequest)]
    assert lines == [service.item(call, index) for call in calls for index in range(call.n)]
    indices = [text["index"] for text in objects(out(server.address, *words, "--json"))]
    assert indices == list(range(500))


def test_items_as_json(server: FakeServer, service: FakeService) -> None:
    service.novel = {"ann": True}
    words = ["generate", "m", "-n", "3", "--json", "--novelty", "--seed", "5"]
    texts = objects(out(server.address, *words))
    assert [text["index"] for text in texts] == [0, 1, 2]
    assert {text["text"] for text in texts} == {"ann"}
    assert texts[0]["result"]["seed"] == 5
    assert texts[0]["result"]["novelty"] == {"longest_overlap": 2, "is_new": True}


def test_too_few_texts_are_said_to_be(server: FakeServer, service: FakeService) -> None:
    service.novel = {"ann": True, "bea": False}
    done = run(server.address, "generate", "m", "-n", "2", "--unique", "--novel")
    assert (done.returncode, done.stdout) == (0, b"ann\n")
    assert done.stderr.decode() == "treadle: only 1 of 2 texts after 20 tries\n"
    done = run(server.address, "generate", "m", "-n", "2", "--unique", "--novel", "--max-tries=3")
    assert done.stderr.decode().endswith("after 3 tries\n")


@pytest.mark.parametrize("index", [True, False])
def test_models_tell_of_their_index(server: FakeServer, service: FakeService, index: bool) -> None:
    service.novelty_index = index
    said = f"novelty index    {'yes' if index else 'no'}\n"
    assert said in out(server.address, "models", "show", "m")


def test_the_index_is_asked_for(server: FakeServer, service: FakeService) -> None:
    out(server.address, "train", "-", "--model", "m", "--novelty-index", data=b"x")
    assert service.requests[0].data.novelty_index


def test_vectors(server: FakeServer, service: FakeService, tmp_path: Path) -> None:
    (first, second) = objects(out(server.address, "embed", "m", "--all-layers", "abc", "d"))
    assert first == {
        "text": "abc",
        "values": [0.5, -0.25, 0.5, -0.25],
        "token_count": 3,
        "inference_precision": "unspecified",  # an older server does not tell it
    }
    assert second["token_count"] == 1
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\nthree\n")
    lines = objects(out(server.address, "embed", "m", "--per-line", str(path)))
    assert [(line["line"], line["text"]) for line in lines] == [(1, "one"), (3, "three")]
    service.accept(v1.TrainSpec(model="m"))
    out(server.address, "embed", "--job", "a1-job", "x", "y")
    assert service.requests[-1] == v1.EmbedRequest(job="a1-job", texts=["x", "y"])


def test_no_text_at_all_is_refused(server: FakeServer) -> None:
    assert "-n cannot be 0: ask for at least one text" in complaint(
        run(server.address, "generate", "m", "-n", "0"), 2
    )
