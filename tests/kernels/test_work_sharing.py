"""Threads that run one kernel together take every item once, and wait for each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.kernels.jit import jit_views
from treadle.kernels.work_sharing import allocate_counters, finish, give_up, take, wait

Counters = NDArray[np.int64]

ITEMS = 3


@jit_views
def work(thread: int, counters: Counters, phases: int, done: NDArray[np.int64]) -> int:
    """Writes to done (phases, ITEMS) how many items of the phase before were finished."""
    for phase in range(phases):
        for turn in range(ITEMS):
            item = (thread + turn) % ITEMS
            if not take(counters, phase, item):
                continue
            seen = 1
            if phase > 0:
                for other in range(ITEMS):
                    seen += done[phase - 1, other] == phase
            done[phase, item] += phase + 1 if phase == 0 or seen == ITEMS + 1 else -1000
            finish(counters, phase)
        if not wait(counters, phase, ITEMS):
            return phase
    return phases


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_item_is_taken_once_and_after_those_of_the_phase_before(threads: int) -> None:
    phases = 50
    for _ in range(20):
        counters = allocate_counters(phases)
        done = np.zeros((phases, ITEMS), np.int64)
        with ThreadPoolExecutor(threads) as pool:
            calls = [pool.submit(work, thread, counters, phases, done) for thread in range(threads)]
            ended = [call.result(timeout=60) for call in calls]
        assert ended == [phases] * threads
        assert (done == np.arange(1, phases + 1)[:, None]).all()


def test_a_thread_that_comes_late_finds_nothing_to_do() -> None:
    counters = allocate_counters(2)
    done = np.zeros((2, ITEMS), np.int64)
    assert work(0, counters, 2, done) == 2
    before = done.copy()
    assert work(0, counters, 2, done) == 2
    assert (done == before).all()


def test_no_thread_waits_for_one_that_has_failed() -> None:
    counters = allocate_counters(1)
    assert take(counters, 0, 0)
    give_up(counters)
    assert work(1, counters, 1, np.zeros((1, ITEMS), np.int64)) == 0
