"""Decoding: a chunk of tokens for several sessions in one call without the interpreter lock.

Every step runs the same kernels as training and scoring do, so a token's log-probability is
bit for bit what scoring the text gives, whoever else decodes in the same call. The draw:

1. temperature 0 takes the likeliest token, the lowest id of equals;
2. else logits, less the largest, are divided by the temperature;
3. of all tokens the `top_k` likeliest stay, lower ids first among equals;
4. of these the fewest likeliest stay whose probability reaches `top_p`;
5. of these stay those at least `min_p` times as likely as the likeliest;
6. the draw walks those left in ascending id until their summed weight exceeds u times the whole.

The nucleus (4) is from Holtzman et al., "The curious case of neural text degeneration" (2020),
min-p (5) from Nguyen et al., "Turning up the heat: min-p sampling" (2024).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treadle.kernels.activations import ONE, ZERO
from treadle.kernels.compile import jit, jit_inline
from treadle.kernels.layer import recur_forward
from treadle.kernels.loss import exponentials, largest, log_probability, total
from treadle.kernels.network import embed, layer_tape, output_logits, store_state, upper_layers
from treadle.kernels.random import uniform
from treadle.kernels.structures import Array, Ints, State, Weights, Workspace
from treadle.kernels.vectors import copy

Longs = npt.NDArray[np.uint64]

_LOWEST = np.float32(-100.0)

DRAW_STREAM = np.uint64(1)
"""Random stream of the draw; parameters are initialized from streams of their own seed."""


class Sessions(NamedTuple):
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
    seed: Longs
    """(M,)."""
    position: Longs
    """(M,), tokens drawn so far; updated."""


@jit
def likeliest(logits: Array) -> int:
    """Return the lowest id among the largest logits (V,)."""
    best = 0
    for v in range(logits.size):
        if logits[v] > logits[best]:
            best = v
    return best


@jit
def _cut(weights: Array, top_k: int, top_p: np.float32) -> None:
    """Set to 0 the weights (V,) that top-k and top-p exclude; at least one stays."""
    V = weights.size
    order = np.argsort(-weights, kind="mergesort")  # stable: lower ids first among equals
    kept = min(V, top_k) if top_k > 0 else V
    whole = ZERO
    for rank in range(kept):
        whole += weights[order[rank]]
    running, threshold = ZERO, top_p * whole
    for rank in range(V):
        if rank >= kept or (rank > 0 and running >= threshold):
            weights[order[rank]] = ZERO
        else:
            running += weights[order[rank]]


@jit
def _cut_unlikely(weights: Array, min_p: np.float32) -> None:
    """Set to 0 the weights (V,) below min_p times the largest, which itself stays."""
    floor = min_p * largest(weights)
    for v in range(weights.size):
        if weights[v] < floor:
            weights[v] = ZERO


@jit_inline
def _heat(logits: Array, largest_logit: np.float32, temperature: np.float32, out: Array) -> None:
    """Write exp((logits - largest_logit) / temperature), all (V,)."""
    # Less the largest first, and never far below what exp makes 0 of, lest a small temperature
    # overflow.
    lowest = _LOWEST * temperature
    for v in range(logits.size):
        difference = logits[v] - largest_logit
        out[v] = difference / temperature if difference > lowest else _LOWEST
    exponentials(out, ZERO, out)


@jit
def draw(
    logits: Array, largest_logit: np.float32, temperature: np.float32, top_k: int,
    top_p: np.float32, min_p: np.float32, u: np.float32, weights: Array,
) -> int:  # fmt: skip
    """Draw one token.

    Args:
        logits: (V,).
        largest_logit: the largest of them.
        temperature: 0 for greedy.
        top_k: 0 for all tokens.
        top_p: 1 for all tokens.
        min_p: 0 for all tokens.
        u: a uniform draw from [0, 1).
        weights: (V,); in: exp(logits - largest_logit), what temperature 1 draws from; overwritten.

    Returns:
        The token's id.
    """
    if temperature == ZERO:
        return likeliest(logits)
    if temperature != ONE:
        _heat(logits, largest_logit, temperature, weights)
    if top_k > 0 or top_p < ONE:
        _cut(weights, top_k, top_p)
    if min_p > ZERO:
        _cut_unlikely(weights, min_p)
    threshold = u * total(weights)
    running, token = ZERO, 0
    for v in range(weights.size):
        if weights[v] > ZERO:
            running += weights[v]
            token = v
            if running > threshold:
                break
    return token


@jit_inline
def _draw_all(
    sessions: Sessions, logits: Array, scratch: Array, tokens: Ints, log_probabilities: Array
) -> bool:
    """Draw each session's next token from logits (M, V); return whether any session goes on."""
    alive = False
    for m in range(logits.shape[0]):
        if sessions.end[m] >= 0 and sessions.token[m] == sessions.end[m]:
            tokens[m], log_probabilities[m] = -1, ZERO
            continue
        row = logits[m]
        u = uniform(sessions.seed[m], DRAW_STREAM, sessions.position[m])
        m_logit = largest(row)
        sum_of_exponentials = exponentials(row, m_logit, scratch)
        token = draw(
            row, m_logit, sessions.temperature[m], sessions.top_k[m], sessions.top_p[m],
            sessions.min_p[m], u, scratch,
        )  # fmt: skip
        log_probabilities[m] = log_probability(row[token], m_logit, sum_of_exponentials)
        tokens[m] = token
        sessions.token[m] = token
        sessions.position[m] += np.uint64(1)
        alive = alive or token != sessions.end[m]
    return alive


@jit
def decode(
    cell: int, weights: Weights, work: Workspace, state: State, sessions: Sessions,
    tokens: Ints, log_probabilities: Array,
) -> None:  # fmt: skip
    """Draw a chunk of tokens for M sessions.

    Args:
        cell: RNN, GRU or LSTM.
        weights: packed.
        work: for T = 1 step and M rows, M at most LOGIT_ROWS.
        state: in: each session's state before `sessions.token` was read; out: the same after
            the chunk.
        sessions: what they ask for; updated.
        tokens: (N, M), written; -1 after a session's end.
        log_probabilities: (N, M), written: of each token under the model itself, in nats.
    """
    L, M = state.h.shape[0], state.h.shape[1]
    scratch, size = np.empty(weights.by.size, np.float32), M * state.h.shape[2]
    logits = work.logits[:M]
    tokens[:] = -1
    log_probabilities[:] = ZERO
    # What every step begins with, taken out of the loop: a slice costs as much as small loops do.
    gates, Wh, bh = work.gates[0, 0], weights.Wh[0], weights.bh[0]
    tape, top = layer_tape(work, 0, 0, 1), work.hs[L - 1, 1]
    for layer in range(L):
        work.hs[layer, 1] = state.h[layer]
        if work.cs.shape[1]:
            work.cs[layer, 1] = state.c[layer]
    for n in range(tokens.shape[0]):
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
        if not _draw_all(sessions, logits, scratch, tokens[n], log_probabilities[n]):
            break
    store_state(work, 1, state)
