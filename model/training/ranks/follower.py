"""`follow` has a process follow the commands of rank 0 of its run, until the run is over.

A follower holds the weights and the optimizer's state, which it updates as rank 0 does, and the
shards of its share. It reads no corpus and writes no file.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.model.config import OptimizerConfig, TrainConfig
from treadle.model.enums import Precision
from treadle.model.errors import ConfigError, TrainingError
from treadle.model.network.engine import STATES, Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.precision import check_precision
from treadle.model.network.shape import Shape
from treadle.model.training.optimizer import Optimizer, Powers
from treadle.model.training.setup import load_kernels
from treadle.model.training.steps.accumulation import add_weighted

if TYPE_CHECKING:
    from treadle.model.network.ranks.ranks import Ranks

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


def follow(ranks: Ranks) -> None:
    """Follows the commands of rank 0, until one says to quit.

    Args:
        ranks: The processes of the run; this one is not rank 0.

    Raises:
        Exception: A command failed on this rank alone. The run cannot continue: the caller ends it
            by `Ranks.abort`.
    """
    follower = Follower(ranks)
    try:
        while True:
            command, arguments = ranks.next_command()
            if command == "quit":
                ranks.meet()
                return
            getattr(follower, command)(*arguments)
    finally:
        follower.close()


def follow_to_the_end(ranks: Ranks) -> int:
    """Follows rank 0 until the run is over, and ends the run on all ranks if that fails.

    Args:
        ranks: The processes of the run; this one is not rank 0.

    Returns:
        The exit code.
    """
    try:
        follow(ranks)
    except BaseException as error:
        traceback.print_exc()
        print(
            f"rank {ranks.rank} on {ranks.host} failed, which ends the run: {error!r}",
            file=sys.stderr,
            flush=True,
        )
        ranks.abort(1)
    return 0


class Follower:
    """Keeps up with one engine of rank 0 at a time. Each public method is a command.

    Args:
        ranks: The processes of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pool = Pool(1)
        self._engine: Engine | None = None
        self._optimizer: Optimizer | None = None
        self._sum: Parameters | None = None
        """The gradient of a step of several batches."""

    def resize(self, threads: int) -> None:
        """Uses another number of threads from now on."""
        if threads != self._pool.threads:
            self._pool.resize(threads)

    def prepare(self, config: TrainConfig) -> None:
        """Checks that this processor can train with some settings, and loads the kernels."""

        def load() -> None:
            check_precision(config)
            load_kernels(config)

        self._answer(load)

    def open(
        self,
        shape: Shape,
        rows: int,
        window: int,
        dropout: float,
        seed: int,
        precision: Precision,
        output_dropout: float,
    ) -> None:
        """Makes the engine that rank 0 has made, and takes its parameters; see `Engine`."""
        self.close()

        def make() -> None:
            self._engine = Engine(
                Parameters(shape),
                rows,
                window,
                self._pool,
                dropout,
                seed,
                precision,
                output_dropout,
                ranks=self._ranks,
            )

        self._answer(make)
        if self._engine is not None:
            self._ranks.broadcast(self._engine.parameters.flat)

    def close(self) -> None:
        """Frees what belongs to the engine."""
        self._engine = None
        self._optimizer = None
        self._sum = None
        self._pool.close()

    def optimize(self, config: OptimizerConfig, steps: int, powers: Powers) -> None:
        """Takes the state of rank 0's optimizer; see `Optimizer.share`."""
        engine = self._opened()

        def make() -> None:
            self._optimizer = Optimizer(config, engine.parameters)
            self._optimizer.restore(steps, powers)

        self._answer(make)
        if self._optimizer is not None:
            for buffer in self._optimizer.buffers():
                self._ranks.broadcast(buffer.flat)

    def gradient(
        self,
        used: Ints | None,
        tokens: Ints,
        targets: Ints,
        fresh: Bools,
        scale: np.float32,
        step: np.uint64,
        remember: bool,
    ) -> None:
        """Takes part in the gradient of a batch; see `Engine.take_part`."""
        engine = self._opened()
        if remember:
            engine.remember()
        engine.take_part(used, tokens, targets, fresh, scale, step)

    def begin_accumulation(self) -> None:
        """Begins the gradient of a step of several batches."""
        engine = self._opened()
        if self._sum is None:
            self._sum = Parameters(engine.shape)
        self._sum.flat[:] = 0

    def accumulate(self, weight: np.float32) -> None:
        """Adds the gradient of the last batch to that of the step."""
        assert self._sum is not None
        add_weighted(self._opened(), weight, self._sum)

    def update(self, rate: float) -> None:
        """Takes a step of the optimizer."""
        assert self._optimizer is not None
        gradient = self._sum or self._opened().gradient
        try:
            self._optimizer.step(gradient, rate, self._pool)
        except TrainingError:  # rank 0 has the same bits, and ends the run
            return

    def go_back(self) -> None:
        """Returns to the states before the step that was dropped."""
        self._opened().go_back()

    def carried(self) -> None:
        """Sends rank 0 the states of this rank's rows."""
        both = np.ascontiguousarray(np.stack(self._opened().own_carried()))
        self._ranks.wait([self._ranks.send(both, 0, STATES)])

    def carry(self, hs: Array, cs: Array) -> None:
        """Takes the states of this rank's rows."""
        self._opened().carry_own(hs, cs)

    def _opened(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _answer(self, work: Any) -> None:
        """Does something that may fail on one rank alone, and reports to rank 0."""
        fault: Exception | None = None
        try:
            work()
        except ConfigError as error:
            fault = ConfigError(f"{self._place}: {error}", error.field)
        except MemoryError:
            fault = MemoryError(f"{self._place} lacks memory")
        self._ranks.answer(fault)

    @property
    def _place(self) -> str:
        return f"rank {self._ranks.rank} on {self._ranks.host}"
