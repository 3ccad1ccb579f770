"""Generate without a wire: what is made when, on which thread, and in how much memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
import pytest
from clocks import StillClock
from small_models import model_of

from treadle.model import Model
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.output import Piece
from treadle.model.network import trained_network
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.token_score import Alternative, TokenScore
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.state_sealer import StateSealer
from treadle.server.errors import StatusError
from treadle.server.inference import generate
from treadle.server.inference.admission import Admission, InferenceAdmission
from treadle.server.inference.batcher import PieceQueue
from treadle.server.inference.generate import GenerateHandler
from treadle.server.inference.memory_costs import TOKEN_BYTES, piece_bytes
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.open_streams import OpenStreams
from treadle.server.inference.scheduler import Scheduler
from treadle.server.messages import responses
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.v1 import sequence_pb2 as pb

MODEL = model_of()
PROMPT = "cab abc bca " * 300


class ModelResolver:
    """Always gives the same model, and may have something done before."""

    def __init__(self, model: Model = MODEL) -> None:
        self.model = model
        self.loading: Callable[[], object] = lambda: None

    async def resolve(self, request: pb.GenerateRequest) -> ResolvedModel:
        self.loading()
        await asyncio.sleep(0)
        return ResolvedModel(self.model, version=3)

    async def await_kernels(self, *_: object) -> None:
        """Waits for no kernel."""

    async def at_precision(self, found: ResolvedModel, *_: object) -> ResolvedModel:
        return found


@pytest.fixture
def budget() -> MemoryBudget:
    return MemoryBudget(1 << 30)


@pytest.fixture
def handler(budget: MemoryBudget) -> Iterator[GenerateHandler]:
    scheduler = Scheduler(2)
    streams = OpenStreams(9, "streams", 60)
    calls = Admission(9, "calls")
    admission = InferenceAdmission(calls, Admission(999, "texts"), streams, streams, QuotaBook())
    resolver: Any = ModelResolver()
    yield GenerateHandler(
        resolver,
        admission,
        scheduler,
        budget,
        max_new_tokens_limit=1000,
        max_call_s=3600,
        max_message_bytes=4 << 20,
        sealer=StateSealer(),
    )
    assert (admission.calls.running, admission.sequences.running, budget.used) == (0, 0, 0)
    scheduler.close()


def replies_of(handler: GenerateHandler, **fields: Any) -> list[pb.GenerateResponse]:
    """Copies of all replies: a message of an echo is used for one text after the other."""

    async def read() -> list[pb.GenerateResponse]:
        found = []
        async for reply in handler.generate(pb.GenerateRequest(model="m", **fields)):
            copy = pb.GenerateResponse()
            copy.CopyFrom(reply)
            found.append(copy)
        return found

    return asyncio.run(read())


DETAILS: dict[str, Any] = {"ranks": True, "top_log_probabilities": 20}


def test_an_echo_is_the_score_of_the_prompt_whatever_windows_it_comes_in(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MODEL.score(PROMPT, details=generating_details()).tokens
    expected = pb.GenerateResponse()
    responses.add_tokens(expected, whole)
    for size in (500, 20_000, 1 << 30):
        monkeypatch.setattr(generate, "_ECHO_BYTES", size)
        replies = replies_of(handler, prompt=PROMPT, echo=True, n=3, max_new_tokens=1, **DETAILS)
        for index in range(3):
            *echo, last = [reply for reply in replies if reply.index == index]
            assert "".join(reply.text for reply in echo) == PROMPT
            tokens = [token for reply in echo for token in reply.tokens]
            assert tokens == list(expected.tokens)
            assert last.result.prompt_tokens == len(PROMPT)
            # A window holds no more than one step beyond what a message is to hold.
            assert all(reply.ByteSize() < size + 65 * 300 for reply in echo)
        assert len(echo) == 1 or size < 1 << 30


def generating_details() -> Any:
    from treadle.model.scoring.scores import Details

    return Details(ranks=True, alternatives=20)


def test_an_echo_does_not_run_ahead_of_its_reader(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_ECHO_BYTES", 1000)
    made: list[int] = []
    echo = PreparedPrompt.echo

    def counted(self: PreparedPrompt, tokens: bool) -> Iterator[Piece | None]:
        for piece in echo(self, tokens):
            if piece is not None:
                made.append(len(piece.tokens))
            yield piece

    monkeypatch.setattr(PreparedPrompt, "echo", counted)

    async def read() -> None:
        request = pb.GenerateRequest(model="m", prompt=PROMPT, echo=True, n=2, **DETAILS)
        replies = handler.generate(request)
        async with aclosing(replies):  # type: ignore[type-var]
            shown = {0: 0, 1: 0}
            for _ in range(20):
                reply = await anext(replies)
                shown[reply.index] += len(reply.tokens)
                await asyncio.sleep(0.002)
                # What is made is one window, which goes to both texts.
                assert sum(made) == max(shown.values())
        before = sum(made)
        await asyncio.sleep(0.01)
        assert sum(made) == before  # a call that has ended is read no further

    asyncio.run(read())


def test_time_counts_from_the_call_on(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StillClock(monkeypatch)
    read = PreparedPrompt._read

    def slow(self: PreparedPrompt) -> Iterator[None]:
        for step in read(self):
            clock.now += 1
            yield step

    monkeypatch.setattr(PreparedPrompt, "_read", slow)
    fields: dict[str, Any] = {"prompt": PROMPT, "seed": 5, "max_new_tokens": 3}
    ended = replies_of(handler, **fields, n=2, max_time_s=9.5, return_state=True)
    assert clock.now == 110.0  # ten steps, and no more
    assert [reply.index for reply in ended] == [0, 1]
    for reply in ended:
        assert reply.result.stop_reason == pb.STOP_REASON_TIME_LIMIT
        assert (reply.text, reply.result.new_tokens, reply.result.state) == ("", 0, b"")
        assert reply.result.version == 3
    assert ended[0].result.seed == 5
    whole = replies_of(handler, **fields, max_time_s=1000)
    assert whole[-1].result.stop_reason == pb.STOP_REASON_MAX_NEW_TOKENS
    assert whole[-1].result.prompt_tokens == len(PROMPT)


def test_a_text_that_continues_keeps_its_counts_where_the_time_ends(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StillClock(monkeypatch)
    read = PreparedPrompt._read

    def slow(self: PreparedPrompt) -> Iterator[None]:
        for step in read(self):
            clock.now += 1
            yield step

    monkeypatch.setattr(PreparedPrompt, "_read", slow)
    state = replace(SessionState.fresh(MODEL.trained.shape), token=0, seed=7)
    counts: dict[str, Any] = {"new_tokens": 3, "total_log_probability": -2, "prompt_tokens": 11}
    point = pb.ResumePoint(index=1, state=MODEL.state_bytes(state), **counts)
    fields: dict[str, Any] = {"n": 2, "resume": [pb.ResumePoint(), point], "return_state": True}
    begun, resumed = replies_of(handler, prompt=PROMPT, max_time_s=2.5, **fields)
    assert begun.result.new_tokens == 0
    assert resumed.index == 1
    result = resumed.result
    assert result.stop_reason == pb.STOP_REASON_TIME_LIMIT
    assert {name: getattr(result, name) for name in counts} == counts
    assert result.seed == 7
    assert result.state == MODEL.state_bytes(state)


def test_time_counts_while_an_expression_is_made_and_a_model_is_loaded(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StillClock(monkeypatch)
    resolver: Any = handler._resolver

    def passes() -> None:
        clock.now += 5

    async def late(regex: str, tokenizer: object, deadline: Any) -> None:
        passes()
        assert deadline.over

    monkeypatch.setattr(handler._constraints, "build", late)
    (only,) = replies_of(handler, prompt="ab", regex="a*", max_time_s=5)
    assert only.result.stop_reason == pb.STOP_REASON_TIME_LIMIT
    assert not only.result.HasField("regex_complete")

    class Never(ModelResolver):
        async def resolve(self, request: pb.GenerateRequest) -> ResolvedModel:
            await asyncio.Event().wait()
            raise AssertionError

    resolver.resolve = Never().resolve
    with pytest.raises(StatusError, match="ended while the model was loaded"):
        replies_of(handler, prompt="ab", max_time_s=0.001)

    class Compiling(ModelResolver):
        async def await_kernels(self, *_: object) -> None:
            await asyncio.Event().wait()

    resolver.await_kernels = Compiling().await_kernels
    with pytest.raises(StatusError, match="ended while the kernels that the call needs were com"):
        replies_of(handler, prompt="ab", max_time_s=0.001)


@pytest.mark.parametrize("stage", ["_encode", "_read", "_echo"])
def test_a_call_that_is_cancelled_takes_no_other_step(
    handler: GenerateHandler, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [0]
    begun = threading.Event()
    go = threading.Event()

    def endless(self: PreparedPrompt, *_: object) -> Iterator[None]:
        while True:
            steps[0] += 1
            if steps[0] == 3:
                begun.set()
                assert go.wait(60)
            yield

    monkeypatch.setattr(PreparedPrompt, stage, endless)

    async def run() -> None:
        async def read() -> None:
            request = pb.GenerateRequest(model="m", prompt="ab", echo=stage == "_echo")
            replies: AsyncIterator[pb.GenerateResponse] = handler.generate(request)
            async for _ in replies:
                raise AssertionError

        task = asyncio.create_task(read())
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(run())
    handler._scheduler.close()
    for thread in threading.enumerate():
        if thread.name.startswith("turn"):
            thread.join(60)
    assert steps[0] == 3


def test_large_replies_are_written_away_from_the_event_loop(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int]] = []
    add_tokens = responses.add_tokens

    def watched(message: Any, tokens: Any) -> int:
        tokens = tuple(tokens)
        weight = sum(1 + len(token.alternatives) for token in tokens)
        written.append((threading.current_thread().name, weight))
        return add_tokens(message, tokens)

    monkeypatch.setattr(responses, "add_tokens", watched)
    replies_of(handler, n=64, max_new_tokens=50, echo=True, prompt="ab", **DETAILS)
    loop = [weight for name, weight in written if not name.startswith("turn")]
    assert sum(weight for _, weight in written) > 64 * 50 * 5
    assert max(loop, default=0) <= generate._HEAVY


def test_a_long_text_comes_in_several_replies() -> None:
    """A token may stand for many characters, and a search gives all of its text at once."""
    text = "aé" * 100_000
    pieces = [Piece(text, (), None)]
    most = 1 << 16
    steps = list(responses.generated(pieces, 1, 0, 0, most))
    replies = [reply for reply in steps if reply is not None]
    assert "".join(reply.text for reply in replies) == text
    assert len(replies) > 3
    assert max(reply.ByteSize() for reply in replies) <= 2 * most


def test_a_reply_is_cut_where_it_gets_too_large() -> None:
    others = tuple(Alternative(1, "b" * 20, -1.0) for _ in range(5))
    pieces = [
        Piece(f"{number} ", (TokenScore(1, "b", -1.0, 1, others),) * 40, None)
        for number in range(5)
    ]
    steps = list(responses.generated(pieces, 1, 0, 7, 2000))
    replies = [reply for reply in steps if reply is not None]
    assert len(steps) > len(replies)
    assert len(replies) > 5
    assert all(reply.ByteSize() < 2000 + 16 * 300 for reply in replies)
    assert "".join(reply.text for reply in replies) == "0 1 2 3 4 "
    assert sum(len(reply.tokens) for reply in replies) == 200
    assert {reply.index for reply in replies} == {7}


def test_texts_pause_where_much_is_unread() -> None:
    others = (Alternative(1, "b", -1.0),) * 20
    piece = Piece("b", (TokenScore(1, "b", -1.0, 1, others),), None)

    async def run() -> None:
        queue = PieceQueue(5 * piece_bytes(piece))
        member: Any = PausedSequence()
        for count in (4, 1):
            assert not queue.pause(member)
            for _ in range(count):
                queue.count(piece)
            queue.put((0, [piece] * count))
        assert queue.pause(member)
        assert member.flushed == 1
        queue.wake()
        async with aclosing(queue.read(1)) as batches:
            await anext(batches)
            assert queue.pause(member)  # what the reader is at is in memory as well
            await anext(batches)
            assert not queue.pause(member)
            assert queue.unread_bytes == piece_bytes(piece)

    asyncio.run(run())


class PausedSequence:
    """A sequence that was paused."""

    flushed = 0

    def flush(self) -> None:
        self.flushed += 1

    def resume(self) -> None:
        pass


@pytest.mark.parametrize("texts", [1, 8])
def test_a_reader_who_stops_is_kept_a_bounded_number_of_bytes(
    handler: GenerateHandler, monkeypatch: pytest.MonkeyPatch, texts: int
) -> None:
    """And what it reads then is what a quick reader gets."""
    monkeypatch.setattr(generate, "unread_bytes", lambda texts: 20_000 * texts)
    queues: list[PieceQueue] = []

    def queue_of(max_bytes: int) -> PieceQueue:
        queues.append(PieceQueue(max_bytes))
        return queues[-1]

    monkeypatch.setattr(generate, "PieceQueue", queue_of)
    fields: dict[str, Any] = {
        "n": texts,
        "max_new_tokens": 1000,
        "prompt": "ab",
        "seed": 3,
        **DETAILS,
    }
    quick = replies_of(handler, **fields)
    one_chunk = 64 * (1 + 7) * TOKEN_BYTES + 1000

    async def read() -> list[pb.GenerateResponse]:
        found = []
        most = 0
        async for reply in handler.generate(pb.GenerateRequest(model="m", **fields)):
            found.append(reply)
            if len(found) % 5 == 1:  # the texts continue until nothing more is drawn
                queue = queues[-1]
                before = -1
                while queue.unread_bytes != before:
                    before = queue.unread_bytes
                    await asyncio.sleep(0.02)
                most = max(most, before)
        assert 20_000 * texts // 2 < most < (20_000 + one_chunk) * texts
        return found

    slow = asyncio.run(read())
    for index in range(texts):
        assert tokens_in(slow, index) == tokens_in(quick, index)
    assert all(queue.unread_bytes == 0 for queue in queues)


def tokens_in(replies: list[pb.GenerateResponse], index: int) -> tuple[str, list[bytes]]:
    """The text of a text and its tokens, as bytes."""
    mine = [reply for reply in replies if reply.index == index]
    tokens = [token.SerializeToString(deterministic=True) for r in mine for token in r.tokens]
    return "".join(reply.text for reply in mine), tokens


def test_what_a_generation_keeps_is_released_however_it_ends(
    budget: MemoryBudget, handler: GenerateHandler
) -> None:
    for fields in (
        {},
        {"best_of": 3, "n": 2},
        {"regex": "[abc]{5,9}"},
        {"echo": True},
        {"max_time_s": 0.5, "max_new_tokens": 1000},
    ):
        assert replies_of(handler, prompt="ab", **fields)
        assert budget.used == 0
    for fault in ({"prompt": "%"}, {"regex": "("}, {"best_of": 2, "regex": "x"}):
        with pytest.raises(StatusError):
            replies_of(handler, **fault)
        assert budget.used == 0

    async def leave() -> None:
        async for _ in handler.generate(
            pb.GenerateRequest(model="m", prompt="ab", max_new_tokens=1000)
        ):
            assert budget.used > 0
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    assert budget.used == 0


def test_a_generation_that_does_not_fit_is_refused(
    budget: MemoryBudget, handler: GenerateHandler
) -> None:
    with budget.reserve(budget.limit // 8 * 7 - (1 << 20), "models"):
        assert replies_of(handler, prompt="ab", max_new_tokens=3)
        with pytest.raises(StatusError) as caught:
            replies_of(handler, prompt="ab", max_new_tokens=3, **DETAILS)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "for generations" in caught.value.message
    with budget.reserve(budget.limit // 8 * 7 - (1 << 20), "models"):
        with pytest.raises(StatusError) as caught:
            replies_of(handler, prompt="ab", max_new_tokens=1000, best_of=64, ranks=True)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert budget.used == budget.limit // 8 * 7 - (1 << 20)


@pytest.mark.parametrize("state", [{"token": -1, "seed": 1}, {"token": 0}])
def test_a_state_that_is_of_no_resume_point_is_refused(
    handler: GenerateHandler, state: dict[str, Any]
) -> None:
    odd = replace(SessionState.fresh(MODEL.trained.shape), **state)
    point = pb.ResumePoint(state=MODEL.state_bytes(odd), new_tokens=5)
    with pytest.raises(StatusError, match=r"resume\[0\]\.state is not of a resume_point"):
        replies_of(handler, prompt="ab", resume=[point], max_new_tokens=9)


@pytest.mark.parametrize("has_state", [False, True])
def test_weights_are_hashed_in_short_steps(
    handler: GenerateHandler, has_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = MODEL.trained
    state = MODEL.state_bytes(SessionState.fresh(trained.shape)) if has_state else b""
    monkeypatch.setattr(trained_network, "_HASHED_BYTES", 256)
    monkeypatch.setattr(trained, "_hash", [])
    hashed: list[int] = []
    hash_in_steps = TrainedNetwork.hash_in_steps

    def watched(self: TrainedNetwork) -> Iterator[None]:
        for step in hash_in_steps(self):
            hashed.append(1)
            yield step

    def ready(self: TrainedNetwork) -> bytes:
        return self._hash[0]  # which fails where all would be hashed at once

    monkeypatch.setattr(TrainedNetwork, "hash_in_steps", watched)
    monkeypatch.setattr(TrainedNetwork, "content_hash", property(ready))
    replies_of(handler, prompt="ab", state=state, max_new_tokens=1)
    assert len(hashed) == -(-trained.parameters.flat.nbytes // 256)
