"""`step_log_probabilities` runs one step of a beam search, over all texts of the beam at once.

The state and the log-probabilities come from the functions that scoring calls, in the same order,
so they are bit for bit what scoring each text alone gives.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO, log
from treadle.kernels.jit import jit_apart
from treadle.kernels.loss import row_max, shifted_exp
from treadle.kernels.network import output_logits, read_shard
from treadle.kernels.structs import Array, Ints, State, Weights, Workspace


@jit_apart
def step_log_probabilities(
    cell: int, weights: Weights, work: Workspace, state: State, tokens: Ints, out: Array
) -> None:
    """Reads a token in each of B texts and writes log p of every token after it.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: for T = 1 step and exactly B rows, B at most LOGIT_ROWS; its logits (B, V) are
            left as they come from the network.
        state: in: the state before the tokens; out: after them.
        tokens: (B,), below V.
        out: (B, V), written: log-probabilities in nats.
    """
    B = tokens.size
    read_shard(cell, weights, work, state, tokens.reshape((1, B)), np.zeros(B, np.bool_))
    logits = work.logits[:B]
    output_logits(weights, work.hs[work.hs.shape[0] - 1, 1], logits)
    for row in range(B):
        m = row_max(logits[row])
        log_sum = log(shifted_exp(logits[row], m, out[row]))
        if weights.clusters.size > 1:  # they are log-probabilities already
            m = ZERO
            log_sum = ZERO
        for v in range(out.shape[1]):
            # As in `loss.log_probability`, whose logarithm is the same for the whole row.
            out[row, v] = (logits[row, v] - m) - log_sum
