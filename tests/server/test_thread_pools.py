"""Work that fills one pool of threads leaves the others free."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from treadle.server.access.caller import Caller, Role, set_current_caller
from treadle.server.resources import thread_pools
from treadle.server.resources.thread_pools import ThreadPool
from treadle.server.resources.work_owner import set_work_owner, work_owner

from .harness import PATIENCE_S, until


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


def test_in_a_pool_callers_take_turns() -> None:
    """And what is cancelled before its turn takes none."""

    async def main() -> list[str]:
        pool = ThreadPool("one", 1)
        held = threading.Event()
        begun: list[str] = []

        async def work(owner: str, name: str) -> None:
            set_work_owner(owner)
            await pool.run(begun.append, name)

        first = asyncio.ensure_future(pool.run(held.wait, PATIENCE_S))
        await asyncio.sleep(0)
        tasks = [asyncio.ensure_future(work("many", f"many {number}")) for number in range(4)]
        tasks += [asyncio.ensure_future(work("some", f"some {number}")) for number in range(2)]
        tasks += [asyncio.ensure_future(work("one", "one"))]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)
        pool.close()
        return begun

    begun = asyncio.run(main())
    assert begun == ["many 0", "some 0", "one", "some 1", "many 2", "many 3"]


def test_work_is_that_of_the_caller_of_the_call() -> None:
    async def main() -> None:
        assert work_owner() == ""
        set_current_caller(Caller("team-a", Role.USER))
        assert work_owner() == "team-a"
        assert await asyncio.create_task(ThreadPool("one", 1).run(work_owner)) == "team-a"

    asyncio.run(main())
    assert work_owner() == ""


class Large:
    """A result whose memory counts."""


def test_a_busy_pool_keeps_no_result() -> None:
    async def main() -> None:
        pool = ThreadPool("one", 1)
        queued = threading.Event()
        held = threading.Event()

        def make() -> Large:
            queued.wait(PATIENCE_S)
            return Large()

        first = asyncio.ensure_future(pool.run(make))
        later = asyncio.ensure_future(pool.run(held.wait, PATIENCE_S))
        await asyncio.sleep(0)  # both are in the pool
        queued.set()
        gone = weakref.ref(await first)
        del first
        await until(lambda: gone() is None)
        assert not later.done()
        held.set()
        await later
        pool.close()

    asyncio.run(main())
