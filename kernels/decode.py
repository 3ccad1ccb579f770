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

from treadle.kernels.activations import ONE, ZERO
from treadle.kernels.gemm_dispatch import matmul
from treadle.kernels.jit import jit_apart, jit_inline, jit_views_apart
from treadle.kernels.layer import recur_step
from treadle.kernels.logit_edits import (
    DEAD_END,
    LogitEdits,
    edit_logits,
    has_edits,
    record_token,
)
from treadle.kernels.loss import log_probability, row_max, shifted_exp
from treadle.kernels.network import embed, output_logits
from treadle.kernels.random import uniform
from treadle.kernels.sampling import (
    SamplingScratch,
    Truncation,
    allocate_sampling_scratch,
    sample,
    truncates,
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


@jit_apart
def _any_truncates(sequences: Sequences) -> bool:
    """Returns whether the sampling of any sequence leaves out tokens."""
    found = False
    for m in range(sequences.token.size):
        found = found or truncates(_truncation(sequences, m))
    return found


@jit_apart
def _write_alternatives(
    logits: Array, max_logit: np.float32, exp_sum: np.float32, ids: Ints, out: Array
) -> None:
    """Writes the ids (A,) and log-probabilities (A,) of the likeliest tokens of a row (V,)."""
    top_k_tokens(logits, ids)
    for a in range(min(ids.size, logits.size)):
        out[a] = log_probability(logits[ids[a]], max_logit, exp_sum)


@jit_inline
def _forced_token(edits: LogitEdits, m: int) -> int:
    """Returns the token that sequence m takes next whatever the logits are, or -1."""
    new_tokens = edits.new_tokens[m]
    if new_tokens < edits.forced.shape[1]:
        return int(edits.forced[m, new_tokens])
    return -1


@jit_inline
def _sample_token(
    sequences: Sequences, edits: LogitEdits, m: int, logits: Array, max_logit: np.float32,
    exp_sum: np.float32, weights: Array, edited: Array, scratch: SamplingScratch,
) -> int:  # fmt: skip
    """Samples the next token of sequence m.

    Args:
        sequences: all of them.
        edits: of all sequences.
        m: number of the sequence.
        logits: (V,), the model's.
        max_logit: the largest of them.
        exp_sum: the sum of `weights`.
        weights: (V,); in: exp(logits - max_logit); overwritten.
        edited: (V,), written where the sequence edits its logits.
        scratch: of `sample`.

    Returns:
        The token; -1 where none is allowed.
    """
    forced = _forced_token(edits, m)
    if forced >= 0:
        return forced
    if has_edits(edits, m):
        # Kept out of the loop over sequences, most of which have none.
        edit_logits(edits, m, sequences.end[m], logits, edited)
        logits = edited
        max_logit = row_max(edited)
        if max_logit == _EXCLUDED:
            return -1
        exp_sum = shifted_exp(edited, max_logit, weights)
    u = uniform(sequences.seed[m], SAMPLING_STREAM, sequences.position[m])
    truncation = _truncation(sequences, m)
    temperature = sequences.temperature[m]
    return sample(logits, max_logit, temperature, truncation, u, weights, exp_sum, scratch)


@jit_inline
def _sample_all(
    sequences: Sequences, edits: LogitEdits, logits: Array, factored: bool, rows: Array,
    scratch: SamplingScratch, decoded: DecodedTokens, n: int,
) -> bool:  # fmt: skip
    """Samples the next token of each sequence from logits (M, V).

    Args:
        sequences: all of them; updated.
        edits: of all sequences; updated.
        logits: (M, V).
        factored: whether they are log-probabilities already.
        rows: (2, V), overwritten.
        scratch: of `sample`.
        decoded: its step n is written.
        n: the step.

    Returns:
        Whether any sequence continues.
    """
    alive = False
    weights = rows[0]
    edited = rows[1]
    for m in range(logits.shape[0]):
        if _has_ended(sequences, edits, m):
            continue
        row = logits[m]
        max_logit = row_max(row)
        exp_sum = shifted_exp(row, max_logit, weights)
        token = _sample_token(
            sequences, edits, m, row, max_logit, exp_sum, weights, edited, scratch
        )
        if token < 0:
            edits.constraint_state[m] = DEAD_END
            continue
        if factored:
            max_logit = ZERO
            exp_sum = ONE
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


@jit_inline
def _input(weights: Weights, layer: int, tokens: Ints, h: Array, gates: Array) -> None:
    """Writes the input's share of a layer's pre-activations.

    Args:
        weights: packed.
        layer: its number.
        tokens: (M,), what layer 0 reads.
        h: (L, M, H), the states of which an upper layer reads those below it.
        gates: (M, G), written.
    """
    if layer == 0:
        embed(weights, tokens, gates)
        return
    for m in range(gates.shape[0]):
        copy(weights.b, layer * gates.shape[1], gates, m * gates.shape[1], gates.shape[1])
    matmul(h[layer - 1], weights.Wx[layer - 1], gates, True)


@jit_views_apart
def _decode(
    cell: int,
    weights: Weights,
    work: Workspace,
    state: State,
    sequences: Sequences,
    edits: LogitEdits,
    decoded: DecodedTokens,
    rows: Array,
    scratch: SamplingScratch,
) -> None:
    """Does what `decode` does; `rows` (2, V) and `scratch` are overwritten."""
    L = state.h.shape[0]
    logits = work.logits[: state.h.shape[1]]
    top = state.h[L - 1]
    factored = weights.clusters.size > 1
    for n in range(decoded.tokens.shape[0]):
        for layer in range(L):
            gates = work.gates[layer, 0]
            ah = work.ah[layer, 0] if work.ah.shape[1] else gates
            _input(weights, layer, sequences.token, state.h, gates)
            h = state.h[layer]
            c = state.c[layer]
            recur_step(cell, weights.Wh[layer], weights.bh[layer], gates, ah, h, c)
        output_logits(weights, top, logits)
        if not _sample_all(sequences, edits, logits, factored, rows, scratch, decoded, n):
            break


@jit_apart
def decode(
    cell: int, weights: Weights, work: Workspace, state: State, sequences: Sequences,
    edits: LogitEdits, decoded: DecodedTokens,
) -> None:  # fmt: skip
    """Samples a chunk of tokens for M sequences.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: for T = 1 step and M rows, M at most LOGIT_ROWS; its gates, ah and logits are used.
        state: in: each sequence's state before `sequences.token` was read; out: the same after
            the chunk.
        sequences: their settings and positions; updated.
        edits: what they change about their logits; updated.
        decoded: the results, of N steps; written.
    """
    V = weights.by.size
    rows = np.empty((2, V), np.float32)
    scratch = allocate_sampling_scratch(V if _any_truncates(sequences) else 0)
    decoded.tokens[:] = -1
    decoded.log_probabilities[:] = ZERO
    _decode(cell, weights, work, state, sequences, edits, decoded, rows, scratch)
