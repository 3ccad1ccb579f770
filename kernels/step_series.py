"""`train_series` takes several training steps in one call: gradient, clipping and update of each.

A step of a small network takes less time than the lines of Python around it, and than to wake a
thread. So one call takes a series of steps, over batches of one shard or two. Two threads may
make the same call: they share the phases of every step, see `work_sharing`. The bits are those of
the same steps one by one, with any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, ZERO
from treadle.kernels.dropout import Dropout
from treadle.kernels.jit import jit_inline, jit_views_apart
from treadle.kernels.network import train_shard
from treadle.kernels.optimizers import (
    adagrad,
    adam,
    clip_by_value,
    move_towards,
    sgd,
    sums_of_squares,
)
from treadle.kernels.shards import add_shards
from treadle.kernels.structs import (
    Array,
    Bools,
    Gradients,
    Ints,
    Parameters,
    RowBlock,
    State,
    Weights,
    Workspace,
)
from treadle.kernels.weight_packing import (
    pack_transposes,
    pack_weights,
    unfold_embedding,
    unfold_input_weights,
)
from treadle.kernels.work_sharing import Counters, finish, take, wait

SGD = 0
ADAGRAD = 1
ADAM = 2
"""The `rule` of an `Update`."""

_LINE = 16
"""Floats in a cache line."""

PHASES = 6
"""Phases of a step: packing, shards, their sum, unfolding, norm, update."""

_PACK = 0
_SHARDS = 1
_SUM = 2
_UNFOLD = 3
_NORM = 4
_UPDATE = 5

PARTS = 2
"""Items of every phase but the shards and the norm."""

RATE = 0
SHARE = 1
CORRECTIONS = 2
SETTINGS = 8
"""Columns of `Series.settings`."""

NORM = 2
COMPLETE = 3
RESULTS = 4
"""Columns of `Series.results`; the loss of each shard comes before them."""


class Shard(NamedTuple):
    """A shard of all batches of a series, and the memory that it needs."""

    work: Workspace
    gradients: Gradients
    state: State
    tokens: Ints
    """(N, B), rows of the table: the steps of all batches, one batch behind the other."""
    targets: Ints
    """(N, B); below 0 where there is nothing to learn."""
    fresh: Bools
    """(S, B), rows that begin a batch from zeros instead of the state."""
    first_row: int
    """The shard's first row within the batch."""


class Series(NamedTuple):
    """What differs between the steps of a series, and what comes out of each."""

    lengths: Ints
    """(S,), steps in time of every batch."""
    counts: Ints
    """(S,), counted targets of every batch."""
    settings: Array
    """(S, SETTINGS): the learning rate; the share of the weights in their mean, or 0; and Adam's
    arguments from beta1 on."""
    results: npt.NDArray[np.float64]
    """(S, RESULTS), written: the losses of both shards, the gradient's norm, 1 if the step is
    complete."""
    counters: Counters
    """Of PHASES phases for every step."""


class Update(NamedTuple):
    """The numbers that an optimizer changes, flat and of one size, and its fixed settings."""

    weights: Array
    gradient: Array
    means: Array
    """Empty unless the rule is ADAM."""
    squares: Array
    """Empty if the rule is SGD."""
    mean: Array
    """The mean of the weights; empty where none is kept."""
    norms: npt.NDArray[np.float64]
    """(ceil(N / BLOCK),), overwritten."""
    rule: int
    clip_value: np.float32
    """Below 0 for none."""
    clip_norm: float
    """0 for none."""
    decay: np.float32


class ShardSum(NamedTuple):
    """The gradients of the shards as `add_shards` adds them up."""

    own: Array
    """(shards, N)."""
    tail: Array
    """(M,), of the first shard."""
    tails: Array
    """(shards - 1, M), of the others."""


@jit_inline
def _run_shard(
    cell: int,
    weights: Weights,
    shard: Shard,
    series: Series,
    n: int,
    first: int,
    dropout: Dropout,
    top: Dropout,
) -> float:
    """Runs both passes of a shard over batch `n`, whose steps begin at `first`."""
    last = first + series.lengths[n]
    step = dropout.step + np.uint64(n)
    own = Dropout(dropout.seed, step, shard.first_row, dropout.kept)
    own_top = Dropout(top.seed, step, shard.first_row, top.kept)
    loss: float = train_shard(
        cell,
        weights,
        shard.work,
        shard.gradients,
        shard.state,
        shard.tokens[first:last],
        shard.targets[first:last],
        shard.fresh[n],
        np.float32(1 / max(series.counts[n], 1)),
        own,
        own_top,
    )
    return loss


@jit_views_apart
def _judge(update: Update, series: Series, n: int) -> None:
    """Clips the gradient by value, and records its norm and whether the update may be made."""
    results = series.results[n]
    if not np.isfinite(results[0] + results[1]):
        return
    if update.clip_value >= ZERO:
        clip_by_value(update.gradient, update.clip_value)
    sums_of_squares(update.gradient, update.norms)
    total = 0.0
    for block in range(update.norms.size):
        total += update.norms[block]
    results[NORM] = np.sqrt(total)
    if np.isfinite(results[NORM]):
        results[COMPLETE] = 1.0


