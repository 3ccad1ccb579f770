"""Requests choose their precision: results tell it, states keep it, batch mates change no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.model import InferencePrecision, Model
from treadle.model.config import SamplingConfig
from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Caller, Server, fields_of, tiny_spec
from .travel import send_model

FP32 = pb.INFERENCE_PRECISION_FP32
INT8 = pb.INFERENCE_PRECISION_INT8
OPEN = pb.INFERENCE_PRECISION_UNSPECIFIED

PROMPT = "the quick brown "
ASKED: dict[str, Any] = {
    "prompt": PROMPT,
    "seed": 7,
    "max_new_tokens": 40,
    "ranks": True,
    "top_log_probabilities": 3,
}


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose default is float32, with a model `m` that was trained enough to differ."""
    server = Server(
        tmp_path_factory.mktemp("precise") / "data", "--standby-workers", "0", "--threads", "2"
    )
    server.caller.trained(tiny_spec("m", max_steps=60))
    yield server
    server.close()


@pytest.fixture
def ask(precise: Server) -> Caller:
    return precise.caller


def loaded(server: Server) -> Model:
    return Model.load(server.data_dir / "models" / "m" / "1" / MODEL_FILE)


def result_of(replies: list[pb.GenerateResponse]) -> pb.GenerateResult:
    return next(reply.result for reply in replies if reply.HasField("result"))


def said(replies: list[pb.GenerateResponse]) -> tuple[str, list[bytes], float]:
    """What a generation said, without the cuts between its messages."""
    tokens = [token.SerializeToString() for reply in replies for token in reply.tokens]
    text = "".join(reply.text for reply in replies)
    return text, tokens, result_of(replies).total_log_probability


def streamed(
    caller: Caller, *pieces: str, **fields: Any
) -> tuple[list[pb.PieceScore], pb.ScoreStreamResult]:
    spec = pb.ScoreStreamSpec(model="m", log_probabilities=True, **fields)
    requests = [pb.ScoreStreamRequest(spec=spec)]
    requests += [pb.ScoreStreamRequest(piece=pb.TextPiece(text=text)) for text in pieces]
    replies = list(caller.stub.ScoreStream(iter(requests), timeout=PATIENCE_S))
    return [reply.piece for reply in replies[:-1]], replies[-1].result


def embedded(caller: Caller, **fields: Any) -> pb.EmbedResponse:
    request = pb.EmbedRequest(model="m", texts=[PROMPT], **fields)
    return caller.stub.Embed(request, timeout=PATIENCE_S)


@pytest.mark.parametrize(("asked", "reported"), [(OPEN, FP32), (FP32, FP32), (INT8, INT8)])
def test_every_result_reports_the_precision(ask: Caller, asked: Any, reported: Any) -> None:
    fields = {"inference_precision": asked}
    assert result_of(ask.generate("m", **ASKED, **fields)).inference_precision == reported
    search: dict[str, Any] = {"best_of": 3, "max_new_tokens": 5}
    assert result_of(ask.generate("m", **search, **fields)).inference_precision == reported
    scored = ask.score("m", [PROMPT], **fields)
    streamed_score = streamed(ask, PROMPT, **fields)[1]
    vectors = embedded(ask, **fields)
    for reply in (scored, streamed_score, vectors):
        assert reply.inference_precision == reported
    for one in (scored.scores[0], streamed_score.total, vectors.embeddings[0]):
        assert one.inference_precision == reported


def test_a_whole_item_reports_the_precision(ask: Caller) -> None:
    piece = pb.TextPiece(text=PROMPT, end=True)
    spec = pb.ScoreStreamSpec(model="m", inference_precision=INT8)
    scoring = [pb.ScoreStreamRequest(spec=spec), pb.ScoreStreamRequest(piece=piece)]
    scored = next(ask.stub.ScoreStream(iter(scoring), timeout=PATIENCE_S)).piece
    assert scored.whole.inference_precision == INT8
    learning = [
        pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m")),
        pb.LearnStreamRequest(learn=piece),
    ]
    learned = next(ask.stub.LearnStream(iter(learning), timeout=PATIENCE_S)).piece
    assert learned.whole.inference_precision == FP32


