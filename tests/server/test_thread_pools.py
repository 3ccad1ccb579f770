"""Work that fills one pool of threads leaves the others free."""

from __future__ import annotations

import asyncio
import threading

import pytest

from treadle.server.resources import thread_pools
from treadle.server.resources.thread_pools import ThreadPool

from .harness import PATIENCE_S


def test_a_full_pool_leaves_the_others_free() -> None:
    async def main() -> list[str]:
        held = threading.Event()
        kept = [
            asyncio.ensure_future(thread_pools.LISTS.run(held.wait, PATIENCE_S)) for _ in range(50)
        ]
        free = [pool for pool in thread_pools.ALL if pool is not thread_pools.LISTS]
        async with asyncio.timeout(PATIENCE_S / 2):
            names = await asyncio.gather(
                *(pool.run(lambda: threading.current_thread().name) for pool in free)
            )
        assert not any(work.done() for work in kept)
        held.set()
        await asyncio.gather(*kept)
        return names

    names = asyncio.run(main())
    assert [name.partition("_")[0] for name in names] == [
        pool.name for pool in thread_pools.ALL if pool is not thread_pools.LISTS
    ]


def test_what_the_work_raises_reaches_the_caller() -> None:
    def fail(*, text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError, match="no such luck"):
        asyncio.run(ThreadPool("one", 1).run(fail, text="no such luck"))


def test_a_closed_pool_drops_what_waits_and_opens_again() -> None:
    async def main() -> None:
        pool = ThreadPool("one", 1)
        held = threading.Event()
        begun: list[int] = []
        first = asyncio.ensure_future(pool.run(held.wait, PATIENCE_S))
        second = asyncio.ensure_future(pool.run(begun.append, 1))
        await asyncio.sleep(0)
        pool.close()
        held.set()
        assert await first
        await asyncio.wait([second])
        assert second.cancelled()
        assert begun == []
        assert await pool.run(lambda: 2) == 2
        pool.close()

    asyncio.run(main())
