"""Score, ScoreStream and Embed, over the wire."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, detail_of, fields_of, tiny_spec, wait_for

WIDE = "the quick brown fox jumps over the lazy dog. " * 8
ITEMS = [WIDE[start : start + 90] for start in (0, 7, 100)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with limits of three calls and three streams, and small messages.

    Its models are `text`, `deep` of two layers, `lines` and `events`.
    """
    flags = ("--inference-limit", "3", "--stream-limit", "3", "--max-message-bytes", "65536")
    server = Server(tmp_path_factory.mktemp("scoring") / "data", *flags)
    server.caller.trained(tiny_spec("text"))
    deep = tiny_spec("deep")
    deep.network.layers = 2
    server.caller.trained(deep)
    lines = tiny_spec("lines")
    lines.data.layout = pb.CORPUS_LAYOUT_LINES
    server.caller.trained(lines, TEXT.replace(b". ", b".\n"))
    lines.model = "events"
    lines.tokenizer.kind = pb.TOKENIZER_KIND_EVENTS
    server.caller.trained(lines, TEXT.replace(b". ", b".\n"))
    yield server
    wait_for(lambda: server.caller.info().inference_running == 0)
    wait_for(lambda: server.caller.info().score_streams_running == 0)
    log = server.log
    server.close()
    assert "internal error" not in log
    assert "Traceback" not in log


def piece(text: str, end: bool = False) -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(piece=pb.TextPiece(text=text, end=end))


def begin(**fields: Any) -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(**fields))


def stream(
    server: Server, messages: Iterable[pb.ScoreStreamRequest], timeout: float = PATIENCE_S
) -> list[pb.ScoreStreamResponse]:
    return list(server.caller.stub.ScoreStream(iter(messages), timeout=timeout))


def pieces(text: str, seed: int) -> list[pb.ScoreStreamRequest]:
    """A text cut at random, and its end."""
    draw = random.Random(seed)
    found = []
    start = 0
    while start < len(text):
        size = draw.choice((0, 1, 1, 2, 7, 64, 100))
        found.append(piece(text[start : start + size]))
        start += size
    return [*found, piece("", end=True)]


def exact(value: float) -> bytes:
    return struct.pack("<d", value)


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("model", ["text", "lines", "events"])
@pytest.mark.parametrize("context", ["", "the lazy dog. "])
def test_a_stream_scores_what_score_does(server: Server, model: str, context: str) -> None:
    details = {"log_probabilities": True, "ranks": True, "top_log_probabilities": 3}
    text = " ".join(WIDE.split()) if model == "events" else WIDE
    expected = server.caller.score(model, [text], context=context, **details).scores[0]
    for seed in range(3):
        spec = begin(model=model, context=context, **details)
        messages = [spec, *pieces(text, seed)]
        *replies, last = stream(server, messages)
        assert len(replies) == len(messages) - 1
        tokens = [token for reply in replies for token in reply.piece.tokens]
        assert [t.SerializeToString() for t in tokens] == [
            t.SerializeToString() for t in expected.tokens
        ]
        for summary in (replies[-1].piece.whole, last.result.total):
            assert exact(summary.total_log_probability) == exact(expected.total_log_probability)
            assert summary.token_count == expected.token_count
            assert summary.character_count == expected.character_count
        assert last.result.item_count == 1
        assert last.result.version == 1
    ranked = [token for token in expected.tokens if token.HasField("log_probability")]
    assert len(ranked) == expected.token_count
    for token in ranked:
        assert len(token.alternatives) == 3
        if token.rank <= 3:
            assert token.alternatives[token.rank - 1].id == token.id


def test_details_are_sent_only_where_asked_for(server: Server) -> None:
    score = server.caller.score("text", ["the fox"], ranks=True).scores[0]
    assert [bool(token.rank) for token in score.tokens] == [False] + [True] * 6
    assert not any(token.alternatives for token in score.tokens)
    assert not score.state
    *replies, last = stream(server, [begin(model="text"), piece("the fox")])
    assert [len(reply.piece.tokens) for reply in replies] == [0]
    assert replies[0].piece.token_count == 6
    assert not replies[0].piece.HasField("whole")
    assert (last.result.item_count, last.result.state) == (0, b"")


def test_items_follow_each_other_in_one_stream(server: Server) -> None:
    messages = [begin(model="lines", ranks=True), *(piece(item, end=True) for item in ITEMS)]
    *replies, last = stream(server, messages)
    expected = server.caller.score("lines", ITEMS).scores
    for reply, score in zip(replies, expected, strict=True):
        assert exact(reply.piece.whole.total_log_probability) == exact(score.total_log_probability)
        assert len(reply.piece.tokens) == score.token_count
    assert last.result.item_count == 3
    assert last.result.total.token_count == sum(score.token_count for score in expected)