@jit_views_apart
def _update(update: Update, series: Series, n: int, first: int, last: int) -> None:
    """Changes elements `first` to `last` of the weights."""
    norm = series.results[n, NORM]
    scale = ONE
    if update.clip_norm > 0.0 and norm > update.clip_norm:
        scale = np.float32(update.clip_norm / norm)
    settings = series.settings[n]
    rate = settings[RATE]
    weights = update.weights[first:last]
    gradient = update.gradient[first:last]
    if update.rule == ADAM:
        adam(
            weights,
            gradient,
            update.means[first:last],
            update.squares[first:last],
            scale,
            rate,
            update.decay,
            settings[CORRECTIONS],
            settings[CORRECTIONS + 1],
            settings[CORRECTIONS + 2],
            settings[CORRECTIONS + 3],
            settings[CORRECTIONS + 4],
            settings[CORRECTIONS + 5],
        )
    elif update.rule == ADAGRAD:
        adagrad(weights, gradient, update.squares[first:last], scale, rate, update.decay)
    else:
        sgd(weights, gradient, scale, rate, update.decay)
    if settings[SHARE] > ZERO:
        move_towards(weights, settings[SHARE], update.mean[first:last])


@jit_views_apart
def train_series(
    thread: int,
    cell: int,
    parameters: Parameters,
    weights: Weights,
    one: Shard,
    two: Shard,
    total: ShardSum,
    series: Series,
    dropout: Dropout,
    top: Dropout,
    used: Ints,
    block: RowBlock,
    out: Parameters,
    update: Update,
) -> int:
    """Takes the steps of a series; several threads may make the same call at the same time.

    Args:
        thread: the number of the calling thread, from 0; it has its own item in every phase.
        cell: RNN, GRU or LSTM.
        parameters: the network's; views of `update.weights`.
        weights: written: the packed parameters.
        one: the first shard.
        two: the second one; anything where `total` is of one.
        total: the gradients of the shards.
        series: the steps.
        dropout: between layers, of the first step.
        top: before the output layer, of the first step.
        used: the tokens that the table's rows stand for: all of them.
        block: for rows of E and G elements.
        out: the gradients; views of `update.gradient`.
        update: the optimizer.

    Returns:
        Steps taken. They are fewer than asked for if a loss or a norm is not finite; then the
        weights are those before that step.
    """
    counters = series.counters
    shards = total.own.shape[0]
    half = update.weights.size // (2 * _LINE) * _LINE
    first = 0
    for n in range(series.lengths.size):
        phase = n * PHASES
        for turn in range(PARTS):
            item = (thread + turn) % PARTS
            if not take(counters, phase + _PACK, item):
                continue
            if item == 0:
                pack_weights(parameters, weights, used)
            else:
                pack_transposes(parameters, weights)
            finish(counters, phase + _PACK)
        if not wait(counters, phase + _PACK, PARTS):
            return n
        for turn in range(shards):
            item = (thread + turn) % shards
            if not take(counters, phase + _SHARDS, item):
                continue
            shard = one if item == 0 else two
            loss = _run_shard(cell, weights, shard, series, n, first, dropout, top)
            series.results[n, item] = loss
            finish(counters, phase + _SHARDS)
        if not wait(counters, phase + _SHARDS, shards):
            return n
        for turn in range(PARTS):
            item = (thread + turn) % PARTS
            if not take(counters, phase + _SUM, item):
                continue
            if item == 0:
                add_shards(total.own[1:], total.own[0], 0, total.own.shape[1])
            else:
                add_shards(total.tails, total.tail, 0, total.tail.size)
            finish(counters, phase + _SUM)
        if not wait(counters, phase + _SUM, PARTS):
            return n
        for turn in range(PARTS):
            item = (thread + turn) % PARTS
            if not take(counters, phase + _UNFOLD, item):
                continue
            if item == 0:
                unfold_input_weights(parameters, one.gradients, used, block, out)
            else:
                unfold_embedding(parameters, one.gradients, used, out)
            finish(counters, phase + _UNFOLD)
        if not wait(counters, phase + _UNFOLD, PARTS):
            return n
        if take(counters, phase + _NORM, 0):
            _judge(update, series, n)
            finish(counters, phase + _NORM)
        if not wait(counters, phase + _NORM, 1) or series.results[n, COMPLETE] == 0.0:
            return n
        for turn in range(PARTS):
            item = (thread + turn) % PARTS
            if not take(counters, phase + _UPDATE, item):
                continue
            last = half if item == 0 else update.weights.size
            _update(update, series, n, item * half, last)
            finish(counters, phase + _UPDATE)
        if not wait(counters, phase + _UPDATE, PARTS):
            return n
        first += series.lengths[n]
    return int(series.lengths.size)
