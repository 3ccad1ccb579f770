"""Runs kernels over whole batches: shards, threads, and the sums over shards.

A batch is split in shards of SHARD_ROWS rows, whatever the number of threads. Each shard is one kernel
call without the interpreter lock; shards are added in index order. So the bits of a
gradient depend on the batch alone (docs/exactness.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from treadle.kernels import network, structures
from treadle.kernels.matmul import PANEL, panel_count
from treadle.kernels.optimizers import add_into
from treadle.kernels.packing import pack_weights, unfold_gradients
from treadle.model.config import Cell
from treadle.model.parameters import CELL_CODES, Parameters, Shape, carve, room

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Item = TypeVar("Item")
Result = TypeVar("Result")

SHARD_ROWS = 16
"""Rows of one shard; part of the gradient's bits."""

TABLE_LIMIT = 1 << 24
"""Elements of the folded input kept for generating and scoring; past it rows are made on demand."""


def _panels(*shape: int) -> Array:
    """Return room for matrices (..., K, N) packed in panels."""
    *stack, K, N = shape
    return np.zeros((*stack, panel_count(N), K, PANEL), np.float32)


def allocate_weights(shape: Shape, table_rows: int, backward: bool) -> structures.Weights:
    """Return room for packed weights.

    Args:
        shape: the network's sizes.
        table_rows: rows of the folded input; 0 to make them on demand.
        backward: whether the transposes are wanted.
    """
    V, E, H, L, G = shape.V, shape.E, shape.H, shape.L, shape.G
    up, deep = L - 1, L if backward else 0
    return structures.Weights(
        table=np.zeros((table_rows, G), np.float32),
        embedding=np.zeros((0, 0) if table_rows else (V, E), np.float32),
        Wx0=_panels(E, G),
        b=np.zeros((L, G), np.float32),
        bh=np.zeros((L, H), np.float32),
        Wx=_panels(up, H, G),
        Wh=_panels(L, H, G),
        WxT=_panels(up if backward else 0, G, H),
        WhT=_panels(deep, G, H),
        Wy=_panels(H, V),
        WyT=_panels(V, H) if backward else _panels(0, H),
        by=np.zeros(V, np.float32),
    )


def allocate_workspace(shape: Shape, steps: int, rows: int, backward: bool) -> structures.Workspace:
    """Return room for windows of up to `steps` steps and exactly `rows` rows."""
    H, L = shape.H, shape.L
    is_gru, is_lstm = shape.cell is Cell.GRU, shape.cell is Cell.LSTM
    return structures.Workspace(
        gates=np.zeros((L, steps, rows, shape.G), np.float32),
        hidden=np.zeros((L, steps if is_gru else 0, rows, 3 * H), np.float32),
        hs=np.zeros((L, steps + 1, rows, H), np.float32),
        cs=np.zeros((L, steps + 1 if is_lstm else 0, rows, H), np.float32),
        dhs=np.zeros((steps if backward else 0, rows, H), np.float32),
        logits=np.zeros((min(structures.LOGIT_ROWS, steps * rows), shape.V), np.float32),
    )


def allocate_state(shape: Shape, rows: int) -> structures.State:
    """Return the zero state of `rows` sequences."""
    size = (shape.L, rows, shape.H)
    return structures.State(np.zeros(size, np.float32), np.zeros(size, np.float32))


def pack_for_inference(parameters: Parameters) -> structures.Weights:
    """Pack parameters for generating and scoring; the result is only ever read."""
    shape = parameters.shape
    fits = shape.E == 0 or shape.V * shape.G <= TABLE_LIMIT
    weights = allocate_weights(shape, shape.V if fits else 0, backward=False)
    used = np.arange(shape.V if fits else 0, dtype=np.int32)
    pack_weights(parameters.stacks, weights, used)
    return weights


