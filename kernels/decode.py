"""Decoding: a chunk of tokens for several sessions in one call without the interpreter lock.

Every step runs the same kernels as training and scoring do, so a token's log-probability is
bit for bit what scoring the text gives, whoever else decodes in the same call. What a session may
change about its logits is in `edits`, how it draws from them in `draw`.
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
from treadle.kernels.loss import largest, log_probability, shifted_exp
from treadle.kernels.network import embed, layer_tape, output_logits, store_state, upper_layers
from treadle.kernels.random import uniform
from treadle.kernels.sampling import (
    SamplingScratch,
    Truncation,
    allocate_sampling_scratch,
    draw,
    sorts,
)
from treadle.kernels.simd import copy
from treadle.kernels.structs import Array, Ints, State, Weights, Workspace
from treadle.kernels.token_ranks import token_rank, top_k_tokens

Longs = npt.NDArray[np.uint64]

_NEVER = np.float32(-np.inf)

SAMPLING_STREAM = np.uint64(1)
"""Random stream of the draw; parameters are initialized from streams of their own seed."""


class Sequences(NamedTuple):
    """What each of M decoding sessions asks for, and where it stands."""

    token: Ints
    """(M,), the last token read or drawn; updated."""
    end: Ints
    """(M,), the token that ends a session, or -1."""
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
    """(M,), draws of that seed so far; updated."""


class DecodedTokens(NamedTuple):
    """What N steps of M sessions give; written."""

    tokens: Ints
    """(N, M); -1 after a session's end."""
    log_probabilities: Array
    """(N, M), of each token under the model itself, in nats."""
    ranks: Ints
    """(N, M), 1 for the likeliest token; (0, M) where nobody asks."""
    alternatives: Ints
    """(N, M, A), the likeliest tokens, likeliest first; (N, M, 0) where nobody asks."""
    alternative_log_probabilities: Array
    """(N, M, A), theirs."""


@jit_inline
def _is_over(sessions: Sequences, edits: LogitEdits, m: int) -> bool:
    ended = sessions.end[m] >= 0 and sessions.token[m] == sessions.end[m]
    return bool(ended or edits.constraint_state[m] == DEAD_END)


@jit_inline
def _cuts(sessions: Sequences, m: int) -> Truncation:
    return Truncation(
        sessions.top_k[m], sessions.top_p[m], sessions.min_p[m], sessions.typical_p[m]
    )


@jit
def _any_sorts(sessions: Sequences) -> bool:
    """Tell whether any session's draws sort."""
    found = False
    for m in range(sessions.token.size):
        found = found or sorts(_cuts(sessions, m))
    return found


@jit
def _draw_one(
    sessions: Sequences, edits: LogitEdits, m: int, logits: Array, largest_logit: np.float32,
    weights: Array, edited: Array, scratch: SamplingScratch,
) -> int:  # fmt: skip
    """Draw session m's next token.

    Args:
        sessions: all of them.
        edits: what they change.
        m: which one.
        logits: (V,), the model's own.
        largest_logit: the largest of them.
        weights: (V,); in: their shifted_exp; overwritten.
        edited: (V,), written.
        scratch: what `draw` works in.

    Returns:
        The token; -1 where none is left to draw.
    """
    u = uniform(sessions.seed[m], SAMPLING_STREAM, sessions.position[m])
    cuts = _cuts(sessions, m)
    made, temperature = edits.new_tokens[m], sessions.temperature[m]
    if made < edits.forced.shape[1] and edits.forced[m, made] >= 0:
        return int(edits.forced[m, made])
    if not has_edits(edits, m):
        return draw(logits, largest_logit, temperature, cuts, u, weights, scratch)
    edit_logits(edits, m, sessions.end[m], logits, edited)
    most = largest(edited)
    if most == _NEVER:
        return -1
    shifted_exp(edited, most, weights)
    return draw(edited, most, temperature, cuts, u, weights, scratch)


@jit
def _tell_alternatives(
    logits: Array, largest_logit: np.float32, whole: np.float32, ids: Ints, out: Array
) -> None:  # fmt: skip
    """Write the likeliest tokens' ids (A,) and log-probabilities (A,) of a row (V,)."""
    top_k_tokens(logits, ids)
    for a in range(min(ids.size, logits.size)):
        out[a] = log_probability(logits[ids[a]], largest_logit, whole)


@jit_inline
def _draw_all(
    sessions: Sequences, edits: LogitEdits, logits: Array, rows: Array, scratch: SamplingScratch,
    drawn: DecodedTokens, n: int,
) -> bool:  # fmt: skip
    """Draw each session's next token from logits (M, V); return whether any session goes on."""
    alive = False
    for m in range(logits.shape[0]):
        if _is_over(sessions, edits, m):
            continue
        row = logits[m]
        m_logit = largest(row)
        whole = shifted_exp(row, m_logit, rows[0])
        token = _draw_one(sessions, edits, m, row, m_logit, rows[0], rows[1], scratch)
        if token < 0:
            edits.constraint_state[m] = DEAD_END
            continue
        drawn.tokens[n, m] = token
        drawn.log_probabilities[n, m] = log_probability(row[token], m_logit, whole)
        if drawn.ranks.shape[0]:
            drawn.ranks[n, m] = token_rank(row, token)
        if drawn.alternatives.shape[2]:
            others = drawn.alternative_log_probabilities[n, m]
            _tell_alternatives(row, m_logit, whole, drawn.alternatives[n, m], others)
        sessions.token[m] = token
        sessions.position[m] += np.uint64(1)
        record_token(edits, m, token)
        alive = alive or not _is_over(sessions, edits, m)
    return alive


@jit
def decode(
    cell: int, weights: Weights, work: Workspace, state: State, sessions: Sequences,
    edits: LogitEdits, drawn: DecodedTokens,
) -> None:  # fmt: skip
    """Draw a chunk of tokens for M sessions.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: for T = 1 step and M rows, M at most LOGIT_ROWS.
        state: in: each session's state before `sessions.token` was read; out: the same after
            the chunk.
        sessions: what they ask for; updated.
        edits: what they change about their logits; updated.
        drawn: what they get, N steps of it.
    """
    L, M = state.h.shape[0], state.h.shape[1]
    V, size = weights.by.size, M * state.h.shape[2]
    rows, scratch = (
        np.empty((2, V), np.float32),
        allocate_sampling_scratch(V if _any_sorts(sessions) else 0),
    )
    logits = work.logits[:M]
    drawn.tokens[:] = -1
    drawn.log_probabilities[:] = ZERO
    # What every step begins with, taken out of the loop: a slice costs as much as small loops do.
    gates, Wh, bh = work.gates[0, 0], weights.Wh[0], weights.bh[0]
    tape, top = layer_tape(work, 0, 0, 1), work.hs[L - 1, 1]
    for layer in range(L):
        work.hs[layer, 1] = state.h[layer]
        if work.cs.shape[1]:
            work.cs[layer, 1] = state.c[layer]
    for n in range(drawn.tokens.shape[0]):
        for layer in range(L):
            here = layer * 2 * size
            copy(work.hs, here + size, work.hs, here, size)
            if work.cs.shape[1]:
                copy(work.cs, here + size, work.cs, here, size)
        embed(weights, sessions.token, gates)
        recur_forward(cell, Wh, bh, tape, 1)
        if L > 1:
            upper_layers(cell, weights, work, 1)
        output_logits(weights, top, logits)
        if not _draw_all(sessions, edits, logits, rows, scratch, drawn, n):
            break
    store_state(work, 1, state)
