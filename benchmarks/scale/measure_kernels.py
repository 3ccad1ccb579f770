"""`measure` returns what a token takes of one core: generated, read, and trained on."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

from treadle.benchmarks.networks import network_weights
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.ours import make_decode, make_score, make_train

CASE = Case("train", "lstm", 256, rows=64)
"""An LSTM of 256 units over 65 characters, with embeddings of 64."""


def measure(seconds: float) -> dict[str, float]:
    """Returns constants by their names.

    Args:
        seconds: For each of them.
    """
    together = make_decode(dataclasses.replace(CASE, steps=16), {})
    alone = make_decode(dataclasses.replace(CASE, rows=1, steps=128), {})
    weights = sum(array.nbytes for array in network_weights(CASE).values())
    return {
        "decode_s": seconds_for_one(together, seconds),
        "decode_alone_s": seconds_for_one(alone, seconds),
        "prefill_s": seconds_for_one(make_score(CASE, {}), seconds),
        "train_s": seconds_for_one(make_train(CASE, {}), seconds),
        "weight_bytes": float(weights),
    }


def seconds_for_one(step: Callable[[], float], seconds: float) -> float:
    """Returns the processor time of this thread for one of what a step makes, the median.

    Args:
        step: Does the work, and returns how many it made.
        seconds: How long to measure.
    """
    step()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        began = time.thread_time()
        made = step()
        found.append((time.thread_time() - began) / made)
    return statistics.median(found)