class Pool:
    """Threads that take shards; with one thread, or one shard, the caller works itself."""

    def __init__(self, threads: int) -> None:
        """Start a pool.

        Args:
            threads: how many shards run at once, at least 1.
        """
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return work(item) of every item, in order."""
        listed = list(items)
        if self._executor is None or len(listed) == 1:
            return [work(item) for item in listed]
        return list(self._executor.map(work, listed))

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()


class _Shard:
    """A fixed slice of the batch's rows with all the room that it needs."""

    def __init__(self, shape: Shape, rows: slice, window: int, table_rows: int, backward: bool):
        count = rows.stop - rows.start
        self.rows = rows
        self.work = allocate_workspace(shape, window, count, backward)
        self.state = allocate_state(shape, count)
        stacks = {name: size for name, size in shape.stacks.items() if name in TAIL}
        shapes = {"table": (table_rows, shape.G), **stacks}
        self.flat: Array = np.zeros(room(shapes) if backward else 0, np.float32)
        self.tail: Array = self.flat[room({"table": shapes["table"]}) :]
        if backward:
            self.gradients = structures.Gradients(**carve(self.flat, shapes))

    def cut(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return this shard's rows of an array (T, B) or (B,), contiguous."""
        return np.ascontiguousarray(array[..., self.rows])


TAIL = ("b", "bh", "Wx", "Wh", "Wy", "by")
"""Stacks that shard gradients and parameter gradients share, at the end of either buffer."""


class Engine:
    """Computes losses, gradients and scores of batches (T, B) for one set of parameters."""

    def __init__(
        self, parameters: Parameters, rows: int, window: int, threads: int = 1, backward: bool = True
    ) -> None:  # fmt: skip
        """Allocate everything that a run needs.

        Args:
            parameters: read at every batch; change them in place.
            rows: sequences in a batch, B.
            window: the most steps of a batch, T.
            threads: shards that run at once.
            backward: whether gradients are wanted.
        """
        self.parameters = parameters
        self.shape = parameters.shape
        self.cell = CELL_CODES[self.shape.cell]
        self.rows = rows
        self._pool = Pool(threads)
        self._all = np.arange(self.shape.V, dtype=np.int32)
        table_rows = min(self.shape.V, rows * window)
        self._weights = allocate_weights(self.shape, table_rows, backward)
        cuts = [slice(i, min(rows, i + SHARD_ROWS)) for i in range(0, rows, SHARD_ROWS)]
        self._shards = [_Shard(self.shape, cut, window, table_rows, backward) for cut in cuts]
        self.gradient = Parameters(self.shape if backward else Shape(self.shape.cell, 0, 0, 0, 0))

    def _fold(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Pack the weights for a batch; return the table's tokens and the batch in their terms."""
        used, folded = self._all, tokens
        if self._weights.table.shape[0] < self.shape.V:
            used, inverse = np.unique(tokens, return_inverse=True)
            folded = inverse.reshape(tokens.shape).astype(np.int32)
        pack_weights(self.parameters.stacks, self._weights, used)
        return used, folded

    def loss_and_gradient(self, tokens: Ints, targets: Ints, fresh: Bools) -> tuple[float, int]:
        """Run a batch forward and backward; `self.gradient` then holds the mean loss's gradient.

        Args:
            tokens: (T, B).
            targets: (T, B), below 0 where nothing is to be learned.
            fresh: (B,), rows that begin from zeros instead of where the last batch ended.

        Returns:
            The sum of -log p(target) in nats, and the number of targets counted.
        """
        used, folded = self._fold(tokens)
        count = int(np.count_nonzero(targets >= 0))
        scale = np.float32(1 / max(count, 1))

        def run(shard: _Shard) -> float:
            shard.flat[:] = 0
            return network.train_shard(
                self.cell, self._weights, shard.work, shard.gradients, shard.state,
                shard.cut(folded), shard.cut(targets), shard.cut(fresh), scale,
            )  # fmt: skip

        loss = sum(self._pool.map(run, self._shards))
        first = self._shards[0]
        for shard in self._shards[1:]:
            add_into(shard.flat, first.flat)
        self.gradient.flat[self.gradient.flat.size - first.tail.size :] = first.tail
        unfold_gradients(self.parameters.stacks, first.gradients, used, self.gradient.stacks)
        return loss, count

    def log_probabilities(self, tokens: Ints, targets: Ints, fresh: Bools) -> Array:
        """Run a batch forward only.

        Args:
            tokens: (T, B).
            targets: (T, B), below 0 where nothing is to be scored.
            fresh: (B,), rows that begin from zeros instead of where the last batch ended.

        Returns:
            log p(target) in nats, (T, B); 0 where there is no target.
        """
        _, folded = self._fold(tokens)
        out = np.zeros(tokens.shape, np.float32)

        def run(shard: _Shard) -> None:
            part = np.zeros((tokens.shape[0], shard.state.h.shape[1]), np.float32)
            network.score_shard(
                self.cell, self._weights, shard.work, shard.state,
                shard.cut(folded), shard.cut(targets), shard.cut(fresh), part,
            )  # fmt: skip
            out[:, shard.rows] = part

        self._pool.map(run, self._shards)
        return out

    def close(self) -> None:
        """End the engine's threads."""
        self._pool.close()
