"""What a session changes about a row of logits before it draws from it.

In this order: a number is added to every token's logit (-inf never is drawn); logits of tokens
that were there before are divided by the repetition penalty where positive and multiplied by it
where not (Keskar et al., "CTRL", 2019); those of tokens that the new text holds lose the presence
penalty, and the frequency penalty once for each time; the end token is out before `least` tokens;
and so is what an automaton excludes. The log-probability that is reported never knows of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treadle.kernels.activations import ONE, ZERO
from treadle.kernels.jit import jit
from treadle.kernels.structs import Array, Ints

_NEVER = np.float32(-np.inf)

NEW, PROMPT = 0, 1
"""The rows of a session's counts: tokens of the new text, and of the prompt."""

NO_CONSTRAINT, DEAD_END = -1, -2
"""What stands for an automaton's state where there is none, and once nothing can be drawn."""


class LogitEdits(NamedTuple):
    """What M sessions change; each array has a row for those that need it."""

    bias_row: Ints
    """(M,), the row of `biases`, or -1."""
    biases: Array
    """(R, V), added to logits; -inf for tokens never to draw."""
    count_row: Ints
    """(M,), the row of `counts`, or -1."""
    counts: Ints
    """(C, 2, V), how often the new text and the prompt hold each token; updated."""
    repetition: Array
    """(M,), the repetition penalty, 1 for none."""
    presence: Array
    """(M,), the presence penalty."""
    frequency: Array
    """(M,), the frequency penalty."""
    new_tokens: Ints
    """(M,), tokens of the new text so far; updated."""
    min_new_tokens: Ints
    """(M,), tokens before which the end token is not drawn."""
    constraint_state: Ints
    """(M,), the automaton's state, NO_CONSTRAINT or DEAD_END; updated."""
    transitions: Ints
    """(S, V), the state after a token, -1 where it is excluded."""
    forced: Ints
    """(M, F), the first tokens of the new text; -1 past their last."""


@jit
def has_edits(edits: LogitEdits, m: int) -> bool:
    """Tell whether session m changes logits."""
    changes = edits.bias_row[m] >= 0 or edits.count_row[m] >= 0 or edits.constraint_state[m] >= 0
    return bool(changes or edits.new_tokens[m] < edits.min_new_tokens[m])


@jit
def _penalize(edits: LogitEdits, m: int, out: Array) -> None:
    """Apply the penalties of session m to `out` (V,)."""
    counts, penalty = edits.counts[edits.count_row[m]], edits.repetition[m]
    for v in range(out.size):
        times = counts[NEW, v]
        if penalty != ONE and times + counts[PROMPT, v] > 0:
            out[v] = out[v] / penalty if out[v] > ZERO else out[v] * penalty
        if times > 0:
            out[v] -= edits.presence[m] + edits.frequency[m] * np.float32(times)


@jit
def edit_logits(edits: LogitEdits, m: int, end: int, logits: Array, out: Array) -> None:
    """Write what session m makes of logits (V,) to `out` (V,).

    Args:
        edits: of all sessions.
        m: which one.
        end: the token that ends it, or -1.
        logits: the model's own.
        out: another array.
    """
    if edits.bias_row[m] >= 0:
        bias = edits.biases[edits.bias_row[m]]
        for v in range(out.size):
            out[v] = logits[v] + bias[v]
    else:
        out[:] = logits
    if edits.count_row[m] >= 0:
        _penalize(edits, m, out)
    if end >= 0 and edits.new_tokens[m] < edits.min_new_tokens[m]:
        out[end] = _NEVER
    if edits.constraint_state[m] >= 0:
        allowed = edits.transitions[edits.constraint_state[m]]
        for v in range(out.size):
            if allowed[v] < 0:
                out[v] = _NEVER


@jit
def record_token(edits: LogitEdits, m: int, token: int) -> None:
    """Take down that session m has drawn a token."""
    edits.new_tokens[m] += 1
    if edits.count_row[m] >= 0:
        edits.counts[edits.count_row[m], NEW, token] += 1
    if edits.constraint_state[m] >= 0:
        following = edits.transitions[edits.constraint_state[m], token]
        edits.constraint_state[m] = following if following >= 0 else DEAD_END
