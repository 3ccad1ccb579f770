"""LearnStream: predict, then learn; snapshots, publishing, limits and bad requests."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from treadle.model import Model
from treadle.model.enums import OptimizerKind
from treadle.model.online.config import LearningConfig
from treadle.model.online.learner import Learner
from treadle.model.scoring.scores import Details
from treadle.server.access.quota_book import QuotaBook
from treadle.server.inference.admission import Admission, InferenceAdmission
from treadle.server.inference.learn import LearnHandler
from treadle.server.inference.learn_stream import LearnStream
from treadle.server.inference.model_resolver import ModelResolver
from treadle.server.inference.open_streams import OpenStreams, PendingStreams
from treadle.server.inference.scheduler import Scheduler
from treadle.server.messages import learn_request
from treadle.server.messages.learn_request import Publication
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_version import MODEL_FILE
from treadle.server.storage.models import ModelStore
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, detail_of, fields_of, tiny_spec, wait_for
from .samples import nothing_held

TEXT = "the quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with limits of two learning streams, small replies, and a model `m`."""
    flags = ("--learning-limit", "2", "--max-message-bytes", "65536")
    server = Server(tmp_path_factory.mktemp("learning") / "data", *flags)
    server.caller.trained(tiny_spec("m"))
    yield server
    server.close()


def stored(server: Server, version: int = 1, name: str = "m") -> Model:
    return Model.load(server.data_dir / "models" / name / str(version) / MODEL_FILE)


class Stream:
    """One LearnStream call, a request at a time."""

    def __init__(self, server: Server, timeout: float = PATIENCE_S, **spec: Any) -> None:
        self._requests: queue.SimpleQueue[pb.LearnStreamRequest | None] = queue.SimpleQueue()
        self.call = server.caller.stub.LearnStream(iter(self._requests.get, None), timeout=timeout)
        self.send(spec=pb.LearnStreamSpec(**{"model": "m", **spec}))

    def send(self, **message: Any) -> None:
        self._requests.put(pb.LearnStreamRequest(**message))

    def ask(self, **message: Any) -> pb.LearnStreamResponse:
        self.send(**message)
        return next(self.call)

    def learn(self, text: str, end: bool = False) -> pb.LearnStreamResponse:
        return self.ask(learn=pb.TextPiece(text=text, end=end))

    def predict(self, text: str, end: bool = False) -> pb.LearnStreamResponse:
        return self.ask(predict=pb.TextPiece(text=text, end=end))

    def publish(self, **fields: Any) -> pb.Model:
        return self.ask(publish=pb.Publish(**fields)).published

    def close(self) -> None:
        """Ends the requests; the call must then end well."""
        self._requests.put(None)
        assert list(self.call) == []
        assert self.call.code() is grpc.StatusCode.OK

    def fail(self) -> grpc.RpcError:
        """Returns the error that the call ends with."""
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        self._requests.put(None)
        return caught.value


def test_a_piece_is_predicted_and_then_learnt(learning: Server) -> None:
    settings = {"learning_rate": 0.5, "window": 16}
    stream = Stream(
        learning,
        log_probabilities=True,
        ranks=True,
        top_log_probabilities=2,
        optimizer=pb.OPTIMIZER_ADAM,
        clip_norm=0.5,
        **settings,
    )
    config = LearningConfig(optimizer=OptimizerKind.ADAM, clip_norm=0.5, **settings)  # type: ignore[arg-type]
    learner = Learner(stored(learning), config, Details(ranks=True, alternatives=2))
    for text, end, learn in ((TEXT, False, True), ("the dog", True, False), ("a fox", True, True)):
        reply = stream.learn(text, end) if learn else stream.predict(text, end)
        *_, expected = learner.feed(text, end, learn)
        assert expected is not None
        assert reply.piece.total_log_probability == expected.total_log_probability
        assert reply.piece.token_count == expected.token_count
        assert reply.piece.HasField("whole") == end
        assert reply.updates == learner.updates
        for found, token in zip(reply.piece.tokens, expected.tokens, strict=True):
            assert (found.id, found.text, found.rank) == (token.id, token.text, token.rank)
            assert found.HasField("log_probability") == (token.log_probability is not None)
            assert found.log_probability == (token.log_probability or 0)
            assert [a.id for a in found.alternatives] == [a.id for a in token.alternatives]
    assert learner.updates == 13
    stream.close()


