"""`Batcher`: which callers' sequences decode together, whose time that takes, and the same bits."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from small_models import model_of

from treadle.model import Model, Piece
from treadle.model.config import SamplingConfig
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.output import TOKENS
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.server.inference import batcher as batcher_module
from treadle.server.inference.batcher import Batcher, PieceQueue
from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.sharing.share import JointShare

from .turns import PATIENCE_S, Clock, held, still_clock

ROW_S = 0.0001
"""What a row of a step costs by the clock of these tests."""


class Decodings:
    """Records whose sequences each step is for; a step takes as long as it has rows and tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock | None = None) -> None:
        self.steps: list[Counter[str]] = []
        self.tokens: list[int] = []
        self._callers: dict[int, str] = {}
        self._lock = threading.Lock()
        decode = SlotArrays.decode

        def watched(arrays: SlotArrays, count: int) -> Any:
            with self._lock:
                self.steps.append(Counter(self._callers[id(slot)] for slot in arrays.slots))
                self.tokens.append(count)
                if clock is not None:
                    clock.now_s += ROW_S * len(arrays.slots) * count
            return decode(arrays, count)

        monkeypatch.setattr(SlotArrays, "decode", watched)

    def begin(self, batcher: Batcher, model: Model, caller: str, count: int, tokens: int) -> Any:
        """Begins a call; returns its queue."""
        config = SamplingConfig(seed=1, max_new_tokens=tokens)
        prepared = PreparedPrompt(model.trained, "ab", config, None)
        list(prepared.read())
        sequences = [prepared.sequence(index, TOKENS) for index in range(count)]
        with self._lock:
            self._callers |= {id(sequence.slot): caller for sequence in sequences}
        queue = PieceQueue(1 << 24)
        batcher.begin(model, sequences, queue, caller)
        return queue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = still_clock(monkeypatch)
    monkeypatch.setattr(batcher_module, "time", clock)
    return clock


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(1)
    yield scheduler
    scheduler.close()


async def read(queue: PieceQueue, count: int) -> list[list[Piece]]:
    found: list[list[Piece]] = [[] for _ in range(count)]
    async with asyncio.timeout(PATIENCE_S), aclosing(queue.read(count)) as batches:
        async for index, pieces in batches:
            found[index] += pieces
    return found