def test_the_server_computes_what_the_model_computes(precise: Server) -> None:
    ask = precise.caller
    model = loaded(precise)
    for number, precision in ((FP32, InferencePrecision.FP32), (INT8, InferencePrecision.INT8)):
        view = model.at(precision)
        pieces = list(view.stream(PROMPT, SamplingConfig(seed=7, max_new_tokens=40)))
        replies = ask.generate("m", **ASKED, inference_precision=number)
        assert said(replies)[0] == "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        found = [token.log_probability for reply in replies for token in reply.tokens]
        assert found == [
            pb.Token(log_probability=t.log_probability).log_probability for t in tokens
        ]
        score = ask.score("m", [PROMPT], inference_precision=number).scores[0]
        assert score.total_log_probability == view.score(PROMPT).total_log_probability
    scores = [ask.score("m", [PROMPT], inference_precision=p).scores[0] for p in (FP32, INT8)]
    assert scores[0] != scores[1]
    assert scores[0].mean_nats == pytest.approx(scores[1].mean_nats, abs=0.1)


@pytest.mark.parametrize("mates", [1, 63])
def test_mates_of_any_precision_change_no_bit(ask: Caller, mates: int) -> None:
    alone = {
        number: said(ask.generate("m", **ASKED, inference_precision=number))
        for number in (FP32, INT8)
    }
    assert alone[FP32] != alone[INT8]

    def call(index: int) -> bool:
        number = (FP32, INT8)[index % 2]
        if index < 4:
            return said(ask.generate("m", **ASKED, inference_precision=number)) == alone[number]
        mate = {**ASKED, "seed": index, "max_new_tokens": 60 + index}
        return bool(ask.generate("m", **mate, inference_precision=number))

    with ThreadPoolExecutor(mates + 1) as threads:
        assert all(threads.map(call, range(mates + 1)))


