"""`Engine` computes the loss and its gradient over whole batches, shard by shard.

A batch is split into shards of SHARD_ROWS rows, whatever the number of threads. Each shard is one
kernel call without the interpreter lock, and their gradients are added in index order. So the bits
of a gradient depend on the batch alone. The shards may also be divided among several ranks, the
processes of one run: rank 0 calls `loss_and_gradient`, and the others `take_part`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.kernels import batch, network, shards, step_series, structs
from treadle.kernels.aligned_arrays import aligned_zeros
from treadle.kernels.dropout import Dropout, kept_levels
from treadle.kernels.gemm_transposed import allocate_row_block
from treadle.kernels.jit import specialize
from treadle.kernels.weight_packing import (
    pack_transposes,
    pack_weights,
    unfold_embedding,
    unfold_input_weights,
)
from treadle.kernels.work_sharing import allocate_counters, give_up
from treadle.model.enums import Precision
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.parallel import Pool, parts
from treadle.model.network.parameters import Parameters, flat_size, flat_views
from treadle.model.network.ranks.gradient_exchange import GradientExchange, rows_of
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.shards import cut_rows, shard_slices
from treadle.model.network.workspace import (
    allocate_state,
    allocate_weights,
    allocate_workspace,
    with_transposes,
)
from treadle.model.tokenizers.token_ids import check_tokens

if TYPE_CHECKING:
    from treadle.model.network.ranks.ranks import Ranks

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

SMALL_VOCABULARY = 256
"""Tokens of the largest vocabulary that is folded whole; see `rows_of_table`."""

SMALL_NETWORK = 1 << 17
"""Parameters of the largest network whose weights one thread packs: to wake another one, and to
wait for it, would take longer."""


_LOSSES = 3
STATES = 4
"""Tags of what the other ranks send to rank 0."""


class InterruptedRunError(Exception):
    """A step or a sample was interrupted, and must be made again from its beginning."""


def never() -> bool:
    """Returns False: the `interrupted` of a run that nothing interrupts."""
    return False


def rows_of_table(V: int, tokens: int) -> int:
    """Returns the rows of the folded input for batches of so many tokens.

    A small vocabulary is folded whole: to find out which tokens a batch has would take longer.

    Args:
        V: Tokens in the vocabulary.
        tokens: Tokens in a batch.
    """
    return V if V <= SMALL_VOCABULARY else min(V, tokens)


class _Shard:
    """A fixed slice of the batch's rows with all the memory that it needs."""

    def __init__(
        self,
        shape: Shape,
        rows: slice,
        window: int,
        table_rows: int,
        drops: tuple[bool, bool],
        pairs: bool,
        own: Array,
        tail: Array,
    ) -> None:
        count = rows.stop - rows.start
        self.rows = rows
        self.work = allocate_workspace(
            shape, window, count, True, drops[0], pairs, drops_top=drops[1]
        )
        self.state = allocate_state(shape, count)
        alone, shared = _gradient_shapes(shape, table_rows)
        self.gradients = structs.Gradients(**flat_views(own, alone), **flat_views(tail, shared))


_TAIL = ("b", "bh", "Wx", "Wh", "Wy", "by", "Wc", "bc")
"""Stacks that the gradients of shards and of parameters have in common, at the end of both."""


