"""`divide` shows how training divides over threads: equal bits, and equal parts of the work.

    python benchmarks/threads.py
    python benchmarks/threads.py --rows 64 --threads 1 2 4

A batch has a shard for every 16 rows, and every shard is one kernel call. With each number of
threads the same steps are made. A thread takes its next shard only once every thread has one, so
that also a machine with fewer processors deals the shards out as one with enough of them would.
What is measured is the processor time that each call took of its own thread, which other programs
and waiting threads do not add to, and not the time that passed.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from treadle.model import Cell, OptimizerConfig
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape
from treadle.model.network.shards import SHARD_ROWS
from treadle.model.training.optimizer import Optimizer

Item = TypeVar("Item")
Result = TypeVar("Result")

RATE = 1e-3
VOCABULARY = 65
EMBEDDING = 64


class DealingPool(Pool):
    """A pool that deals the shards of a step out evenly, and adds up what each thread spends."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.shards: dict[int, int] = defaultdict(int)
        """Shards that each thread has run, by its number."""
        self.seconds: dict[int, float] = defaultdict(float)
        """Processor time that each thread has spent on shards."""
        self._barrier = threading.Barrier(threads)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Returns work(item) of every item, in order; of shards, each thread takes its share."""
        listed = list(items)
        if not hasattr(listed[0], "gradients") or len(listed) % self.threads:
            return super().map(work, listed)

        def timed(item: Item) -> Result:
            self._barrier.wait()
            begin = time.thread_time()
            result = work(item)
            thread = threading.get_ident()
            self.seconds[thread] += time.thread_time() - begin
            self.shards[thread] += 1
            return result

        return super().map(timed, listed)


@dataclass(frozen=True)
class Division:
    """How the work of some steps was divided."""

    threads: int
    shards: tuple[int, ...]
    """Shards of a step that each thread ran, the most first."""
    all_s: float
    """Processor time of all shards of a step, in seconds."""
    busiest_s: float
    """Processor time that the busiest thread spent on shards, a step."""
    alone_s: float
    """Processor time of the calling thread outside shards, a step: it cannot be shared."""
    digest: str
    """SHA-256 of the weights after the last step."""


def divide(cell: Cell, hidden: int, rows: int, window: int, threads: int, steps: int) -> Division:
    """Makes some training steps with so many threads."""
    parameters = Parameters.initial(Shape(cell, VOCABULARY, EMBEDDING, hidden, 1), seed=1)
    shape = (2, steps + 1, window, rows)
    tokens = np.random.default_rng(2).integers(VOCABULARY, size=shape, dtype=np.int32)
    fresh = np.zeros(rows, np.bool_)
    pool = DealingPool(threads)
    try:
        engine = Engine(parameters, rows, window, pool)
        optimizer = Optimizer(OptimizerConfig(), parameters)
        engine.loss_and_gradient(tokens[0, 0], tokens[1, 0], fresh)  # compiles, fills caches
        pool.shards.clear()
        pool.seconds.clear()
        begin = time.thread_time()
        for number in range(1, steps + 1):
            engine.loss_and_gradient(tokens[0, number], tokens[1, number], fresh)
            optimizer.step(engine.gradient, RATE, pool)
        own = time.thread_time() - begin
    finally:
        pool.close()
    return Division(
        threads,
        tuple(sorted((count // steps for count in pool.shards.values()), reverse=True)),
        math.fsum(pool.seconds.values()) / steps,
        max(pool.seconds.values()) / steps,
        (own - pool.seconds[threading.get_ident()]) / steps,
        hashlib.sha256(parameters.flat.tobytes()).hexdigest(),
    )


def table(divisions: Sequence[Division]) -> list[str]:
    """Returns the lines of a table."""
    first = divisions[0]
    lines = [
        "threads  shards of each  all shards  busiest thread  not shared  of one thread's  weights",
    ]
    for part in divisions:
        each = "/".join(map(str, sorted(set(part.shards), reverse=True)))
        share = (part.busiest_s + part.alone_s) / (first.busiest_s + first.alone_s)
        lines.append(
            f"{part.threads:7}  {each:>14}  {part.all_s * 1e3:7.1f} ms  "
            f"{part.busiest_s * 1e3:11.1f} ms  {part.alone_s * 1e3:7.2f} ms  {share:14.0%}  "
            f"{part.digest[:12]}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if the number of threads changed a bit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", choices=[cell.value for cell in Cell], default="lstm")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = parser.parse_args(arguments)
    shards = math.ceil(options.rows / SHARD_ROWS)
    odd = [count for count in options.threads if count < 1 or shards % count]
    if odd:
        parser.error(f"--threads {odd[0]} does not divide the {shards} shards of the batch")
    divisions = [
        divide(
            Cell(options.cell), options.hidden, options.rows, options.window, count, options.steps
        )
        for count in options.threads
    ]
    case = f"{options.cell} {options.hidden}, batch {options.rows} x {options.window}"
    print(f"{case}: {shards} shards of {SHARD_ROWS} rows; processor time of a step\n")
    print("\n".join(table(divisions)))
    same = len({part.digest for part in divisions}) == 1
    print(f"\nweights after {options.steps} steps: {'the same bits' if same else 'DIFFERENT BITS'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
