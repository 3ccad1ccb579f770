"""`Batcher`: sequences of many calls in batches, with threads that switch all the time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from small_models import model_of

from treadle.model import InferencePrecision, Model, Piece
from treadle.model.config import SamplingConfig
from treadle.model.errors import TokenError
from treadle.model.generation.decoding_batch import DecodingBatch
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.output import TOKENS
from treadle.model.generation.sequence import Sequence
from treadle.model.generation.slot_arrays import MAX_SLOTS, SlotArrays
from treadle.server.inference.batcher import Batcher, PieceQueue
from treadle.server.inference.scheduler import Scheduler


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler(2)
    yield scheduler
    scheduler.close()


def sequences_of(model: Model, count: int, **settings: Any) -> list[Sequence]:
    prepared = PreparedPrompt(model.trained, "ab", SamplingConfig(**{"seed": 1, **settings}), None)
    list(prepared.read())
    return [prepared.sequence(index, TOKENS) for index in range(count)]


async def texts_of(batcher: Batcher, model: Model, count: int, **settings: Any) -> list[str]:
    queue = PieceQueue(1 << 20)
    texts = [""] * count
    batcher.begin(model, sequences_of(model, count, **settings), queue, "")
    async for index, pieces in queue.read(count):
        texts[index] += "".join(piece.text for piece in pieces)
    return texts


def test_calls_that_come_as_others_end_give_what_they_gave(scheduler: Scheduler) -> None:
    """Threads change places as often as they can, so that what can go wrong between two does."""
    model = model_of()
    expected = "".join(p.text for p in model.stream("ab", seed=1, max_new_tokens=6))
    batcher = Batcher(scheduler)

    async def caller() -> None:
        for _ in range(40):
            assert await texts_of(batcher, model, 1, max_new_tokens=6) == [expected]

    async def run() -> None:
        async with asyncio.timeout(120):
            await asyncio.gather(*(caller() for _ in range(6)))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        asyncio.run(run())
    finally:
        sys.setswitchinterval(before)


def test_no_group_is_larger_than_its_kernels_allow(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    decode = SlotArrays.decode

    def watched(self: SlotArrays, count: int) -> Any:
        sizes.append(len(self.slots))
        return decode(self, count)

    monkeypatch.setattr(SlotArrays, "decode", watched)

    async def run() -> None:
        batcher = Batcher(scheduler)
        model = model_of()
        calls = [texts_of(batcher, model, 60, max_new_tokens=40) for _ in range(5)]
        found = await asyncio.gather(*calls)
        assert all(texts == found[0] for texts in found)

    asyncio.run(run())
    assert 1 < max(sizes) <= MAX_SLOTS


def test_precisions_take_turns_and_never_share_a_step(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    view = model.at(InferencePrecision.INT8)
    steps: list[InferencePrecision] = []
    step = DecodingBatch.step

    def watched(self: DecodingBatch, tokens: int) -> Any:
        (precision,) = {each._network.precision for each in self._rows}
        steps.append(precision)
        return step(self, tokens)

    monkeypatch.setattr(DecodingBatch, "step", watched)

    async def run() -> None:
        batcher = Batcher(scheduler)
        calls = [texts_of(batcher, (model, view)[i % 2], 3, max_new_tokens=40) for i in range(6)]
        found = await asyncio.gather(*calls)
        for each, texts in zip((model, view) * 3, found, strict=True):
            alone = [each.generate("ab", seed=1, index=i, max_new_tokens=40) for i in range(3)]
            assert texts == alone

    asyncio.run(run())
    assert set(steps) == {InferencePrecision.FP32, InferencePrecision.INT8}


def test_a_group_that_fails_ends_all_calls_and_the_next_call_works(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = SlotArrays.replace
    broken = [True]

    def failing(self: SlotArrays, *args: Any) -> None:
        if broken[0]:
            raise MemoryError
        change(self, *args)

    monkeypatch.setattr(SlotArrays, "replace", failing)

    async def run() -> None:
        batcher = Batcher(scheduler)
        model = model_of()
        for _ in range(2):
            with pytest.raises(MemoryError):
                async with asyncio.timeout(60):
                    await texts_of(batcher, model, 3, max_new_tokens=5)
        broken[0] = False
        assert len(set(await texts_of(batcher, model, 3, max_new_tokens=5))) > 1

    asyncio.run(run())


def test_a_piece_that_cannot_be_kept_ends_its_own_call_alone(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = PieceQueue.count
    broken = list[PieceQueue]()

    def failing(self: PieceQueue, piece: Piece) -> None:
        if self in broken:
            raise MemoryError
        count(self, piece)

    monkeypatch.setattr(PieceQueue, "count", failing)

    async def read(queue: PieceQueue) -> None:
        async for _ in queue.read(1):
            pass

    async def run() -> None:
        batcher = Batcher(scheduler)
        model = model_of()
        expected = await texts_of(batcher, model, 3, max_new_tokens=200)
        queue = PieceQueue(1 << 20)
        broken.append(queue)
        batcher.begin(model, sequences_of(model, 1, max_new_tokens=200), queue, "")
        others = asyncio.create_task(texts_of(batcher, model, 3, max_new_tokens=200))
        async with asyncio.timeout(60):
            with pytest.raises(MemoryError):
                await read(queue)
            assert await others == expected

    asyncio.run(run())


def test_a_sequence_that_cannot_join_ends_its_own_call_alone(scheduler: Scheduler) -> None:
    async def run() -> None:
        batcher = Batcher(scheduler)
        model = model_of()
        expected = await texts_of(batcher, model, 3, max_new_tokens=200)
        others = asyncio.create_task(texts_of(batcher, model, 3, max_new_tokens=200))
        await asyncio.sleep(0)
        (odd,) = sequences_of(model, 1, max_new_tokens=200)
        odd.slot.state = replace(odd.slot.state, token=-1)
        queue = PieceQueue(1 << 20)
        batcher.begin(model, [odd], queue, "")
        async with asyncio.timeout(60):
            with pytest.raises(TokenError):
                async for _ in queue.read(1):
                    pass
            assert await others == expected
        assert not batcher.callers

    asyncio.run(run())


def test_the_pieces_of_one_text_are_its_own(scheduler: Scheduler) -> None:
    async def run() -> list[tuple[int, list[Piece]]]:
        batcher = Batcher(scheduler)
        model = model_of()
        queue = PieceQueue(1 << 20)
        batcher.begin(model, sequences_of(model, 9, max_new_tokens=30), queue, "")
        return [batch async for batch in queue.read(9)]

    batches = asyncio.run(run())
    for index in range(9):
        mine = [piece for place, pieces in batches if place == index for piece in pieces]
        assert [piece.result is not None for piece in mine] == [False] * (len(mine) - 1) + [True]
        alone = list(model_of().stream("ab", seed=1, max_new_tokens=30, index=index))
        assert [t for p in mine for t in p.tokens] == [t for p in alone for t in p.tokens]


@pytest.mark.parametrize("others", [0, 20])
def test_chunks_are_short_where_much_is_reported_of_each_token(
    scheduler: Scheduler, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = []
    decode = SlotArrays.decode

    def watched(self: SlotArrays, count: int) -> Any:
        chunks.append((count, len(self.slots)))
        return decode(self, count)

    monkeypatch.setattr(SlotArrays, "decode", watched)

    async def run() -> None:
        batcher = Batcher(scheduler)
        model = model_of()
        settings: dict[str, Any] = {"max_new_tokens": 40, "top_log_probabilities": others}
        assert len(await texts_of(batcher, model, 40, **settings)) == 40

    asyncio.run(run())
    assert chunks
    assert all(count <= max(1, 4096 // (rows * (1 + others))) for count, rows in chunks)
