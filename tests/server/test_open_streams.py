"""Silent streams: how long they may be so, and to whom they give their place."""

from __future__ import annotations

import asyncio
import queue
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import grpc
import pytest

from treadle.server.access.caller import Caller, Role, set_current_caller
from treadle.server.errors import StatusError
from treadle.server.inference.open_streams import OpenStream, OpenStreams, PendingStreams
from treadle.server.resources.call_deadline import work_within
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, detail_of, tiny_spec, until, wait_for


async def silence() -> AsyncIterator[str]:
    """A client that sends nothing."""
    await asyncio.get_running_loop().create_future()
    yield ""


async def words(*given: str) -> AsyncIterator[str]:
    for word in given:
        yield word


def run(work: Coroutine[Any, Any, object]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_S))


class Streams:
    """Streams that take places and then wait for a message."""

    def __init__(self, places: OpenStreams) -> None:
        self.places = places
        self.left: list[int] = []

    async def open(self, number: int) -> None:
        async with self.places.admit() as place:
            try:
                await place.next(silence())
            finally:
                self.left.append(number)

    async def waiting(self, number: int) -> asyncio.Task[None]:
        """Opens a stream and returns once it waits for a message."""
        task = asyncio.create_task(self.open(number))
        await until(lambda: any(place.is_silent for place in [*self.places._streams][-1:]))
        await asyncio.sleep(0.01)  # the clock that distinguishes them moves on
        return task


async def refused(work: Coroutine[Any, Any, object] | asyncio.Task[None]) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await work
    return caught.value


def test_the_longest_silent_stream_gives_its_place_once_all_are_taken() -> None:
    async def scenario() -> None:
        streams = Streams(OpenStreams(2, "streams", idle_s=0.0, remedy="open it again"))
        first = await streams.waiting(1)
        second = await streams.waiting(2)
        assert streams.places.running == 2
        third = await streams.waiting(3)
        error = await refused(first)
        assert error.code is grpc.StatusCode.ABORTED
        assert "all 2 places for streams are taken; open it again" in error.message
        assert streams.left == [1]
        assert streams.places.running == 2
        for task in (second, third):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert streams.places.running == 0

    run(scenario())


def test_a_caller_with_many_streams_closes_none_of_others() -> None:
    async def scenario() -> None:
        streams = Streams(OpenStreams(4, "streams", idle_s=0.0))
        set_current_caller(Caller("ann", Role.USER))
        hers = await streams.waiting(1)  # silent for longest
        set_current_caller(Caller("bob", Role.USER))
        his = [await streams.waiting(number) for number in (2, 3, 4)]
        his.append(await streams.waiting(5))
        assert (await refused(his[0])).code is grpc.StatusCode.ABORTED
        set_current_caller(Caller("cat", Role.USER))
        others = [await streams.waiting(number) for number in (6, 7)]
        assert streams.left == [2, 3, 4]
        for task in his[1:3]:
            await refused(task)
        set_current_caller(Caller("bob", Role.USER))
        his.append(await streams.waiting(8))
        assert streams.left == [2, 3, 4, 6]
        assert not hers.done()
        for task in (hers, *his, *others):
            task.cancel()

    run(scenario())


def test_a_place_is_not_taken_from_a_caller_with_fewer_streams() -> None:
    async def scenario() -> None:
        places = OpenStreams(3, "streams", idle_s=0.0)
        streams = Streams(places)
        set_current_caller(Caller("ann", Role.USER))
        hers = await streams.waiting(1)
        set_current_caller(Caller("bob", Role.USER))
        async with places.admit(), places.admit():  # at work
            error = await refused(streams.open(2))
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not hers.done()
        hers.cancel()

    run(scenario())


def test_a_stream_that_is_not_silent_for_long_enough_keeps_its_place() -> None:
    async def scenario() -> None:
        streams = Streams(OpenStreams(1, "streams", idle_s=1000.0))
        task = await streams.waiting(1)
        error = await refused(streams.open(2))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.message == "at most 1 streams are open at once; 1 more does not fit now"
        assert not task.done()
        task.cancel()

    run(scenario())


def test_a_stream_at_work_is_never_silent() -> None:
    async def scenario() -> None:
        places = OpenStreams(1, "streams", idle_s=0.0)
        async with places.admit() as place:
            assert await place.next(words("a")) == "a"
            assert (place.is_silent, place.silent_s) == (False, 0.0)
            error = await refused(Streams(places).open(2))
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert places.running == 0

    run(scenario())