def test_regex_penalties_and_beams_work_as_ever(precise: Server) -> None:
    ask = precise.caller
    view = loaded(precise).at(InferencePrecision.INT8)
    ways: list[dict[str, Any]] = [
        {"seed": 1, "regex": "[a-z ]{1,9}"},
        {"seed": 1, "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"seed": 1, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
        {"best_of": 4},
    ]
    for way in ways:
        expected = view.generate(PROMPT, max_new_tokens=12, **way)
        fields = {"prompt": PROMPT, "max_new_tokens": 12, **way, "inference_precision": INT8}
        assert ask.text("m", **fields) == expected


def test_however_a_stream_is_cut_it_is_the_score_of_the_text(ask: Caller) -> None:
    text = PROMPT + "fox jumps over"
    whole = ask.score("m", [text], log_probabilities=True, inference_precision=INT8).scores[0]
    for cut in (1, 5, len(text)):
        pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
        answers, result = streamed(ask, *pieces, inference_precision=INT8)
        tokens = [token for answer in answers for token in answer.tokens]
        assert tokens == list(whole.tokens)
        assert result.total.total_log_probability == whole.total_log_probability


def version_of(state: bytes) -> int:
    return state[3]


def test_a_state_keeps_its_precision_until_a_request_moves_it(ask: Caller) -> None:
    def part(count: int, **fields: Any) -> tuple[str, pb.GenerateResult]:
        replies = ask.generate("m", max_new_tokens=count, return_state=True, **fields)
        return "".join(reply.text for reply in replies), result_of(replies)

    whole, end = part(24, prompt=PROMPT, seed=3, inference_precision=INT8)
    first, begun = part(10, prompt=PROMPT, seed=3, inference_precision=INT8)
    rest, same = part(14, state=begun.state)
    assert (first + rest, same.inference_precision, same.state) == (whole, INT8, end.state)
    _, moved = part(14, state=begun.state, inference_precision=FP32)
    assert moved.inference_precision == FP32
    assert part(1, state=moved.state)[1].inference_precision == FP32
    assert part(1, state=moved.state, inference_precision=INT8)[1].inference_precision == INT8
    assert [version_of(result.state) for result in (same, moved)] == [4, 1]
    scored = ask.score("m", [PROMPT], state=begun.state, return_states=True)
    assert (scored.inference_precision, version_of(scored.scores[0].state)) == (INT8, 4)
    scored = ask.score("m", [PROMPT], state=begun.state, inference_precision=FP32)
    assert scored.inference_precision == FP32
    _, result = streamed(ask, PROMPT, state=begun.state, return_state=True)
    assert (result.inference_precision, version_of(result.state)) == (INT8, 4)
    searched, found = part(4, state=begun.state, best_of=2)
    assert (found.inference_precision, version_of(found.state)) == (INT8, 4)
    counted = part(4, state=begun.state, presence_penalty=0.5)[1]
    assert (counted.inference_precision, version_of(counted.state)) == (INT8, 5)
    assert searched


def test_the_default_of_the_server_holds_where_nothing_else_does(
    precise: Server, tmp_path: Path
) -> None:
    ask = precise.caller
    begun = result_of(ask.generate("m", max_new_tokens=3, seed=1, return_state=True))
    eight = result_of(
        ask.generate("m", max_new_tokens=3, seed=1, return_state=True, inference_precision=INT8)
    )
    rest = said(ask.generate("m", max_new_tokens=9, state=eight.state, log_probabilities=True))
    assert ask.info().inference_precision == FP32
    model = (precise.data_dir / "models" / "m" / "1" / MODEL_FILE).read_bytes()
    other = Server(
        tmp_path / "data",
        *("--standby-workers", "0"),
        environment={"TREADLE_INFERENCE_PRECISION": "int8"},
    )
    try:
        ask = other.caller
        send_model(ask, model, "m")
        assert ask.info().inference_precision == INT8
        assert result_of(ask.generate("m", max_new_tokens=1)).inference_precision == INT8
        assert ask.score("m", [PROMPT]).inference_precision == INT8
        assert embedded(ask).inference_precision == INT8
        assert streamed(ask, PROMPT)[1].inference_precision == INT8
        fields = {"max_new_tokens": 1, "inference_precision": FP32}
        assert result_of(ask.generate("m", **fields)).inference_precision == FP32
        kept = result_of(ask.generate("m", max_new_tokens=1, state=begun.state))
        assert kept.inference_precision == FP32
        again = ask.generate("m", max_new_tokens=9, state=eight.state, log_probabilities=True)
        assert said(again) == rest
        learning = iter(
            [
                pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m", log_probabilities=True)),
                pb.LearnStreamRequest(predict=pb.TextPiece(text=PROMPT)),
            ]
        )
        (reply,) = ask.stub.LearnStream(learning, timeout=PATIENCE_S)
        plain = ask.score("m", [PROMPT], log_probabilities=True, inference_precision=FP32)
        assert list(reply.piece.tokens) == list(plain.scores[0].tokens)
    finally:
        other.close()


@pytest.mark.parametrize("way", ["Generate", "Score", "ScoreStream", "Embed"])
def test_a_precision_that_there_is_not_is_named(ask: Caller, way: str) -> None:
    calls: dict[str, Callable[..., object]] = {
        "Generate": partial(ask.generate, "m"),
        "Score": partial(ask.score, "m", [PROMPT]),
        "ScoreStream": partial(streamed, ask, PROMPT),
        "Embed": partial(embedded, ask),
    }
    with pytest.raises(grpc.RpcError) as caught:
        calls[way](inference_precision=7)
    prefix = "spec." if way == "ScoreStream" else ""
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields_of(caught.value) == [f"{prefix}inference_precision"]
    allowed = "INFERENCE_PRECISION_FP32, INFERENCE_PRECISION_INT8 or unset"
    said = caught.value.details()
    assert said == f"{prefix}inference_precision must be {allowed}, not 7"


def test_the_weights_of_a_job_compute_in_int8_as_well(ask: Caller) -> None:
    events = list(ask.train(tiny_spec("j"), b"the quick brown fox " * 50))
    source: dict[str, Any] = {"job": events[0].job, "inference_precision": INT8}
    for weights in (pb.JOB_WEIGHTS_LAST, pb.JOB_WEIGHTS_BEST):
        result = result_of(ask.generate("", max_new_tokens=2, job_weights=weights, **source))
        assert (result.inference_precision, result.job_step > 0) == (INT8, True)
    stored = ask.score("j", [PROMPT], inference_precision=INT8).scores
    assert ask.score("", [PROMPT], job_weights=pb.JOB_WEIGHTS_BEST, **source).scores == stored