def test_what_is_published_is_taken_by_later_calls_and_by_nobody_before(learning: Server) -> None:
    caller = learning.caller
    before = caller.text("m", temperature=0.0, max_new_tokens=20)
    stream, other = (Stream(learning, learning_rate=0.5) for _ in range(2))
    first = other.predict(TEXT)
    for _ in range(8):
        stream.learn(TEXT, end=True)
    model = stream.publish(alias="online")
    assert (model.name, model.version, list(model.aliases)) == ("m", 2, ["online"])
    assert model.training.ended_by.startswith("learned online from ")
    assert model.sha256
    reply = caller.generate("m", temperature=0.0, max_new_tokens=20)
    assert reply[-1].result.version == 2
    assert "".join(part.text for part in reply) == stored(learning, 2).generate(
        temperature=0, max_new_tokens=20
    )
    assert caller.text("m", version=1, temperature=0.0, max_new_tokens=20) == before
    # Both streams continue with the weights that they had.
    other.learn("", end=True)
    assert other.ask(roll_back=pb.RollBack()).updates == 0
    assert other.predict(TEXT).piece == first.piece
    after = stream.predict(TEXT, end=True).piece
    assert after.total_log_probability > first.piece.total_log_probability
    stream.close()
    other.close()
    # Exactly the weights of the stream were stored.
    again = Stream(learning, model="m@online", learning_rate=0)
    assert again.learn(TEXT, end=True).piece == after
    again.close()


def test_other_names_and_no_update_at_all(learning: Server) -> None:
    stream = Stream(learning, version=1)
    model = stream.publish(model="copy")
    assert (model.name, model.version, list(model.aliases)) == ("copy", 1, [])
    assert stored(learning, 1, "copy").parameters.flat.tobytes() == (
        stored(learning).parameters.flat.tobytes()
    )
    assert stream.publish(model="copy").version == 2
    stream.close()
    assert not list((learning.data_dir / "tmp").glob("model-*"))


def test_snapshots_are_gone_back_to(learning: Server) -> None:
    stream = Stream(learning, version=1, learning_rate=0.5)
    stream.learn(TEXT)
    kept = stream.ask(snapshot=pb.Snapshot())
    assert (kept.WhichOneof("event"), kept.updates) == ("snapshot", 3)
    runs = []
    for _ in range(2):
        runs.append((stream.learn(TEXT), stream.learn("fox", end=True)))
        reply = stream.ask(roll_back=pb.RollBack())
        assert (reply.WhichOneof("event"), reply.updates) == ("roll_back", 3)
    assert runs[0] == runs[1]
    stream.close()


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"model": ""}, ["spec.model"]),
        ({"model": "a/b"}, ["spec.model"]),
        ({"model": "m@"}, ["spec.model"]),
        ({"optimizer": pb.OPTIMIZER_ADAGRAD}, ["spec.optimizer"]),
        ({"optimizer": 77}, ["spec.optimizer"]),
        ({"unknown_policy": 77}, ["spec.unknown_policy"]),
        ({"learning_rate": -1.0}, ["spec.learning_rate"]),
        ({"learning_rate": float("nan")}, ["spec.learning_rate"]),
        ({"clip_norm": float("inf")}, ["spec.clip_norm"]),
        (
            {"window": 4097, "top_log_probabilities": 21},
            ["spec.window", "spec.top_log_probabilities"],
        ),
        ({"unknown_policy": pb.UNKNOWN_POLICY_UNKNOWN}, ["spec.unknown_policy"]),
    ],
)
def test_a_spec_out_of_range_is_refused_by_field(
    learning: Server, spec: dict[str, Any], fields: list[str]
) -> None:
    assert fields_of(Stream(learning, **spec).fail()) == fields


def test_what_is_not_there_is_not_found(learning: Server) -> None:
    for spec in ({"model": "nobody"}, {"model": "m@nobody"}, {"version": 99}):
        assert Stream(learning, **spec).fail().code() is grpc.StatusCode.NOT_FOUND


def test_requests_out_of_order_are_refused(learning: Server) -> None:
    for first in ([], [pb.LearnStreamRequest()], [pb.LearnStreamRequest(snapshot=pb.Snapshot())]):
        with pytest.raises(grpc.RpcError) as caught:
            list(learning.caller.stub.LearnStream(iter(first), timeout=PATIENCE_S))
        assert fields_of(caught.value) == ["spec"]
    for second, field in (({"spec": pb.LearnStreamSpec(model="m")}, "spec"), ({}, "message")):
        stream = Stream(learning)
        stream.send(**second)
        assert fields_of(stream.fail()) == [field]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"learn": pb.TextPiece(text="#")}, "learn.text"),
        ({"predict": pb.TextPiece(text="the #")}, "predict.text"),
        ({"publish": pb.Publish(model="../x")}, "publish.model"),
        ({"publish": pb.Publish(alias="latest")}, "publish.alias"),
        ({"publish": pb.Publish(alias="7")}, "publish.alias"),
        ({"publish": pb.Publish(alias="a b")}, "publish.alias"),
    ],
)
def test_a_request_that_cannot_be_done_names_its_field(
    learning: Server, message: dict[str, Any], field: str
) -> None:
    stream = Stream(learning, unknown_policy=pb.UNKNOWN_POLICY_ERROR)
    stream.send(**message)
    assert fields_of(stream.fail()) == [field]


def test_too_large_a_learning_rate_ends_the_session_and_says_so(learning: Server) -> None:
    stream = Stream(learning, learning_rate=1e38, clip_norm=1e38, window=4)
    stream.send(learn=pb.TextPiece(text=TEXT * 4))
    error = stream.fail()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "lower learning_rate" in str(error.details())