def test_callers_with_one_stream_each_decode_as_one_batch(
    scheduler: Scheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        decodings = Decodings(monkeypatch, clock)
        batcher = Batcher(scheduler)
        model = model_of()
        with held(scheduler):
            queues = [decodings.begin(batcher, model, f"c{n}", 1, 40) for n in range(64)]
        await asyncio.gather(*(read(queue, 1) for queue in queues))
        assert {len(step) for step in decodings.steps} == {64}
        assert sum(decodings.tokens) == 40

    asyncio.run(run())


def test_calls_without_a_name_decode_together_as_those_of_one_caller_do(
    scheduler: Scheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        decodings = Decodings(monkeypatch, clock)
        batcher = Batcher(scheduler)
        model = model_of()
        counts = [1, 1, 30, 2, 5]
        with held(scheduler):
            queues = [decodings.begin(batcher, model, "", count, 40) for count in counts]
        await asyncio.gather(*map(read, queues, counts))
        assert {step[""] for step in decodings.steps} == {39}

    asyncio.run(run())


def test_a_caller_with_many_streams_and_one_with_one_take_turns(
    scheduler: Scheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        decodings = Decodings(monkeypatch, clock)
        batcher = Batcher(scheduler)
        model = model_of()
        with held(scheduler):
            many = [decodings.begin(batcher, model, "many", 1, 9000) for _ in range(200)]
            single = decodings.begin(batcher, model, "single", 1, 4000)
        await read(single, 1)
        for queue in many:
            queue.closed = True
        assert all(len(step) == 1 for step in decodings.steps)
        last = max(n for n, step in enumerate(decodings.steps) if "single" in step)
        spent = Counter[str]()
        for step, tokens in zip(decodings.steps[: last + 1], decodings.tokens, strict=False):
            for name, rows in step.items():
                spent[name] += rows * tokens
        assert spent["single"] >= 0.4 * spent.total()

    asyncio.run(run())


def test_many_callers_with_one_stream_lose_nothing_to_one_with_many(
    scheduler: Scheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of sixteen callers has sixteen callers' time."""

    async def run() -> None:
        decodings = Decodings(monkeypatch, clock)
        batcher = Batcher(scheduler)
        model = model_of()
        with held(scheduler):
            many = decodings.begin(batcher, model, "many", 100, 600)
            singles = [decodings.begin(batcher, model, f"c{n}", 1, 600) for n in range(16)]
        await asyncio.gather(read(many, 100), *(read(queue, 1) for queue in singles))
        together = [n for n, step in enumerate(decodings.steps) if "many" not in step]
        assert {len(decodings.steps[n]) for n in together} == {16}
        rows = [step.total() * n for step, n in zip(decodings.steps, decodings.tokens, strict=True)]
        of_many = sum(rows[: together[-1] + 1]) - sum(rows[n] for n in together)
        assert of_many <= 0.2 * sum(rows[: together[-1] + 1])

    asyncio.run(run())


@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_that_move_between_batches_keep_their_bits(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers' numbers of sequences rise and fall, so that their groups change all the time."""
    model = model_of()
    lengths = (5, 60, 150, 300)
    alone = {
        (tokens, index): list(model.stream("ab", seed=1, max_new_tokens=tokens, index=index))
        for tokens in lengths
        for index in range(9)
    }
    moves = [0]
    place = Batcher.place

    def counted(self: Batcher, member: Any) -> None:
        moves[0] += 1
        place(self, member)

    monkeypatch.setattr(Batcher, "place", counted)
    scheduler = Scheduler(threads)

    async def run() -> None:
        decodings = Decodings(monkeypatch)
        batcher = Batcher(scheduler)

        async def call(caller: str, count: int, tokens: int) -> None:
            queue = decodings.begin(batcher, model, caller, count, tokens)
            for index, pieces in enumerate(await read(queue, count)):
                expected = alone[tokens, index]
                assert "".join(p.text for p in pieces) == "".join(p.text for p in expected)
                found = [token for piece in pieces for token in piece.tokens]
                assert found == [token for piece in expected for token in piece.tokens]

        calls = []
        for number in range(60):
            caller = f"c{number % 7 % 4}"
            calls.append(call(caller, (1, 9, 2, 5)[number % 4], lengths[number * 5 % 4]))
        await asyncio.gather(*calls)
        assert batcher._models == {}
        assert not batcher._sequences

    asyncio.run(run())
    assert moves[0] > 20
    shares = [scheduler.share(f"c{number}") for number in range(4)]
    assert [share.elsewhere for share in shares] == [0] * 4
    scheduler.close()
    for thread in threading.enumerate():
        if thread.name.startswith("turn"):
            thread.join(PATIENCE_S)


def test_a_reader_who_stops_holds_up_no_other_caller_and_gets_all_its_text(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    expected = "".join(p.text for p in model.stream("ab", seed=1, max_new_tokens=3000))
    monkeypatch.setattr(batcher_module, "_MAX_UNREAD", 3)
    monkeypatch.setattr(batcher_module, "_MESSAGE_S", 1e-6)
    monkeypatch.setattr(batcher_module, "_MESSAGE_S_PER_SEQUENCE", 1e-9)

    async def run() -> None:
        decodings = Decodings(monkeypatch)
        batcher = Batcher(scheduler)
        slow = [decodings.begin(batcher, model, "slow", 1, 3000) for _ in range(5)]
        while not all(queue._paused for queue in slow):
            await asyncio.sleep(0.001)
        assert not batcher._sequences  # who pauses counts for nothing
        quick = decodings.begin(batcher, model, "quick", 1, 3000)
        (texts,) = await read(quick, 1)
        assert "".join(piece.text for piece in texts) == expected
        for (pieces,) in await asyncio.gather(*(read(queue, 1) for queue in slow)):
            assert "".join(piece.text for piece in pieces) == expected
        assert batcher._models == {}

    asyncio.run(run())


def test_each_caller_may_send_as_many_messages(scheduler: Scheduler) -> None:
    batcher = Batcher(scheduler)
    single, many, nobody = (scheduler.share(name) for name in ("single", "many", ""))
    batcher._sequences.update({nobody: 64})
    assert batcher.message_s(nobody) == pytest.approx(0.08)
    batcher._sequences.clear()
    batcher._sequences.update({single: 1, many: 200})
    assert batcher.message_s(single) == 0.02
    assert batcher.message_s(many) == 0.5
    del batcher._sequences[single]
    assert batcher.message_s(many) == 0.2
    batcher._sequences.clear()
    batcher._sequences.update({scheduler.share(f"c{number}"): 1 for number in range(64)})
    assert batcher.message_s(scheduler.share("c1")) == pytest.approx(0.08)


def test_a_batch_that_is_over_takes_no_callers_time(
    scheduler: Scheduler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    joints: list[JointShare] = []
    combine = JointShare.combine

    def watched(self: JointShare, members: Any) -> None:
        joints.append(self)
        combine(self, members)

    monkeypatch.setattr(JointShare, "combine", watched)

    async def run() -> None:
        decodings = Decodings(monkeypatch, clock)
        batcher = Batcher(scheduler)
        model = model_of()
        with held(scheduler):
            queues = [decodings.begin(batcher, model, name, 1, 100) for name in "ab"]
        await read(queues[0], 1)
        queues[1].closed = True
        while scheduler.share("b").elsewhere or scheduler.share("b").load:
            await asyncio.sleep(0.001)
        assert batcher._models == {}

    asyncio.run(run())
    assert len(set(map(id, joints))) == 1
    assert scheduler.share("a").elsewhere == 0
