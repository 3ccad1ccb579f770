"""`train_batch` takes a batch of one shard from parameters to their gradients, in one call.

A batch of several shards takes the same steps in calls of their own: `pack_parameters`, then
`network.train_shard` for every shard, in any threads, then `add_shards` and `unfold_gradients`. To
hand a network's arrays to compiled code takes as long as a small network's arithmetic.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.dropout import Dropout
from treadle.kernels.jit import jit
from treadle.kernels.network import train_shard
from treadle.kernels.structs import (
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


@jit
def pack_parameters(parameters: Parameters, weights: Weights, used: Ints) -> None:
    """Packs what both passes read, as `pack_weights` and `pack_transposes`."""
    pack_weights(parameters, weights, used)
    pack_transposes(parameters, weights)


@jit
def unfold_gradients(
    parameters: Parameters, gradients: Gradients, used: Ints, block: RowBlock, out: Parameters
) -> None:
    """Turns the table's gradient into those of all arrays that it is computed from.

    Args:
        parameters: those of the step's beginning.
        gradients: of the whole batch.
        used: as given to `pack_weights`.
        block: for rows of E and G elements.
        out: the embedding, Wx0 and row 0 of b are written; the rest is left as it is.
    """
    unfold_input_weights(parameters, gradients, used, block, out)
    unfold_embedding(parameters, gradients, used, out)


@jit
def train_batch(
    cell: int,
    parameters: Parameters,
    weights: Weights,
    work: Workspace,
    gradients: Gradients,
    state: State,
    tokens: Ints,
    targets: Ints,
    fresh: Bools,
    scale: np.float32,
    dropout: Dropout,
    top: Dropout,
    used: Ints,
    block: RowBlock,
    out: Parameters,
) -> float:
    """Packs the weights, runs both passes, and unfolds the gradients.

    Args:
        cell: RNN, GRU or LSTM.
        parameters: the network's.
        weights: written: the packed parameters.
        work: as for `train_shard`.
        gradients: written; what is no array of `out` itself is left over.
        state: in: the state before the window; out: after it.
        tokens: (T, B), rows of the table.
        targets: (T, B); below 0 where there is nothing to learn.
        fresh: (B,), rows that begin from zeros instead of `state`.
        scale: 1 / the counted targets.
        dropout: between layers, where `work` has arrays for it.
        top: before the output layer, where `work` has arrays for it.
        used: the tokens that the table's first rows stand for; ascending.
        block: for rows of E and G elements.
        out: the gradients of `parameters`: what `gradients` does not share with it is written.

    Returns:
        The sum of -log p(target), in nats.
    """
    pack_parameters(parameters, weights, used)
    loss: float = train_shard(
        cell, weights, work, gradients, state, tokens, targets, fresh, scale, dropout, top
    )
    unfold_gradients(parameters, gradients, used, block, out)
    return loss