def test_a_place_is_passed_on_only_when_its_stream_has_let_go() -> None:
    async def scenario() -> None:
        places = OpenStreams(1, "streams", idle_s=0.0)
        order = []

        async def first() -> None:
            async with places.admit() as place:
                try:
                    await place.next(silence())
                finally:
                    await asyncio.sleep(0.05)
                    order.append("gone")

        task = asyncio.create_task(first())
        await until(lambda: any(place.is_silent for place in places._streams))
        async with places.admit():
            order.append("came")
        assert order == ["gone", "came"]
        await refused(task)

    run(scenario())


def test_a_cancelled_stream_gets_no_error_of_silence() -> None:
    async def scenario() -> None:
        place = OpenStream()
        task = asyncio.create_task(place.next(silence()))
        await until(lambda: place.is_silent)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


def test_a_first_message_comes_in_time_or_never() -> None:
    async def scenario() -> None:
        pending_streams = PendingStreams(2, wait_s=0.05)
        assert await pending_streams.first(words("spec", "piece")) == "spec"
        assert await pending_streams.first(words()) is None
        error = await refused(pending_streams.first(silence()))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not come within 0.05 seconds" in error.message
        assert pending_streams.waiting == 0

    run(scenario())


def test_calls_without_a_first_message_make_way_for_others() -> None:
    async def scenario() -> None:
        pending_streams = PendingStreams(2, wait_s=1000.0)
        silent = [asyncio.create_task(pending_streams.first(silence())) for _ in range(9)]
        await until(lambda: sum(task.done() for task in silent) == 7)
        assert pending_streams.waiting == 2
        assert await pending_streams.first(words("spec")) == "spec"
        for task in silent:
            task.cancel()
        ends = await asyncio.gather(*silent, return_exceptions=True)
        codes = [end.code for end in ends if isinstance(end, StatusError)]
        assert codes == [grpc.StatusCode.ABORTED] * 8
        assert pending_streams.waiting == 0

    run(scenario())


def test_work_ends_with_the_time_that_the_server_gives() -> None:
    async def scenario() -> None:
        with pytest.raises(StatusError, match=r"longer than 0\.02 seconds.*: send less") as caught:
            async with work_within(0.02, "send less"):
                await asyncio.sleep(PATIENCE_S)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        async with work_within(PATIENCE_S, "send less"):
            await asyncio.sleep(0)

    run(scenario())