def test_a_reply_that_would_be_too_large_is_refused(learning: Server) -> None:
    stream = Stream(learning, top_log_probabilities=20)
    stream.send(learn=pb.TextPiece(text=TEXT * 60))
    assert fields_of(stream.fail()) == ["learn.text"]
    stream = Stream(learning)
    assert stream.learn(TEXT * 60).piece.token_count == len(TEXT) * 60 - 1
    stream.close()


def test_streams_beyond_the_limit_are_refused_until_others_are_cancelled(
    learning: Server,
) -> None:
    wait_for(lambda: learning.caller.info().learning_running == 0)
    streams = [Stream(learning), Stream(learning)]
    for stream in streams:
        stream.predict("the")
    info = learning.caller.info()
    assert (info.learning_running, info.learning_limit) == (2, 2)
    error = Stream(learning).fail()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail_of(error, "RetryInfo")
    # In the middle of much to learn, and between two requests.
    streams[0].send(learn=pb.TextPiece(text=TEXT * 300))
    for stream in streams:
        stream.call.cancel()
        stream._requests.put(None)
    wait_for(lambda: learning.caller.info().learning_running == 0)


def test_a_deadline_ends_a_session(learning: Server) -> None:
    stream = Stream(learning, timeout=0.3, window=1)
    stream.send(learn=pb.TextPiece(text=TEXT * 340))
    assert stream.fail().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: learning.caller.info().learning_running == 0)


def test_a_name_that_cannot_be_stored_is_refused(learning: Server) -> None:
    (learning.data_dir / "models" / "taken").touch()
    stream = Stream(learning)
    stream.send(publish=pb.Publish(model="taken"))
    error = stream.fail()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "'taken'" in str(error.details())


def test_a_publication_that_fails_leaves_a_session_that_skips_errors(learning: Server) -> None:
    stream = Stream(learning, version=1, on_error=pb.ON_ERROR_STOP, learning_rate=0.5)
    assert stream.publish(model="kept", alias="a", validate_only=True) == pb.Model(name="kept")
    first = stream.learn(TEXT)
    for wrong in ({"model": "../x"}, {"model": "kept", "alias": "7"}):
        for check in (True, False):
            reply = stream.ask(publish=pb.Publish(validate_only=check, **wrong))
            assert (reply.WhichOneof("event"), reply.updates) == (None, first.updates)
            assert reply.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert "publish." in reply.error.message
    assert stream.learn("#").piece.error.message
    assert stream.publish(model="kept").version == 1
    stream.close()


@contextmanager
def publishing(
    learning: Server, folder: Path
) -> Iterator[tuple[DataDir, Callable[[str], pb.Model]]]:
    """Gives a store and what publishes a model there, as `m` with an alias."""
    model = stored(learning)
    data_dir = DataDir(folder / "data")
    scheduler = Scheduler(1)
    places = OpenStreams(1, "learning streams", 60)
    admission = InferenceAdmission(
        Admission(1, "calls"), Admission(1, "texts"), places, places, QuotaBook()
    )
    pending_streams = PendingStreams(1, 60)
    resolver = cast(ModelResolver, None)  # the stream below has its model already
    handler = LearnHandler(
        resolver,
        data_dir.models,
        admission,
        pending_streams,
        scheduler,
        MemoryBudget(1 << 30),
        max_message_bytes=1000,
        max_call_s=60,
    )
    asked = learn_request.learning(pb.LearnStreamSpec(model="m"))
    stream = LearnStream(model, asked, 1000, nothing_held(), nothing_held())
    list(stream.begin())

    def publish(alias: str) -> pb.Model:
        return asyncio.run(handler._publish(stream, Publication("m", alias)))

    yield data_dir, publish
    scheduler.close()
    data_dir.close()


@pytest.mark.parametrize("fails", ["save", "claim"])
def test_a_full_disk_leaves_nothing_behind(
    learning: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with publishing(learning, tmp_path) as (data_dir, publish):
        with monkeypatch.context() as patch:
            patch.setattr(Model if fails == "save" else ModelStore, fails, full)
            with pytest.raises(OSError, match="No space"):
                publish("")
        assert data_dir.models.versions("m") == []
        assert not list((tmp_path / "data" / "tmp").iterdir())
        assert publish("a").aliases == ["a"]


@pytest.mark.parametrize("method", ["_stat", "set_alias", "describe"])
def test_a_model_that_is_deleted_while_it_is_published_is_published_again(
    learning: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    original = getattr(ModelStore, method)
    deletions = 3

    def deleted_first(models: ModelStore, *arguments: Any) -> Any:
        nonlocal deletions
        if deletions and models.versions("m"):
            deletions -= 1
            models.delete("m", None, force=True)
        return original(models, *arguments)

    with publishing(learning, tmp_path) as (data_dir, publish):
        monkeypatch.setattr(ModelStore, method, deleted_first)
        model = publish("a")
        assert data_dir.models.versions("m") == [model.version]
        assert model.aliases == ["a"]
    assert deletions == 0
