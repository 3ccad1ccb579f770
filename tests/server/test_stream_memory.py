"""What streams keep is reserved in the memory budget, and free again after each kind of end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from treadle.model import Model
from treadle.model.network.memory_estimate import scorer_bytes
from treadle.model.online.config import LearningConfig
from treadle.model.online.memory_estimate import learner_bytes, snapshot_bytes
from treadle.server.storage.model_version import MODEL_FILE
from treadle.v1 import sequence_pb2 as pb

from .harness import Server, detail_of, tiny_spec, wait_for
from .test_open_streams import Call

BUDGET = 16 << 20
WINDOW = 4096
"""A window that makes learners of a tiny model large."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small budget and a model `m`, which is loaded."""
    flags = ("--standby-workers", "0", "--memory-budget", str(BUDGET))
    server = Server(tmp_path_factory.mktemp("memory") / "data", *flags)
    server.caller.trained(tiny_spec("m"))
    server.caller.score("m", ["the"])
    yield server
    log = server.log
    server.close()
    assert "internal error" not in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def model(server: Server) -> Model:
    return Model.load(server.data_dir / "models" / "m" / "1" / MODEL_FILE)


def used(server: Server) -> int:
    return server.caller.info().memory_used_bytes


def learn_stream(server: Server, **spec: Any) -> Call:
    settings: dict[str, Any] = {"window": WINDOW, **spec}
    first = pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m", **settings))
    return Call(server.caller.stub.LearnStream, first)


def score_stream(server: Server, **spec: Any) -> Call:
    first = pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m", **spec))
    return Call(server.caller.stub.ScoreStream, first)


def learn(text: str = "the") -> pb.LearnStreamRequest:
    return pb.LearnStreamRequest(learn=pb.TextPiece(text=text))


def score(text: str = "the") -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(piece=pb.TextPiece(text=text))


SNAPSHOT = pb.LearnStreamRequest(snapshot=pb.Snapshot())


def test_a_learner_holds_what_it_takes_and_lets_it_go(server: Server, model: Model) -> None:
    before = used(server)
    shape = model.parameters.shape
    config = LearningConfig.from_json({"optimizer": "adam", "window": WINDOW})
    for units, on_error in ((False, pb.ON_ERROR_UNSPECIFIED), (True, pb.ON_ERROR_SKIP)):
        call = learn_stream(server, optimizer=pb.OPTIMIZER_ADAM, on_error=on_error)
        call.ask(learn())
        held = learner_bytes(shape, config, units)
        assert used(server) == before + held
        for _ in range(2):  # the second takes the place of the first
            call.ask(SNAPSHOT)
            assert used(server) == before + held + snapshot_bytes(shape, config)
        call.end()
        wait_for(lambda: used(server) == before)


def test_a_stream_to_score_holds_its_scorer(server: Server, model: Model) -> None:
    before = used(server)
    call = score_stream(server, context="the quick " * 1000)
    call.ask(score())
    assert used(server) == before + scorer_bytes(model.parameters.shape)
    call.end()
    wait_for(lambda: used(server) == before)


def ended(call: Call, wrong: object) -> None:
    call.end()


def dropped(call: Call, wrong: object) -> None:
    call.drop()


def failed(call: Call, wrong: object) -> None:
    call._requests.put(wrong)
    call.fail()


@pytest.mark.parametrize("end", [ended, dropped, failed])
@pytest.mark.parametrize(("opened", "piece"), [(learn_stream, learn), (score_stream, score)])
def test_nothing_is_held_after_any_end(
    server: Server,
    opened: Callable[..., Call],
    piece: Callable[..., object],
    end: Callable[[Call, object], None],
) -> None:
    before = used(server)
    call = opened(server)
    call.ask(piece())
    assert used(server) > before
    end(call, piece("#"))
    wait_for(lambda: used(server) == before)


def test_learners_are_refused_before_they_take_more_than_the_budget(server: Server) -> None:
    before = used(server)
    calls: list[Call] = []
    refusal = None
    while refusal is None:
        call = learn_stream(server)
        try:
            call.ask(learn())
            calls.append(call)
        except grpc.RpcError as error:
            refusal = error
            call._requests.put(None)
        assert used(server) <= BUDGET
    assert calls
    assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "bytes of memory for learning streams do not fit now" in str(refusal.details())
    detail_of(refusal, "RetryInfo")
    assert server.caller.score("m", ["the"]).scores[0].token_count == 2  # others continue
    for call in calls:
        call.end()
    wait_for(lambda: used(server) == before)


@pytest.mark.parametrize(("opened", "piece"), [(learn_stream, learn), (score_stream, score)])
def test_a_large_reply_is_counted_while_it_is_made_and_forgotten_once_sent(
    server: Server, opened: Callable[..., Call], piece: Callable[..., object]
) -> None:
    before = used(server)
    call = opened(server, ranks=True)
    call.ask(piece())
    silent = used(server)
    call._requests.put(piece("the quick " * 10_000))
    wait_for(lambda: used(server) > silent + (4 << 20))
    assert next(call.call).piece.token_count == 100_000
    call.ask(piece())
    wait_for(lambda: used(server) == silent)
    call.end()
    wait_for(lambda: used(server) == before)


def test_a_score_holds_what_it_takes_only_while_it_works(server: Server) -> None:
    before = used(server)
    text = "the quick " * 20_000
    replies: list[pb.ScoreResponse] = []
    call = server.caller.stub.Score.future(pb.ScoreRequest(model="m", texts=[text]))
    wait_for(lambda: call.done() or used(server) >= before + 16 * len(text))
    replies.append(call.result())
    assert replies[0].scores[0].token_count == len(text) - 1
    wait_for(lambda: used(server) == before)


def test_silent_learners_make_way_where_their_memory_is_needed(
    start: Callable[..., Server],
) -> None:
    server = start("--memory-budget", str(BUDGET), "--stream-idle-s", "0")
    server.caller.trained(tiny_spec("m"))
    server.caller.score("m", ["the"])
    before = used(server)
    calls = [learn_stream(server)]
    calls[0].ask(learn())
    fit = BUDGET // (used(server) - before) + 1
    for _ in range(fit):
        calls.append(learn_stream(server))
        calls[-1].ask(learn())
        assert used(server) <= BUDGET
    error = calls[0].fail()
    assert error.code() is grpc.StatusCode.ABORTED
    assert "its memory was needed; what it learned and did not publish" in str(error.details())
    calls[-1].end()
    for call in calls:
        call.drop()
    wait_for(lambda: used(server) == before)
