"""What one ScoreStream call does in a step, without a server around it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from treadle.model.enums import InferencePrecision
from treadle.model.network import trained_network
from treadle.model.scoring.scores import Details
from treadle.server.errors import StatusError
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.score import _ScoreCall
from treadle.server.inference.score_stream import ScoreStream
from treadle.server.inference.stream_units import StreamPiece
from treadle.server.messages import responses
from treadle.server.messages.reply_size import ReplyGrowth
from treadle.server.messages.score_request import scoring, stream_scoring
from treadle.v1 import sequence_pb2 as pb

from .samples import nothing_held, plain_states, tiny_model

TEXT = "abc" * 3000


def stream_of(max_message_bytes: int = 1 << 20, **fields: object) -> ScoreStream:
    spec = pb.ScoreStreamSpec(model="m", **fields)  # type: ignore[arg-type]
    asked = stream_scoring(spec)
    source = ResolvedModel(tiny_model())
    return ScoreStream(source, spec, asked, max_message_bytes, plain_states(), nothing_held())


def test_a_reply_is_written_as_its_tokens_are_scored() -> None:
    stream = stream_of(ranks=True, top_log_probabilities=2)
    list(stream.begin())
    sizes = [
        len(stream.reply.piece.tokens) for _ in stream.feed(StreamPiece.of(pb.TextPiece(text=TEXT)))
    ]
    assert max(b - a for a, b in pairwise(sizes)) <= 64
    score = tiny_model().score(TEXT)
    assert sizes[-1] == len(score.tokens) == stream.reply.piece.token_count + 1
    found = [token.log_probability for token in stream.reply.piece.tokens]
    assert found[1:] == [token.log_probability for token in score.tokens[1:]]


def test_a_reply_too_large_is_given_up_before_it_is_whole() -> None:
    stream = stream_of(5000, ranks=True, top_log_probabilities=2)
    list(stream.begin())
    with pytest.raises(StatusError) as caught:
        list(stream.feed(StreamPiece.of(pb.TextPiece(text=TEXT))))
    assert "smaller pieces" in caught.value.message
    assert len(stream.reply.piece.tokens) < 5000 / 7 + 64


def test_a_piece_without_tokens_is_answered_all_the_same() -> None:
    stream = stream_of()
    list(stream.begin())
    list(stream.feed(StreamPiece.of(pb.TextPiece())))
    assert stream.reply.WhichOneof("event") == "piece"


def test_the_weights_are_hashed_in_short_steps_for_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = tiny_model().trained
    monkeypatch.setattr(trained_network, "_HASHED_BYTES", 256)
    monkeypatch.setattr(trained, "_hash", [])
    stream = stream_of(return_state=True)
    list(stream.begin())
    assert len(list(stream.finish())) >= -(-trained.parameters.flat.nbytes // 256)
    assert stream.reply.result.state


def test_a_context_is_read_once_for_all_texts_of_a_call() -> None:
    def steps(count: int) -> int:
        request = pb.ScoreRequest(model="m", texts=["ab"] * count, context=TEXT, ranks=True)
        reply = pb.ScoreResponse()
        growth = ReplyGrowth(nothing_held(), 1 << 20, "piece.text", "send less")
        work = _ScoreCall(tiny_model(), request, scoring(request), reply, growth, plain_states())
        taken = sum(1 for _ in work.steps())
        assert {text.SerializeToString() for text in reply.scores} == {one.SerializeToString()}
        return taken

    score = tiny_model().score("ab", TEXT, details=Details(ranks=True))
    one = pb.ScoreResponse().scores.add()
    one.MergeFrom(responses.summary(score, InferencePrecision.FP32))
    responses.add_tokens(one, score.tokens)
    assert steps(100) - steps(1) < len(TEXT) / 64 * 5


def test_a_long_context_is_read_in_steps_before_any_piece() -> None:
    stream = stream_of(context=TEXT)
    assert len(list(stream.begin())) > len(TEXT) / 64
    steps = list(stream.feed(StreamPiece.of(pb.TextPiece(text="abc", end=True))))
    assert len(steps) < 5
    total = tiny_model().score("abc", TEXT).total_log_probability
    assert stream.reply.piece.whole.total_log_probability == total
