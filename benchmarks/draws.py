"""`main` measures sampling with top-k, top-p, min-p and typical-p next to sampling from all tokens.

    python -m treadle.benchmarks.draws                 # 10,001 words: a row of logits, then a token
    python -m treadle.benchmarks.draws --hidden 256    # the same of a larger network
    python -m treadle.benchmarks.draws --sessions      # tokens a second: a session alone, and 64

A row is its softmax and the draw: what a token costs in addition to the network. A token is a step
of an LSTM and its row, as `Generate` decodes it. Every round measures each setting once, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from treadle.benchmarks.machine import processor
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.ours import shape_of
from treadle.kernels.jit import jit_views
from treadle.kernels.loss import row_max, shifted_exp
from treadle.kernels.sampling import (
    SamplingScratch,
    Truncation,
    allocate_sampling_scratch,
    sample,
)
from treadle.kernels.structs import Array, Weights
from treadle.model import SamplingConfig
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.sequence_slot import SequenceSlot
from treadle.model.generation.slot_arrays import SlotArrays
from treadle.model.network.parameters import Parameters
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import Shape
from treadle.model.network.workspace import pack_for_inference

ZERO = np.float32(0)
ONE = np.float32(1)
EVERYTHING = "all tokens"
SETTINGS: dict[str, dict[str, float]] = {
    EVERYTHING: {},
    "top-k 40": {"top_k": 40},
    "top-k 40, top-p 0.9": {"top_k": 40, "top_p": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "typical-p 0.9": {"typical_p": 0.9},
}
SPREADS = (1.0, 3.0, 6.0)
"""Standard deviations of the logits: from a model that knows little to one that is sure."""

_ROWS = 20
"""Draws of one measurement."""
_TOKENS = 32
"""Tokens of one call."""
_SESSION_TOKENS = 128
"""Tokens of one call of a session alone with a small vocabulary."""

_Runs = dict[str, Callable[[], object]]


@jit_views
def _draw_rows(
    logits: Array, weights: Array, cuts: Truncation, scratch: SamplingScratch, rows: int
) -> int:
    """Draws from one row of logits again and again, each time from its softmax on."""
    last = 0
    for row in range(rows):
        most = row_max(logits)
        total = shifted_exp(logits, most, weights)
        u = np.float32(row) / np.float32(rows)
        last = sample(logits, most, ONE, cuts, u, weights, total, scratch)
    return last


def _row_runs(spread: float, V: int) -> _Runs:
    """Returns what draws from a row of V logits, with every setting."""
    logits = (spread * np.random.default_rng(0).standard_normal(V)).astype(np.float32)
    weights = np.empty(V, np.float32)
    scratch = allocate_sampling_scratch(V)

    def run(top_k: int = 0, top_p: float = 1, min_p: float = 0, typical_p: float = 1) -> object:
        cuts = Truncation(top_k, np.float32(top_p), np.float32(min_p), np.float32(typical_p))
        return _draw_rows(logits, weights, cuts, scratch, _ROWS)

    return {name: lambda s=settings: run(**s) for name, settings in SETTINGS.items()}  # type: ignore[misc]


def _decoder(
    shape: Shape, weights: Weights, settings: dict[str, float], rows: int, tokens: int
) -> Callable[[], object]:
    """Returns what decodes `tokens` tokens for `rows` sequences."""
    initial = SessionState.fresh(shape, token=0)
    sampling = ResolvedSampling(SamplingConfig(**settings))  # type: ignore[arg-type]
    slots = SlotArrays(shape, weights)
    slots.replace((), [SequenceSlot(sampling, replace(initial, seed=n), -1) for n in range(rows)])
    return lambda: slots.decode(tokens)


def _weights(hidden: int, V: int) -> tuple[Shape, Weights]:
    shape = shape_of(Case("decode", "lstm", hidden, vocabulary=V))
    return shape, pack_for_inference(Parameters.initial(shape, seed=0))


def _race(runs: _Runs, rounds: int, units: dict[str, int]) -> dict[str, float]:
    """Returns the median microseconds of each, for one of its `units` rows or tokens."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begun) / units[name])
    return {name: 1e6 * statistics.median(measured) for name, measured in times.items()}


def _print_ratios(measured: dict[str, float]) -> None:
    for name, microseconds in measured.items():
        ratio = microseconds / measured[EVERYTHING]
        print(f"{name:22}{microseconds:9.2f} us {ratio:7.2f}x")


def _print_cuts(hidden: int, V: int, rounds: int) -> None:
    for spread in SPREADS:
        print(f"\na row of {V:,} logits of standard deviation {spread:g}")
        _print_ratios(_race(_row_runs(spread, V), rounds, dict.fromkeys(SETTINGS, _ROWS)))
    print(f"\na token of an LSTM {hidden} with {V:,} words, one session, one thread")
    shape, weights = _weights(hidden, V)
    runs = {name: _decoder(shape, weights, each, 1, _TOKENS) for name, each in SETTINGS.items()}
    _print_ratios(_race(runs, rounds, dict.fromkeys(SETTINGS, _TOKENS)))


def _print_sessions(rounds: int) -> None:
    print("\ntokens a second of an LSTM with 65 characters, one thread")
    for hidden in (64, 128, 256, 512):
        shape, weights = _weights(hidden, 65)
        runs = {
            "alone": _decoder(shape, weights, {}, 1, _SESSION_TOKENS),
            "64": _decoder(shape, weights, {}, 64, 16),
        }
        measured = _race(runs, rounds, {"alone": _SESSION_TOKENS, "64": 64 * 16})
        alone = 1e6 / measured["alone"]
        together = 1e6 / measured["64"]
        print(
            f"LSTM {hidden:4}{alone:12,.0f} alone{together:12,.0f} of 64 together "
            f"{together / alone:6.2f}x"
        )


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description="What a draw costs by how it is cut.")
    parser.add_argument("--vocabulary", type=int, default=10_001, help="words (10001)")
    parser.add_argument("--hidden", type=int, default=128, help="units of the network (128)")
    parser.add_argument("--rounds", type=int, default=100, help="of each, interleaved (100)")
    parser.add_argument("--sessions", action="store_true", help="tokens a second, not cuts")
    arguments = parser.parse_args()
    print(processor())
    if arguments.sessions:
        _print_sessions(arguments.rounds)
    else:
        _print_cuts(arguments.hidden, arguments.vocabulary, arguments.rounds)


if __name__ == "__main__":
    main()
