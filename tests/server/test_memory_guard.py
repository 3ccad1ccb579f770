"""What the memory budget cannot count ends silent streams, where it becomes too much."""

from __future__ import annotations

import asyncio

from treadle.server.resources.memory_guard import guard_memory

from .harness import until


def test_streams_end_while_there_is_more_memory_than_may_be() -> None:
    async def run() -> None:
        takes = [500]
        ended = list[int]()
        looks = []

        def resident() -> int:
            looks.append(takes[0])
            return takes[0]

        async def two_looks() -> None:
            enough = len(looks) + 2
            await until(lambda: len(looks) >= enough)

        guard = asyncio.create_task(guard_memory(1000, 100, resident, ended.append, look_s=0.001))
        await two_looks()
        for size, expected in ((1500, []), (1501, [1]), (1950, [5]), (1400, [])):
            takes[0] = size
            await two_looks()  # the first may have begun before
            ended.clear()
            await two_looks()
            assert ended[:1] == expected
        guard.cancel()

    asyncio.run(run())


def test_nothing_is_done_where_the_system_does_not_tell() -> None:
    asyncio.run(asyncio.wait_for(guard_memory(1, 1, lambda: 0, lambda _: None), 60))
