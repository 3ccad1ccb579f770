"""`main` measures sampling with top-k, top-p and typical-p next to sampling from all tokens.

    python -m treadle.benchmarks.draws                 # 10,001 weights, the medians of 300 rounds

Every round draws once with each setting, in turn, from the same weights. Next to the draws stands a
sort of all weights by comparison, which is what a cut would cost without `kernels/radix_sort.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from treadle.benchmarks.machine import processor
from treadle.kernels.jit import jit
from treadle.kernels.loss import row_max, shifted_exp
from treadle.kernels.sampling import Truncation, allocate_sampling_scratch, sample
from treadle.kernels.structs import Array

ZERO = np.float32(0)
ONE = np.float32(1)
EVERYTHING = "all tokens"
SETTINGS = {
    EVERYTHING: Truncation(0, ONE, ZERO, ONE),
    "top-k 40": Truncation(40, ONE, ZERO, ONE),
    "top-p 0.9": Truncation(0, np.float32(0.9), ZERO, ONE),
    "min-p 0.05": Truncation(0, ONE, np.float32(0.05), ONE),
    "typical-p 0.9": Truncation(0, ONE, ZERO, np.float32(0.9)),
}
SPREADS = (1.0, 3.0, 6.0)
"""Standard deviations of the logits: from a model that knows little to one that is sure."""


@jit
def _sort(weights: Array) -> int:
    return int(np.argsort(-weights, kind="mergesort")[0])


def _measure(spread: float, V: int, rounds: int) -> dict[str, float]:
    """Returns the median microseconds of every setting."""
    logits = (spread * np.random.default_rng(0).standard_normal(V)).astype(np.float32)
    most = np.float32(row_max(logits))
    weights = np.empty(V, np.float32)
    scratch = allocate_sampling_scratch(V)
    total = np.float32(shifted_exp(logits, most, weights))
    given = weights.copy()
    half = np.float32(0.5)

    def drawing(cuts: Truncation) -> Callable[[], int]:
        return lambda: sample(logits, most, ONE, cuts, half, weights, total, scratch)

    contenders = {name: drawing(cuts) for name, cuts in SETTINGS.items()}
    contenders["a sort of all"] = lambda: _sort(weights)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            weights[:] = given
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    return {name: 1e6 * statistics.median(measured) for name, measured in times.items()}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="What a draw costs by how it is cut.")
    parser.add_argument("--vocabulary", type=int, default=10_001, help="weights (10001)")
    parser.add_argument("--rounds", type=int, default=300, help="of each, interleaved (300)")
    arguments = parser.parse_args()
    print(processor())
    for spread in SPREADS:
        print(f"\nlogits of standard deviation {spread:g}, {arguments.vocabulary:,} of them")
        measured = _measure(spread, arguments.vocabulary, arguments.rounds)
        for name, microseconds in measured.items():
            ratio = microseconds / measured[EVERYTHING]
            print(f"{name:16}{microseconds:8.1f} us {ratio:7.1f}x")


if __name__ == "__main__":
    main()
