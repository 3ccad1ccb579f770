"""`decode` samples a chunk of tokens for several sequences in one call.

The call runs without the interpreter lock. Every step runs the same kernels as training and
scoring, so a token's log-probability is bit for bit what scoring the text gives, whatever other
sequences decode in the same call. `logit_edits` holds what a sequence may change about its logits,
`sampling` how a token is sampled from them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ZERO
from treadle.kernels.jit import jit, jit_inline
from treadle.kernels.layer import recur_forward
from treadle.kernels.logit_edits import (
    DEAD_END,
    LogitEdits,
    edit_logits,
    has_edits,
    record_token,
)
from treadle.kernels.loss import log_probability, row_max, shifted_exp
from treadle.kernels.network import embed, layer_tape, output_logits, store_state, upper_layers
from treadle.kernels.random import uniform
from treadle.kernels.sampling import (
    SamplingScratch,
    Truncation,
    allocate_sampling_scratch,
    needs_sorting,
    sample,
)
from treadle.kernels.simd import copy
from treadle.kernels.structs import Array, Ints, State, Weights, Workspace
from treadle.kernels.token_ranks import token_rank, top_k_tokens

Longs = npt.NDArray[np.uint64]

_EXCLUDED = np.float32(-np.inf)

SAMPLING_STREAM = np.uint64(1)
"""The random stream of sampling; parameters are initialized from other streams."""


class Sequences(NamedTuple):
    """The settings and the position of each of M sequences that decode together."""

    token: Ints
    """(M,), the last token read or sampled; updated."""
    end: Ints
    """(M,), the token that ends a sequence, or -1."""
    temperature: Array
    """(M,), 0 for greedy."""
    top_k: Ints
    """(M,), 0 for all tokens."""
    top_p: Array
    """(M,), 1 for all tokens."""
    min_p: Array
    """(M,), 0 for all tokens."""
    typical_p: Array
    """(M,), 1 for all tokens."""
    seed: Longs
    """(M,)."""
    position: Longs
    """(M,), tokens sampled with that seed so far; updated."""


class DecodedTokens(NamedTuple):
    """The results of N steps of M sequences; written."""

    tokens: Ints
    """(N, M); -1 after the end of a sequence."""
    log_probabilities: Array
    """(N, M), of each token under the model itself, in nats."""
    ranks: Ints
    """(N, M), 1 for the likeliest token; (0, M) where no sequence asks for ranks."""
    alternatives: Ints
    """(N, M, A), the likeliest tokens, likeliest first; (N, M, 0) where no sequence asks."""
    alternative_log_probabilities: Array
    """(N, M, A), theirs, in nats."""


@jit_inline
def _has_ended(sequences: Sequences, edits: LogitEdits, m: int) -> bool:
    ended = sequences.end[m] >= 0 and sequences.token[m] == sequences.end[m]
    return bool(ended or edits.constraint_state[m] == DEAD_END)


@jit_inline
def _truncation(sequences: Sequences, m: int) -> Truncation:
    top_k = sequences.top_k[m]
    top_p = sequences.top_p[m]
    min_p = sequences.min_p[m]
    typical_p = sequences.typical_p[m]
    return Truncation(top_k, top_p, min_p, typical_p)


@jit
def _any_needs_sorting(sequences: Sequences) -> bool:
    """Returns whether the sampling of any sequence sorts."""
    found = False
    for m in range(sequences.token.size):
        found = found or needs_sorting(_truncation(sequences, m))
    return found


@jit
def _sample_token(
    sequences: Sequences, edits: LogitEdits, m: int, logits: Array, max_logit: np.float32,
    weights: Array, edited: Array, scratch: SamplingScratch,
) -> int:  # fmt: skip
    """Samples the next token of sequence m.

    Args:
        sequences: all of them.
        edits: of all sequences.
        m: number of the sequence.
        logits: (V,), the model's.
        max_logit: the largest of them.
        weights: (V,); in: exp(logits - max_logit); overwritten.
        edited: (V,), written.
        scratch: of `sample`.

    Returns:
        The token; -1 where none is allowed.
    """
    u = uniform(sequences.seed[m], SAMPLING_STREAM, sequences.position[m])
    truncation = _truncation(sequences, m)
    temperature = sequences.temperature[m]
    new_tokens = edits.new_tokens[m]
    if new_tokens < edits.forced.shape[1] and edits.forced[m, new_tokens] >= 0:
        return int(edits.forced[m, new_tokens])
    if not has_edits(edits, m):
        return sample(logits, max_logit, temperature, truncation, u, weights, scratch)
    edit_logits(edits, m, sequences.end[m], logits, edited)
    max_edited = row_max(edited)
    if max_edited == _EXCLUDED:
        return -1
    shifted_exp(edited, max_edited, weights)
    return sample(edited, max_edited, temperature, truncation, u, weights, scratch)


@jit
def _write_alternatives(
    logits: Array, max_logit: np.float32, exp_sum: np.float32, ids: Ints, out: Array
) -> None:
    """Writes the ids (A,) and log-probabilities (A,) of the likeliest tokens of a row (V,)."""
    top_k_tokens(logits, ids)
    for a in range(min(ids.size, logits.size)):
        out[a] = log_probability(logits[ids[a]], max_logit, exp_sum)


@jit_inline
def _sample_all(
    sequences: Sequences, edits: LogitEdits, logits: Array, rows: Array, scratch: SamplingScratch,
    decoded: DecodedTokens, n: int,
) -> bool:  # fmt: skip
    """Samples the next token of each sequence from logits (M, V).

    Args:
        sequences: all of them; updated.
        edits: of all sequences; updated.
        logits: (M, V).
        rows: (2, V), overwritten.
        scratch: of `sample`.
        decoded: its step n is written.
        n: the step.

    Returns:
        Whether any sequence continues.
    """
    alive = False
    for m in range(logits.shape[0]):
        if _has_ended(sequences, edits, m):
            continue
        row = logits[m]
        max_logit = row_max(row)
        exp_sum = shifted_exp(row, max_logit, rows[0])
        token = _sample_token(sequences, edits, m, row, max_logit, rows[0], rows[1], scratch)
        if token < 0:
            edits.constraint_state[m] = DEAD_END
            continue
        decoded.tokens[n, m] = token
        decoded.log_probabilities[n, m] = log_probability(row[token], max_logit, exp_sum)
        if decoded.ranks.shape[0]:
            decoded.ranks[n, m] = token_rank(row, token)
        if decoded.alternatives.shape[2]:
            ids = decoded.alternatives[n, m]
            scores = decoded.alternative_log_probabilities[n, m]
            _write_alternatives(row, max_logit, exp_sum, ids, scores)
        sequences.token[m] = token
        sequences.position[m] += np.uint64(1)
        record_token(edits, m, token)
        alive = alive or not _has_ended(sequences, edits, m)
    return alive


@jit
def decode(
    cell: int, weights: Weights, work: Workspace, state: State, sequences: Sequences,
    edits: LogitEdits, decoded: DecodedTokens,
) -> None:  # fmt: skip
    """Samples a chunk of tokens for M sequences.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: for T = 1 step and M rows, M at most LOGIT_ROWS.
        state: in: each sequence's state before `sequences.token` was read; out: the same after
            the chunk.
        sequences: their settings and positions; updated.
        edits: what they change about their logits; updated.
        decoded: the results, of N steps; written.
    """
    L = state.h.shape[0]
    M = state.h.shape[1]
    V = weights.by.size
    size = M * state.h.shape[2]
    rows = np.empty((2, V), np.float32)
    scratch = allocate_sampling_scratch(V if _any_needs_sorting(sequences) else 0)
    logits = work.logits[:M]
    decoded.tokens[:] = -1
    decoded.log_probabilities[:] = ZERO
    # The same for every step and outside the loop, since a slice costs as much as a small loop.
    gates = work.gates[0, 0]
    Wh = weights.Wh[0]
    bh = weights.bh[0]
    tape = layer_tape(work, 0, 0, 1)
    top = work.hs[L - 1, 1]
    for layer in range(L):
        work.hs[layer, 1] = state.h[layer]
        if work.cs.shape[1]:
            work.cs[layer, 1] = state.c[layer]
    for n in range(decoded.tokens.shape[0]):
        for layer in range(L):
            here = layer * 2 * size
            copy(work.hs, here + size, work.hs, here, size)
            if work.cs.shape[1]:
                copy(work.cs, here + size, work.cs, here, size)
        embed(weights, sequences.token, gates)
        recur_forward(cell, Wh, bh, tape, 1)
        if L > 1:
            upper_layers(cell, weights, work, 1)
        output_logits(weights, top, logits)
        if not _sample_all(sequences, edits, logits, rows, scratch, decoded, n):
            break
    store_state(work, 1, state)