def _gradient_shapes(
    shape: Shape, table_rows: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Returns the shapes of a shard's gradients: those of its own, and those of the common tail."""
    own: dict[str, tuple[int, ...]] = {"table": (table_rows, shape.G)}
    if shape.tied:  # the parameters have no such array: it is added to the embedding's gradient
        own["Wy"] = (shape.H, shape.V)
    stacks = shape.stacks
    return own, {name: stacks[name] for name in _TAIL if name not in own}


class Engine:
    """Computes the loss and its gradient over batches (T, B), for one set of parameters."""

    def __init__(
        self,
        parameters: Parameters,
        rows: int,
        window: int,
        pool: Pool,
        dropout: float = 0.0,
        seed: int = 0,
        precision: Precision = Precision.FP32,
        output_dropout: float = 0.0,
        packed: structs.Weights | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Allocates everything that a run needs.

        With several ranks, rank 0 has the others make the same engine, with the same parameters.

        Args:
            parameters: The network's parameters, read at every batch; change them in place.
            rows: Sequences in a batch, B.
            window: The most steps of a batch, T.
            pool: Runs the shards.
            dropout: Share of the units dropped between layers, at least 0 and below 1.
            seed: 64 bits; decides, with a batch's step, which units are dropped.
            precision: What the passes multiply; see `precision.check_precision`.
            output_dropout: Share of the last layer's units dropped before the output layer.
            packed: The same parameters packed for inference. Every batch packs them again in the
                same place, which saves a copy of them. Only with float32 products.
            ranks: The processes that share the shards; None: this one alone.
        """
        pairs = precision is Precision.BF16
        self.parameters = parameters
        self.shape = parameters.shape
        self.cell = CELL_CODES[self.shape.cell]
        self.rows = rows
        self.pool = pool
        """Runs the shards."""
        self.interrupted: Callable[[], bool] = never
        """Called before every shard, in any thread; once it returns true, the batch is dropped."""
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._all = np.arange(self.shape.V, dtype=np.int32)
        table_rows = rows_of_table(self.shape.V, rows * window)
        if packed is None:
            self._weights = allocate_weights(self.shape, table_rows, True, pairs)
        else:
            self._weights = with_transposes(packed, self.shape, table_rows)
        self._pairs = pairs
        self._seed = np.uint64(seed)
        self._kept = [np.uint64(kept_levels(share)) for share in (dropout, output_dropout)]
        drops = (dropout > 0, output_dropout > 0)
        self.gradient = Parameters(self.shape)
        alone, shared = _gradient_shapes(self.shape, table_rows)
        slices = shard_slices(rows)
        size = flat_size(alone)
        self._tail = self.gradient.flat[self.gradient.flat.size - flat_size(shared) :]
        self.ranks = ranks
        """The processes that share the shards; None: this one alone."""
        self._exchange: GradientExchange | None = None
        self._rank_rows = [slice(0, rows)]
        if ranks is None:
            self._own: Array = aligned_zeros((len(slices), size))
            # The first shard writes into the sum itself.
            self._tails: Array = aligned_zeros((len(slices) - 1, self._tail.size))
            buffers = list(zip(self._own, (self._tail, *self._tails), strict=True))
        else:
            self._exchange = GradientExchange(ranks, len(slices), size + self._tail.size)
            buffers = [(row[:size], row[size:]) for row in self._exchange.gradients]
            self._rank_rows = rows_of(self._exchange.shares, slices)
            share = self._exchange.shares[ranks.rank]
            slices = slices[share.start : share.stop]
        self._first_row = slices[0].start if slices else 0
        self._shards = [
            _Shard(self.shape, cut, window, table_rows, drops, pairs, own, tail)
            for cut, (own, tail) in zip(slices, buffers, strict=True)
        ]
        if self._exchange is None:
            self._summed = self._shards[0].gradients
        else:
            self._summed = structs.Gradients(
                **flat_views(self._exchange.total[:size], alone), **flat_views(self._tail, shared)
            )
        self._before: tuple[Array, Array] | None = None
        self._others_remember = True
        self.is_small = self.gradient.flat.size <= SMALL_NETWORK
        """Whether one thread packs the weights and unfolds the gradients of a batch of several
        shards, rather than all threads."""
        # The embedding's gradient is one small product a step, which stays in float32.
        if pairs or not self._shards:
            self._block = allocate_row_block(self.shape.E, self.shape.G)
        else:
            self._block = self._shards[0].work.block
        if ranks is not None and ranks.leads:
            ranks.command(
                "open", self.shape, rows, window, dropout, seed, precision, output_dropout
            )
            ranks.check()
            ranks.broadcast(parameters.flat)

    def _call(self, kernel: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a kernel whose arguments have the same types whenever this engine calls it."""
        compiled = self._compiled.get(kernel)
        if compiled is None:
            compiled = specialize(kernel, *arguments)
            self._compiled[kernel] = compiled
        return compiled(*arguments)

    def _rows_of(self, tokens: Ints) -> tuple[Ints, Ints]:
        """Chooses the tokens that the folded input has a row for.

        Args:
            tokens: (T, B), the batch.

        Returns:
            These tokens, ascending, and the batch (T, B) as rows of the folded input.
        """
        if self._weights.table.shape[0] == self.shape.V:
            return self._all, tokens
        used, inverse = np.unique(tokens, return_inverse=True)
        return used, inverse.reshape(tokens.shape).astype(np.int32)

    def loss_and_gradient(
        self, tokens: Ints, targets: Ints, fresh: Bools, step: int = 0
    ) -> tuple[float, int]:
        """Runs a batch forward and backward; `self.gradient` then holds the mean loss's gradient.

        Args:
            tokens: (T, B), the tokens to read.
            targets: (T, B), the tokens to predict, below 0 where nothing is to be learned.
            fresh: (B,), rows that begin from zeros instead of where the last batch ended.
            step: Optimizer steps done before; with the seed it decides which units are dropped.

        Returns:
            The sum of -log p(target) in nats, and the number of targets counted.

        Raises:
            TokenError: A token or target is not in the vocabulary.
            InterruptedRunError: `interrupted` returned true; restore the states by `carry` before
                the batch is run again.
        """
        tokens = np.ascontiguousarray(tokens)
        targets = np.ascontiguousarray(targets)
        count = shards.count_targets(tokens, targets, self.shape.V)
        if count < 0:
            check_tokens(tokens, self.shape.V)
            check_tokens(targets, self.shape.V, least=-1)
        tokens = tokens.astype(np.int32, copy=False)
        targets = targets.astype(np.int32, copy=False)
        fresh = np.ascontiguousarray(fresh, np.bool_)
        used, folded = self._rows_of(tokens)
        scale = np.float32(1 / max(count, 1))
        number = np.uint64(step)
        if self.ranks is not None:
            return self._lead(used, folded, targets, fresh, scale, number), count
        if not self._shards[1:]:
            return self._train_alone(used, folded, targets, fresh, scale, number), count
        self._pack(used)

        def run(shard: _Shard) -> float:
            if self.interrupted():
                raise InterruptedRunError
            return self._run_shard(shard, folded, targets, fresh, scale, number)

        loss = in_order(self.pool.map(run, self._shards))
        self._add_shards()
        self._unfold(used)
        return loss, count

    def _run_shard(
        self,
        shard: _Shard,
        tokens: Ints,
        targets: Ints,
        fresh: Bools,
        scale: np.float32,
        step: np.uint64,
    ) -> float:
        """Runs one of this process' shards, on these of its rows; returns the sum of its losses."""
        rows = slice(shard.rows.start - self._first_row, shard.rows.stop - self._first_row)
        loss: float = self._call(
            network.train_shard,
            self.cell,
            self._weights,
            shard.work,
            shard.gradients,
            shard.state,
            *cut_rows(rows, tokens, targets, fresh),
            scale,
            *self._dropouts(step, shard.rows.start),
        )
        return loss

    def _lead(
        self,
        used: Ints,
        tokens: Ints,
        targets: Ints,
        fresh: Bools,
        scale: np.float32,
        step: np.uint64,
    ) -> float:
        """Runs a batch on all ranks; returns the sum of its losses."""
        ranks = self.ranks
        assert ranks is not None
        # All tokens of a small vocabulary: every rank knows them.
        named = None if used is self._all else used
        remember = not self._others_remember
        self._others_remember = True
        ranks.command_each(
            "gradient",
            [
                (named, *cut_rows(rows, tokens, targets, fresh), scale, step, remember)
                for rows in self._rank_rows[1:]
            ],
        )
        own = cut_rows(self._rank_rows[0], tokens, targets, fresh)
        losses, is_whole = self._take_part(used, *own, scale, step)
        with ranks.together():
            for rank, share in enumerate(self._shares[1:], start=1):
                theirs = np.zeros(len(share))
                ranks.wait([ranks.receive(theirs, rank, _LOSSES)])
                losses += theirs.tolist()
        if not is_whole:
            raise InterruptedRunError
        return in_order(losses)

    def take_part(
        self,
        used: Ints | None,
        tokens: Ints,
        targets: Ints,
        fresh: Bools,
        scale: np.float32,
        step: np.uint64,
    ) -> None:
        """Does what `loss_and_gradient` does, on every rank but rank 0, which prepared the batch.

        Args:
            used: The tokens that the folded input has a row for, ascending; None: all of them.
            tokens: (T, B), rows of the folded input, of this rank's rows of the batch.
            targets: (T, B).
            fresh: (B,).
            scale: 1 / the counted targets of the whole batch.
            step: For the dropout.
        """
        assert self.ranks is not None
        everything = self._all if used is None else used
        losses, _ = self._take_part(everything, tokens, targets, fresh, scale, step)
        self.ranks.wait([self.ranks.send(np.array(losses), 0, _LOSSES)])

    def _take_part(
        self,
        used: Ints,
        tokens: Ints,
        targets: Ints,
        fresh: Bools,
        scale: np.float32,
        step: np.uint64,
    ) -> tuple[list[float], bool]:
        """Runs this rank's shards, and adds up those of all ranks.

        Returns:
            The losses of this rank's shards, and whether all of these were run. One that was not
            still takes part, or the other ranks would wait for it.
        """
        exchange = self._exchange
        ranks = self.ranks
        assert exchange is not None
        assert ranks is not None

        def run(number: int) -> float | None:
            loss = None
            if not self.interrupted():
                shard = self._shards[number]
                loss = self._run_shard(shard, tokens, targets, fresh, scale, step)
            exchange.send(number)
            return loss

        with ranks.together():
            exchange.begin()
            self._pack(used)
            losses = self.pool.map(run, range(len(self._shards)))
            exchange.finish(self.pool)
        total = exchange.total[exchange.total.size - self._tail.size :]

        def copy(part: slice) -> None:
            self._tail[part] = total[part]

        self.pool.map(copy, parts(total.size))
        self._unfold(used)
        return [loss for loss in losses if loss is not None], None not in losses

    @property
    def _shares(self) -> list[range]:
        assert self._exchange is not None
        return self._exchange.shares

    @property
    def takes_series(self) -> bool:
        """Whether `train_series` is possible, and worth it."""
        return (
            self.is_small
            and self.ranks is None
            and len(self._shards) <= step_series.PARTS
            and not self._pairs
            and self._weights.table.shape[0] == self.shape.V
        )

    def count_series(self, tokens: Ints, targets: Ints, lengths: Ints) -> Ints:
        """Returns the number of targets of every batch of a series.

        Args:
            tokens: (N, B), the tokens to read, the steps of one batch behind those of another.
            targets: (N, B), the tokens to predict.
            lengths: (S,), steps of every batch.

        Raises:
            TokenError: A token or target is not in the vocabulary.
        """
        counts = np.zeros(lengths.size, np.int32)
        if not shards.count_series(tokens, targets, lengths, self.shape.V, counts):
            check_tokens(tokens, self.shape.V)
            check_tokens(targets, self.shape.V, least=-1)
        return counts

    def train_series(
        self,
        tokens: Ints,
        targets: Ints,
        fresh: Bools,
        lengths: Ints,
        counts: Ints,
        settings: Array,
        update: step_series.Update,
        step: int,
    ) -> npt.NDArray[np.float64]:
        """Takes several steps, weights included; only where `takes_series` is true.

        Args:
            tokens: (N, B), the tokens to read, the steps of one batch behind those of another.
            targets: (N, B), the tokens to predict, below 0 where nothing is to be learned.
            fresh: (S, B), rows that begin a batch from zeros.
            lengths: (S,), steps of every batch.
            counts: (S,), from `count_series`.
            settings: (S, SETTINGS), see `step_series.Series`.
            update: The optimizer; its gradient is this engine's.
            step: Optimizer steps done before.

        Returns:
            (S, RESULTS), see `step_series.Series`.
        """
        series = step_series.Series(
            lengths,
            counts,
            settings,
            np.zeros((lengths.size, step_series.RESULTS)),
            allocate_counters(step_series.PHASES * lengths.size),
        )
        cut = [
            step_series.Shard(
                shard.work,
                shard.gradients,
                shard.state,
                np.ascontiguousarray(tokens[:, shard.rows]),
                np.ascontiguousarray(targets[:, shard.rows]),
                np.ascontiguousarray(fresh[:, shard.rows]),
                shard.rows.start,
            )
            for shard in self._shards
        ]
        total = step_series.ShardSum(self._own, self._tail, self._tails)
        arguments = (
            self.cell,
            self.parameters.stacks,
            self._weights,
            cut[0],
            cut[-1],
            total,
            series,
            *self._dropouts(np.uint64(step), 0),
            self._all,
            self._block,
            self.gradient.stacks,
            update,
        )

        def run(thread: int) -> None:
            try:
                self._call(step_series.train_series, thread, *arguments)
            except BaseException:
                give_up(series.counters)
                raise

        self.pool.map(run, range(min(self.pool.threads, len(self._shards))))
        return series.results

    def _dropouts(self, step: np.uint64, first_row: int) -> tuple[Dropout, Dropout]:
        """Returns the dropout of a step between layers, and before the output layer."""
        inner, top = self._kept
        return Dropout(self._seed, step, first_row, inner), Dropout(
            self._seed, step, first_row, top
        )

    def _train_alone(
        self,
        used: Ints,
        folded: Ints,
        targets: Ints,
        fresh: Bools,
        scale: np.float32,
        step: np.uint64,
    ) -> float:
        """Runs a batch of one shard in one call; returns the sum of its losses."""
        if self.interrupted():
            raise InterruptedRunError
        shard = self._shards[0]
        loss: float = self._call(
            batch.train_batch,
            self.cell,
            self.parameters.stacks,
            self._weights,
            shard.work,
            shard.gradients,
            shard.state,
            folded,
            targets,
            fresh,
            scale,
            *self._dropouts(step, 0),
            used,
            self._block,
            self.gradient.stacks,
        )
        return loss

    def carried(self) -> tuple[Array, Array]:
        """Returns copies of the states that the next batch continues from, hs and cs, (L, B, H)."""
        states = [self.own_carried()]
        if self.ranks is not None:
            self.ranks.command("carried")
            with self.ranks.together():
                for rank, rows in enumerate(self._rank_rows[1:], start=1):
                    both = np.zeros(
                        (2, self.shape.L, rows.stop - rows.start, self.shape.H), np.float32
                    )
                    self.ranks.wait([self.ranks.receive(both, rank, STATES)])
                    states.append((both[0], both[1]))
        hs, cs = zip(*states, strict=True)
        return np.concatenate(hs, axis=1), np.concatenate(cs, axis=1)

    def own_carried(self) -> tuple[Array, Array]:
        """Returns what `carried` does, for the rows of this process alone."""
        none: Array = np.zeros((self.shape.L, 0, self.shape.H), np.float32)
        states = [shard.state for shard in self._shards]
        return (
            np.concatenate([none, *(state.h for state in states)], axis=1),
            np.concatenate([none, *(state.c for state in states)], axis=1),
        )

    def carry(self, hs: Array, cs: Array) -> None:
        """Makes the next batch continue from what `carried` returned, (L, B, H) both."""
        if self.ranks is not None:
            self.ranks.command_each(
                "carry", [(hs[:, rows], cs[:, rows]) for rows in self._rank_rows[1:]]
            )
        self.carry_own(hs, cs)

    def carry_own(self, hs: Array, cs: Array) -> None:
        """Does what `carry` does, for the rows of this process alone."""
        for shard in self._shards:
            rows = slice(shard.rows.start - self._first_row, shard.rows.stop - self._first_row)
            shard.state.h[...] = hs[:, rows]
            shard.state.c[...] = cs[:, rows]

    def remember(self) -> None:
        """Keeps the states that the next batch continues from, for `go_back`."""
        self._before = self.own_carried()
        self._others_remember = False  # the others learn it with their next batch

    def go_back(self) -> None:
        """Makes the next batch continue from the states that `remember` kept."""
        assert self._before is not None
        if self.ranks is not None and self.ranks.leads and self._others_remember:
            self.ranks.command("go_back")
        self.carry_own(*self._before)

    def close(self) -> None:
        """Lets the other ranks free what they have for this engine, if there are any."""
        if self.ranks is not None and not self.ranks.is_broken:
            self.ranks.command("close")

    def _pack(self, used: Ints) -> None:
        """Packs the weights, with rows of the folded input for the tokens `used`."""
        stacks = self.parameters.stacks
        weights = self._weights
        if self.is_small:
            self._call(batch.pack_parameters, stacks, weights, used)
            return

        def pack(transposes: bool) -> None:
            if transposes:
                pack_transposes(stacks, weights)
            else:
                pack_weights(stacks, weights, used)

        self.pool.map(pack, (False, True))

    def _add_shards(self) -> None:
        """Adds every shard's gradient to the first one's, in order."""

        def add_own(part: slice) -> None:
            shards.add_shards(self._own[1:], self._own[0], part.start, part.stop)

        def add_tail(part: slice) -> None:
            shards.add_shards(self._tails, self._tail, part.start, part.stop)

        self.pool.map(add_own, parts(self._own.shape[1]))
        self.pool.map(add_tail, parts(self._tail.size))

    def _unfold(self, used: Ints) -> None:
        """Turns the table's gradient into those of the arrays that it is computed from."""
        stacks = self.parameters.stacks
        gradients = self._summed
        out = self.gradient.stacks
        if self.is_small:
            self._call(batch.unfold_gradients, stacks, gradients, used, self._block, out)
            return

        def unfold(weights: bool) -> None:
            if weights:
                unfold_input_weights(stacks, gradients, used, self._block, out)
            else:
                unfold_embedding(stacks, gradients, used, out)

        self.pool.map(unfold, (True, False))
