"""`Pool`: threads that run parts of a step."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from treadle.model.network.parallel import PART, Pool, parts

PATIENCE_S = 120.0


def pool_threads() -> int:
    return sum(thread.name == "treadle-pool" for thread in threading.enumerate())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_keep_the_order_of_the_items(threads: int) -> None:
    pool = Pool(threads)
    for count in (0, 1, 2, 50):
        assert pool.map(lambda item: item * item, range(count)) == [n * n for n in range(count)]
    pool.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_items_error_is_passed_on_and_the_pool_continues(threads: int) -> None:
    pool = Pool(threads)

    def work(item: int) -> int:
        if item % 2:
            time.sleep(0.02 / item)  # later items fail earlier
            raise ValueError(item)
        return item

    for _ in range(5):
        with pytest.raises(ValueError, match=r"^1$"):
            pool.map(work, range(6))
        assert pool.map(work, [0, 2, 4]) == [0, 2, 4]
    pool.close()


def test_the_caller_waits_for_no_thread_that_has_not_begun() -> None:
    pool = Pool(2)
    held = threading.Event()
    holding = threading.Event()

    def hold(item: int) -> None:
        if threading.current_thread().name == "treadle-pool":
            holding.set()
            held.wait(PATIENCE_S)
        else:
            holding.wait(PATIENCE_S)

    blocker = threading.Thread(target=pool.map, args=(hold, range(2)))
    blocker.start()
    assert holding.wait(PATIENCE_S)  # the only other thread is busy from here on
    assert pool.map(threading.current_thread().name.__add__, ["a", "b"]) == [
        threading.current_thread().name + letter for letter in "ab"
    ]
    held.set()
    blocker.join(PATIENCE_S)
    assert not blocker.is_alive()
    pool.close()


def meet(pool: Pool, threads: int) -> None:
    """Fails unless so many items run at once."""
    together = threading.Barrier(threads, timeout=PATIENCE_S)
    pool.map(lambda item: together.wait(), range(threads))


def test_as_many_items_run_at_once_as_there_are_threads() -> None:
    pool = Pool(3)
    meet(pool, 3)
    pool.close()


def test_threads_end_when_the_pool_is_closed_or_dropped() -> None:
    before = pool_threads()
    closed = Pool(4)
    assert pool_threads() == before + 3
    closed.close()
    assert pool_threads() == before
    assert closed.map(str, [1, 2]) == ["1", "2"]
    closed.close()
    dropped = Pool(2)
    dropped.map(str, range(3))
    (thread,) = dropped._threads
    del dropped
    gc.collect()
    thread.join(PATIENCE_S)
    assert pool_threads() == before


def test_a_pool_continues_with_another_number_of_threads() -> None:
    before = pool_threads()
    pool = Pool(1)
    for threads in (3, 2, 5, 1, 1, 4):
        pool.resize(threads)
        assert pool.threads == threads
        assert pool_threads() == before + threads - 1
        meet(pool, threads)
        assert pool.map(str, range(9)) == list("012345678")
    threads_left = list(pool._threads)
    del pool
    gc.collect()
    for thread in threads_left:
        thread.join(PATIENCE_S)
    assert pool_threads() == before


def test_a_waiting_thread_keeps_nobody_alive() -> None:
    class Owner:
        def __init__(self) -> None:
            self.pool = Pool(2)
            self.pool.map(self.work, range(3))

        def work(self, item: int) -> None:
            time.sleep(0.01)

    owner = Owner()
    (thread,) = owner.pool._threads
    del owner
    end = time.monotonic() + PATIENCE_S
    while thread.is_alive() and time.monotonic() < end:
        gc.collect()
        thread.join(0.01)
    assert not thread.is_alive()


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART])
def test_parts_cover_a_buffer_once(size: int) -> None:
    cut = parts(size)
    assert [n for part in cut for n in range(part.start, part.stop)] == list(range(size))
    assert all(part.stop - part.start == PART for part in cut[:-1])