@pytest.mark.parametrize("model", ["text", "lines", "events"])
def test_a_state_continues_in_another_call(server: Server, model: str) -> None:
    text = " ".join(WIDE.split()) if model == "events" else WIDE
    whole = server.caller.score(model, [text], ranks=True).scores[0]
    expected = [t.SerializeToString() for t in whole.tokens if t.rank]
    cut = text.index("jumps", 100)
    spec = begin(model=model, ranks=True, return_state=True)
    *_, last = stream(server, [spec, piece(text[:20]), piece(text[20:cut])])
    scored = server.caller.score(model, [text[:cut]], return_states=True).scores[0]
    assert last.result.state == scored.state
    assert len(scored.state) > 32
    unary = server.caller.score(model, [text[cut:]], ranks=True, state=scored.state).scores[0]
    spec = begin(model=model, ranks=True, state=scored.state)
    first, *_ = stream(server, [spec, piece(text[cut:], end=True)])
    for tokens in (unary.tokens, first.piece.tokens):
        assert [t.SerializeToString() for t in tokens] == expected[-len(tokens) :]
    assert unary.token_count == len(text[cut:].split() if model == "events" else text[cut:]) + (
        model != "text"
    )


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "spec"),
        ([piece("x")], "spec"),
        ([pb.ScoreStreamRequest()], "spec"),
        ([begin(model="text"), begin(model="text")], "spec"),
        ([begin(model="text"), pb.ScoreStreamRequest()], "piece"),
        ([begin(model="-")], "spec.model"),
        ([begin(model="text", top_log_probabilities=21)], "spec.top_log_probabilities"),
        ([begin(model="text", context="ÿ")], "spec.context"),
        ([begin(model="text", state=b"damaged")], "spec.state"),
        ([begin(model="text"), piece("the"), piece("ÿ")], "piece.text"),
        ([begin(model="text", unknown_policy=pb.UNKNOWN_POLICY_UNKNOWN)], "spec.unknown_policy"),
        ([begin(model="text", ranks=True), piece("the " * 5000)], "piece.text"),
        ([begin(model="events"), piece("x" * 65000), piece("x" * 1000)], "piece.text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_stream_is_named(
    server: Server, messages: list[pb.ScoreStreamRequest], field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stream(server, messages)
    assert fields_of(caught.value) == [field]


def test_what_is_wrong_with_a_score_is_named(server: Server) -> None:
    def fields(model: str = "text", text: str = "the", **more: Any) -> list[str]:
        with pytest.raises(grpc.RpcError) as caught:
            server.caller.score(model, [text], **more)
        return fields_of(caught.value)

    assert fields(state=b"damaged") == ["state"]
    assert fields(top_log_probabilities=21) == ["top_log_probabilities"]
    assert fields(text="the " * 5000, ranks=True) == ["ranks"]
    assert fields(text="the " * 1000, top_log_probabilities=9) == ["top_log_probabilities"]
    assert fields(context="ÿ") == ["context"]


def test_a_state_of_another_model_is_refused(server: Server) -> None:
    state = server.caller.score("lines", ["the"], return_states=True).scores[0].state
    with pytest.raises(grpc.RpcError) as caught:
        server.caller.score("text", ["the"], state=state)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        stream(server, [begin(model="text", state=state)])
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


# ---------------------------------------------------------------- long calls


class Talk:
    """A stream that is fed by hand."""

    def __init__(self, server: Server, spec: pb.ScoreStreamRequest, timeout: float) -> None:
        self._queue: SimpleQueue[pb.ScoreStreamRequest | None] = SimpleQueue()
        self._queue.put(spec)
        messages = iter(self._queue.get, None)
        self.call = server.caller.stub.ScoreStream(messages, timeout=timeout)
        self.waits = False

    def say(self, message: pb.ScoreStreamRequest) -> pb.ScoreStreamResponse:
        self._queue.put(message)
        self.waits = True
        reply = next(self.call)
        self.waits = False
        return reply

    def close(self) -> list[pb.ScoreStreamResponse]:
        self._queue.put(None)
        return list(self.call)

    def drop(self) -> None:
        self.call.cancel()
        self._queue.put(None)


def test_open_streams_have_a_limit_of_their_own(server: Server) -> None:
    talks = [Talk(server, begin(model="text"), PATIENCE_S) for _ in range(3)]
    for talk in talks:
        assert talk.say(piece("the ")).piece.token_count == 3
    info = server.caller.info()
    assert (info.score_streams_running, info.score_stream_limit) == (3, 3)
    assert info.inference_running == 0
    assert server.caller.score("text", ["the"]).scores[0].token_count == 2
    with pytest.raises(grpc.RpcError) as caught:
        stream(server, [begin(model="text")])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    detail_of(caught.value, "RetryInfo")
    talks[0].drop()
    wait_for(lambda: server.caller.info().score_streams_running == 2)
    assert stream(server, [begin(model="text")])[-1].HasField("result")
    assert talks[1].close()[-1].result.total.token_count == 3
    talks[2].drop()
    wait_for(lambda: server.caller.info().score_streams_running == 0)


def test_a_deadline_ends_a_stream(server: Server) -> None:
    talk = Talk(server, begin(model="text"), 0.5)
    talk.say(piece("the "))
    with pytest.raises(grpc.RpcError) as caught:
        next(talk.call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    talk.drop()
    wait_for(lambda: server.caller.info().score_streams_running == 0)


def test_a_cancelled_stream_stops_in_the_middle_of_a_piece(server: Server) -> None:
    talk = Talk(server, begin(model="text"), PATIENCE_S)
    talk.say(piece("the "))
    ends: list[object] = []

    def say() -> None:
        try:
            ends.append(talk.say(piece("the fox " * 8000)))
        except grpc.RpcError as error:
            ends.append(error.code())

    thread = threading.Thread(target=say)
    thread.start()
    wait_for(lambda: talk.waits)
    talk.drop()
    thread.join(PATIENCE_S)
    assert ends == [grpc.StatusCode.CANCELLED]
    wait_for(lambda: server.caller.info().score_streams_running == 0)


def test_a_model_that_goes_does_not_disturb_its_stream(server: Server) -> None:
    server.caller.trained(tiny_spec("gone"))
    expected = server.caller.score("gone", [WIDE]).scores[0]
    talk = Talk(server, begin(model="gone"), PATIENCE_S)
    talk.say(piece(WIDE[:50]))
    server.caller.trained(tiny_spec("gone", max_steps=9))
    server.caller.stub.DeleteModel(
        pb.DeleteModelRequest(model="gone", version=1), timeout=PATIENCE_S
    )
    talk.say(piece(WIDE[50:]))
    [last] = talk.close()
    total = last.result.total.total_log_probability
    assert exact(total) == exact(expected.total_log_probability)
    assert last.result.version == 1


# ---------------------------------------------------------------- vectors


def embed(server: Server, model: str, texts: list[str], **more: Any) -> pb.EmbedResponse:
    request = pb.EmbedRequest(model=model, texts=texts, **more)
    return server.caller.stub.Embed(request, timeout=PATIENCE_S)


def test_texts_become_vectors(server: Server) -> None:
    texts = [WIDE, "", "the"]
    reply = embed(server, "text", texts)
    assert [made.token_count for made in reply.embeddings] == [len(WIDE), 0, 3]
    assert [len(made.values) for made in reply.embeddings] == [8, 8, 8]
    assert list(reply.embeddings[1].values) == [0.0] * 8
    assert all(-1 <= value <= 1 for made in reply.embeddings for value in made.values)
    assert reply.version == 1
    for text, made in zip(texts, reply.embeddings, strict=True):
        alone = embed(server, "text", [text]).embeddings[0]
        assert alone.SerializeToString() == made.SerializeToString()
    # One layer: all of them are the last.
    assert embed(server, "text", texts, all_layers=True) == reply
    assert any(embed(server, "lines", [""]).embeddings[0].values)


def test_all_layers_are_the_lowest_first(server: Server) -> None:
    both = embed(server, "deep", ["the"], all_layers=True).embeddings[0].values
    assert len(both) == 16
    assert list(embed(server, "deep", ["the"]).embeddings[0].values) == list(both[8:])


@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        (lambda: {"texts": []}, "texts"),
        (lambda: {"texts": ["a"] * 1001}, "texts"),
        (lambda: {"texts": ["the", "ÿ"]}, "texts[1]"),
        (lambda: {"texts": ["the"], "unknown_policy": 3}, "unknown_policy"),
        (lambda: {"texts": ["the"], "model": "-"}, "model"),
        (lambda: {"texts": [""] * 1000, "model": "deep", "all_layers": True}, "texts"),
    ],
)
def test_what_is_wrong_with_an_embedding_is_named(
    server: Server, request_of: Callable[[], dict[str, Any]], field: str
) -> None:
    fields = {"model": "text", **request_of()}
    with pytest.raises(grpc.RpcError) as caught:
        embed(server, **fields)
    assert fields_of(caught.value) == [field]


def test_a_text_to_embed_may_be_given_as_tokens(server: Server) -> None:
    scored = server.caller.score("text", [WIDE], log_probabilities=True)
    ids = [token.id for token in scored.scores[0].tokens]
    request = pb.EmbedRequest(model="text", tokens=ids)
    reply = server.caller.stub.Embed(request, timeout=PATIENCE_S)
    assert reply == embed(server, "text", [WIDE])
    wrong: dict[str, Any] = {"tokens": {"texts": ["a"], "tokens": ids}}
    wrong["tokens[1]"] = {"tokens": [ids[0], 10**6]}
    for field, fields in wrong.items():
        with pytest.raises(grpc.RpcError) as failure:
            server.caller.stub.Embed(pb.EmbedRequest(model="text", **fields), timeout=PATIENCE_S)
        assert fields_of(failure.value) == [field]
