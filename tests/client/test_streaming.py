"""Streams that are scored and learned, and vectors, against a server that answers by rote."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google.rpc import code_pb2  # type: ignore[import-untyped]

from treadle.client import Client, InputError, InvalidArgumentError, NotFoundError, StreamPiece
from treadle.v1 import sequence_pb2 as v1

from .fake import FAULT, FORBIDDEN, FakeService, status

PATIENCE_S = 120.0


class TestScoreStream:
    def test_every_piece_is_answered(self, client: Client, service: FakeService) -> None:
        pieces: list[Any] = ["ab", ("c", True), StreamPiece("de"), "", StreamPiece("", end=True)]
        with client.score_stream("m", pieces, ranks=True, state=b"s", return_state=True) as stream:
            scores = list(stream)
            result = stream.result()
        assert [-score.total_log_probability for score in scores] == [2, 1, 2, 0, 0]
        assert [score.whole.token_count for score in scores] == [0, 3, 0, 0, 2]
        assert scores[0].tokens[0].rank == ord("a") % 16
        assert (result.item_count, result.total.token_count, result.state) == (2, 5, b"s")
        assert service.requests == [
            v1.ScoreStreamSpec(model="m", ranks=True, state=b"s", return_state=True)
        ]
        assert [piece.end for piece in service.pieces] == [False, True, False, False, True]

    def test_pieces_are_sent_as_they_come(self, client: Client) -> None:
        next_one = threading.Semaphore(0)

        def slowly() -> Iterator[str]:
            for text in ("a", "bc", "def"):
                assert next_one.acquire(timeout=PATIENCE_S)
                yield text

        with client.score_stream("m", slowly()) as stream:
            scores = iter(stream)
            for count in (1, 2, 3):  # each answer is there before the next piece is
                next_one.release()
                assert next(scores).token_count == count
            assert stream.result().total.token_count == 6

    def test_one_by_one(self, client: Client) -> None:
        with client.open_score_stream("m", return_state=True) as stream:
            assert stream.send("abc").token_count == 3
            assert stream.send("d", end=True).whole.token_count == 4
            assert stream.send("xy").token_count == 2
            result = stream.finish()
            assert (result.item_count, result.total.token_count, result.state) == (1, 6, b"xy")
            with pytest.raises(InputError, match="closed"):
                stream.send("z")

    def test_a_piece_that_cannot_be_read_may_be_skipped(
        self, client: Client, service: FakeService
    ) -> None:
        with client.open_score_stream("m", on_error="skip") as stream:
            assert stream.send("ab", more=True).token_count == 2
            skipped = stream.send(FAULT, end=True)
            assert (skipped.error.code, skipped.error.message) == (3, "there is no '?'")
            assert not stream.send("c").HasField("error")
            assert stream.finish().total.token_count == 3
        assert [piece.more for piece in service.pieces] == [True, False, False]
        with client.score_stream("m", ["ab", FAULT, "c"], on_error="stop") as scores:
            assert [score.HasField("error") for score in scores] == [False, True, False]
        assert [spec.on_error for spec in service.requests] == [
            v1.ON_ERROR_SKIP,
            v1.ON_ERROR_STOP,
        ]

    def test_leaving_ends_the_call(self, client: Client, service: FakeService) -> None:
        with client.open_score_stream("m") as stream:
            stream.send("abc")
            assert not service.over.is_set()
        assert service.over.wait(PATIENCE_S)
        service.over.clear()
        blocked = threading.Event()

        def endless() -> Iterator[str]:
            yield "a"
            blocked.wait(PATIENCE_S)

        with client.score_stream("m", endless()) as whole:
            assert next(iter(whole)).token_count == 1
        assert service.over.wait(PATIENCE_S)
        blocked.set()

    def test_errors_are_those_of_other_calls(self, client: Client, service: FakeService) -> None:
        with (
            client.open_score_stream("m") as stream,
            pytest.raises(InvalidArgumentError, match="there is no"),
        ):
            stream.send(FAULT)
        with pytest.raises(InvalidArgumentError, match="there is no"):
            list(client.score_stream("m", ["a", FAULT, "b"]))
        service.failure = status(code_pb2.NOT_FOUND, "there is no model 'm'")
        with client.open_score_stream("m") as stream, pytest.raises(NotFoundError):
            stream.send("a")
        with pytest.raises(NotFoundError):
            client.score_stream("m", ["a"]).result()

    def test_trouble_with_the_pieces_is_the_callers(self, client: Client) -> None:
        def broken() -> Iterator[str]:
            yield "a"
            raise ZeroDivisionError("oh")

        with client.score_stream("m", broken()) as stream, pytest.raises(ZeroDivisionError):
            list(stream)
        for wrong in (b"bytes", 1, ("a", "b", "c"), ("a", "yes"), "\udcff"):
            pieces: Any = ["a", wrong]
            with pytest.raises(InputError, match="piece"):
                list(client.score_stream("m", pieces))

    def test_options_are_checked(self, client: Client, service: FakeService) -> None:
        with pytest.raises(InputError, match="either a model or a job"):
            client.open_score_stream()
        with pytest.raises(InputError, match="either a model or a job"):
            client.score_stream("m", [], job="j")
        assert service.requests == []


class TestLearnStream:
    def test_every_step_one_by_one(self, client: Client, service: FakeService) -> None:
        with client.open_learn_stream("m", optimizer="adam", learning_rate=0) as stream:
            assert stream.learn("abc", end=True).whole.token_count == 3
            assert stream.updates == 1
            stream.snapshot()
            assert stream.predict("ab").token_count == 2
            assert stream.updates == 1
            stream.learn("ab")
            assert stream.updates == 2
            stream.roll_back()
            assert stream.updates == 1
            model = stream.publish(alias="live")
            assert (model.name, model.version) == ("m", 2)
        (spec,) = service.requests
        assert spec == v1.LearnStreamSpec(model="m", optimizer=v1.OPTIMIZER_ADAM, learning_rate=0)
        assert spec.HasField("learning_rate")
        kinds = [step.WhichOneof("message") for step in service.steps]
        assert kinds == ["learn", "snapshot", "predict", "learn", "roll_back", "publish"]
        assert service.steps[-1].publish.alias == "live"
        assert service.over.wait(PATIENCE_S)

    def test_from_an_iterable(self, client: Client) -> None:
        steps: list[Any] = [
            "ab",
            v1.Snapshot(),
            StreamPiece("c", end=True),
            v1.RollBack(),
            v1.LearnStreamRequest(predict=v1.TextPiece(text="xyz")),
            v1.Publish(model="new"),
        ]
        with client.learn_stream("m", steps) as stream:
            assert [score.token_count for score in stream] == [2, 1, 3]
        assert stream.updates == 1
        assert [(model.name, model.version) for model in stream.published] == [("new", 2)]

    def test_what_fails_need_not_end_it(self, client: Client, service: FakeService) -> None:
        with client.open_learn_stream("m", on_error="skip") as stream:
            assert stream.publish("new", validate_only=True) == v1.Model(name="new")
            assert stream.learn("ab", more=True).token_count == 2
            assert stream.learn(FAULT).error.message == "there is no '?'"
            with pytest.raises(InvalidArgumentError, match="must be another"):
                stream.publish(FORBIDDEN)
            assert stream.publish("new").version == 2
        steps: list[Any] = [
            StreamPiece("ab"),
            v1.Publish(model=FORBIDDEN),
            FAULT,
            v1.Publish(model="new"),
        ]
        with client.learn_stream("m", steps, on_error="skip") as scores:
            assert [score.HasField("error") for score in scores] == [False, True]
        assert [str(error) for error in scores.unpublished] == ["publish.model must be another"]
        assert [model.name for model in scores.published] == ["new"]


class TestEmbed:
    def test_vectors(self, client: Client, service: FakeService) -> None:
        assert client.embed("m", ["abc", "d"]) == [[0.5, -0.25]] * 2
        assert client.embed("m", "abc", all_layers=True) == [[0.5, -0.25] * 2]
        assert service.requests[0] == v1.EmbedRequest(model="m", texts=["abc", "d"])

    def test_many_texts_are_several_calls_to_one_version(
        self, client: Client, service: FakeService
    ) -> None:
        counts = [each.token_count for each in client.embeddings("m@a", ["ab"] * 600)]
        assert counts == [2] * 600
        assert [len(request.texts) for request in service.requests] == [250, 250, 100]
        asked = [(request.model, request.version) for request in service.requests]
        assert asked == [("m@a", 0), ("m", 7), ("m", 7)]


def test_scores_of_an_alias_stay_with_one_version(client: Client, service: FakeService) -> None:
    assert len(list(client.score("m@a", ["x"] * 1001))) == 1001
    asked = [(request.model, request.version) for request in service.requests]
    assert asked == [("m@a", 0), ("m", 7)]
