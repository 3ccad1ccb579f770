"""The budget for what the server keeps: what fits, what is refused, and that all is released."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.errors import StatusError
from treadle.server.resources.memory_budget import MemoryBudget, Reservation


def test_bytes_are_held_until_the_block_ends() -> None:
    budget = MemoryBudget(1000)
    with budget.reserve(300, "requests") as held:
        assert (budget.used, held.size) == (300, 300)
        held.resize(500)
        assert (budget.used, held.size) == (500, 500)
        held.resize(100)
        assert (budget.used, held.size) == (100, 100)
        with suppress(ZeroDivisionError), budget.reserve(200, "requests"):
            assert budget.used == 300
            raise ZeroDivisionError
        assert budget.used == 100
    assert budget.used == 0
    held.release()
    assert budget.used == 0


def test_what_does_not_fit_now_is_worth_a_retry_and_changes_nothing() -> None:
    budget = MemoryBudget(1000)
    with budget.reserve(500, "requests") as held:
        with pytest.raises(StatusError) as caught:
            budget.reserve(400, "learning streams")
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "400 bytes of memory for learning streams" in caught.value.message
        assert "of 1,000 (--memory-budget)" in caught.value.message
        assert "500" not in caught.value.message, "what others use is for admins to know"
        assert [type(detail) for detail in caught.value.details] == [error_details_pb2.RetryInfo]
        with budget.reserve(300, "requests"), pytest.raises(StatusError):
            held.resize(600)
        assert (held.size, budget.used) == (500, 500)
    budget.reserve(400, "learning streams").release()
    assert budget.used == 0


def test_what_never_fits_is_not_worth_a_retry() -> None:
    with pytest.raises(StatusError) as caught:
        MemoryBudget(1000).reserve(1001, "models")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger --memory-budget" in caught.value.message
    assert caught.value.details == ()


def test_the_last_part_is_left_to_small_ones() -> None:
    budget = MemoryBudget(1 << 20)
    large = 7 << 17
    small = 1 << 10
    with budget.reserve(large, "models"):
        with pytest.raises(StatusError):
            budget.reserve(small + 1, "models")
        held = [budget.reserve(small, "requests") for _ in range(128)]
        assert budget.used == budget.limit
        with pytest.raises(StatusError):
            budget.reserve(1, "requests")
        held[0].resize(0)  # to shrink never fails, however full it is
        for one in held:
            one.release()
    assert budget.used == 0


def test_what_can_be_spared_goes_before_a_refusal() -> None:
    budget = MemoryBudget(1000)
    cached = budget.reserve(600, "models")
    missing: list[int] = []

    def free(size: int) -> None:
        missing.append(size)
        cached.resize(200)

    budget.on_shortage(free)
    with budget.reserve(275, "requests"):
        assert missing == []
        with budget.reserve(400, "requests"):
            assert missing == [400]
            with pytest.raises(StatusError):
                budget.reserve(10, "requests")
        with pytest.raises(StatusError):
            budget.reserve(1001, "requests")  # never fits: nothing is given up for it
        assert missing == [400, 10]


def test_many_threads_leave_nothing_behind() -> None:
    budget = MemoryBudget(10_000)
    refused: list[int] = []

    def work() -> None:
        for size in range(1, 300):
            try:
                with budget.reserve(size, "requests") as held:
                    assert 0 <= budget.used <= budget.limit
                    held.resize(size * 7)
            except StatusError:
                refused.append(size)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 0


def test_those_that_wait_for_room_keep_no_more_than_a_part_of_the_limit() -> None:
    async def scenario() -> None:
        budget = MemoryBudget(1000)
        full = budget.reserve(800, "requests")
        waiting = [budget.reserve(0, "requests") for _ in range(3)]

        async def wait(held: Reservation, kept: int) -> None:
            await held.resize_patiently(100, 60.0, kept)

        first = asyncio.create_task(wait(waiting[0], 200))
        await asyncio.sleep(0)
        assert budget.waiting == 200
        with pytest.raises(StatusError):
            await wait(waiting[1], 51)
        second = asyncio.create_task(wait(waiting[2], 50))
        await asyncio.sleep(0)
        assert budget.waiting == 250
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert budget.waiting == 200
        full.release()
        await asyncio.wait_for(first, 60)
        assert (budget.waiting, budget.used) == (0, 100)

    asyncio.run(scenario())