# ---------------------------------------------------------------- over the wire


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with few places for streams and little patience, and a model `m`."""
    flags = (
        "--standby-workers",
        "0",
        "--inference-limit",
        "2",
        "--stream-limit",
        "2",
        "--learning-limit",
        "2",
        "--stream-idle-s",
        "0",
        "--first-message-s",
        "1000",
    )
    server = Server(tmp_path_factory.mktemp("places") / "data", *flags)
    server.caller.trained(tiny_spec("m"))
    yield server
    wait_for(lambda: server.caller.info().score_streams_running == 0)
    wait_for(lambda: server.caller.info().learning_running == 0)
    log = server.log
    server.close()
    assert "internal error" not in log
    assert "Traceback" not in log


class Call:
    """A stream of requests that come on demand."""

    def __init__(self, method: Any, *first: object) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in first:
            self._requests.put(request)
        self.call = method(iter(self._requests.get, None), timeout=PATIENCE_S)

    def ask(self, request: object) -> Any:
        self._requests.put(request)
        return next(self.call)

    def end(self) -> list[Any]:
        self._requests.put(None)
        return list(self.call)

    def fail(self) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        self._requests.put(None)
        return caught.value

    def drop(self) -> None:
        self.call.cancel()
        self._requests.put(None)


def score_stream(server: Server) -> Call:
    first = pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m"))
    return Call(server.caller.stub.ScoreStream, first)


def learn_stream(server: Server) -> Call:
    first = pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m"))
    return Call(server.caller.stub.LearnStream, first)


SCORE = pb.ScoreStreamRequest(piece=pb.TextPiece(text="the"))
LEARN = pb.LearnStreamRequest(learn=pb.TextPiece(text="the"))


def test_streams_without_a_spec_keep_nobody_out(small: Server) -> None:
    stub = small.caller.stub
    silent = [Call(method) for method in (stub.ScoreStream, stub.LearnStream) for _ in range(20)]
    assert small.caller.score("m", ["the"]).scores[0].token_count == 2
    assert small.caller.text("m", max_new_tokens=3)
    assert len(stub.Embed(pb.EmbedRequest(model="m", texts=["the"])).embeddings) == 1
    scoring = score_stream(small)
    learning = learn_stream(small)
    assert scoring.ask(SCORE).piece.token_count == 2
    assert learning.ask(LEARN).piece.token_count == 2
    assert scoring.end()[-1].result.total.token_count == 2
    assert learning.end() == []
    for call in silent:
        call.drop()


@pytest.mark.parametrize(
    ("opened", "request_", "running", "message"),
    [
        (score_stream, SCORE, "score_streams_running", "open it again, with context or state"),
        (learn_stream, LEARN, "learning_running", "what it learned and did not publish is lost"),
    ],
)
def test_silent_streams_give_their_places_to_others_and_the_rest_continue(
    small: Server,
    opened: Callable[[Server], Call],
    request_: Any,
    running: str,
    message: str,
) -> None:
    silent = opened(small)
    alive = opened(small)
    silent.ask(request_)
    alive.ask(request_)
    third = opened(small)
    third.ask(request_)
    error = silent.fail()
    assert error.code() is grpc.StatusCode.ABORTED
    assert message in str(error.details())
    alive.ask(request_)
    assert getattr(small.caller.info(), running) == 2
    alive.end()
    third.end()
    wait_for(lambda: getattr(small.caller.info(), running) == 0)


def test_no_call_works_for_longer_than_the_server_gives(start: Callable[..., Server]) -> None:
    server = start("--max-call-s", "0.3")
    server.caller.trained(tiny_spec("m"))
    text = "the quick brown fox " * 150_000
    scoring = score_stream(server)
    learning = learn_stream(server)
    scoring._requests.put(pb.ScoreStreamRequest(piece=pb.TextPiece(text=text)))
    learning._requests.put(pb.LearnStreamRequest(learn=pb.TextPiece(text=text)))
    errors = [scoring.fail(), learning.fail()]
    with pytest.raises(grpc.RpcError) as caught:
        server.caller.score("m", [text])
    for error in (*errors, caught.value):
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "longer than 0.3 seconds, the server's limit" in str(error.details())
    [*_, last] = server.caller.generate("m", prompt=text)
    assert last.result.stop_reason == pb.STOP_REASON_TIME_LIMIT
    info = server.caller.info()
    assert (info.inference_running, info.score_streams_running, info.learning_running) == (0, 0, 0)


def test_a_session_may_publish_within_the_grace(start: Callable[..., Server]) -> None:
    server = start("--grace-s", str(PATIENCE_S))
    server.caller.trained(tiny_spec("m"))
    stream = learn_stream(server)
    stream.ask(LEARN)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "shutting down" in server.log)
    reply = stream.ask(pb.LearnStreamRequest(publish=pb.Publish(alias="kept")))
    assert (reply.published.version, list(reply.published.aliases)) == (2, ["kept"])
    stream.end()
    assert server.wait() == 0


def test_a_stream_that_outlasts_the_grace_gets_what_it_lost(
    start: Callable[..., Server],
) -> None:
    server = start("--grace-s", "0.5")
    server.caller.trained(tiny_spec("m"))
    stream = learn_stream(server)
    stream.ask(LEARN)
    server.process.send_signal(signal.SIGTERM)
    error = stream.fail()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "what a session learned and did not publish is lost" in str(error.details())
    assert server.wait() == 0


def test_a_spec_that_does_not_come_ends_its_call(start: Callable[..., Server]) -> None:
    server = start("--first-message-s", "0.1")
    for method in (server.caller.stub.ScoreStream, server.caller.stub.LearnStream):
        error = Call(method).fail()
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "the spec, did not come within 0.1 seconds" in str(error.details())


def test_a_full_server_refuses_a_stream_until_one_is_silent(start: Callable[..., Server]) -> None:
    server = start("--stream-limit", "1", "--stream-idle-s", "1000")
    server.caller.trained(tiny_spec("m"))
    first = score_stream(server)
    first.ask(SCORE)
    error = score_stream(server).fail()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    detail_of(error, "RetryInfo")
    assert first.end()[-1].HasField("result")
    wait_for(lambda: server.caller.info().score_streams_running == 0)
    second = score_stream(server)
    assert second.ask(SCORE).HasField("piece")
    second.drop()
