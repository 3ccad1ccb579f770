"""`edit_logits` changes a row of logits as one sequence asks, before a token is sampled from it.

The edits, in this order:

1. a bias is added to every token's logit; -inf excludes a token;
2. logits of tokens that have occurred are divided by the repetition penalty if positive, and
   multiplied by it if not (Keskar et al., "CTRL", 2019);
3. logits of tokens that the new text holds are lowered by the presence penalty, and by the
   frequency penalty once for each occurrence;
4. the end token is excluded until the sequence has `min_new_tokens` tokens;
5. tokens that the constraint's automaton does not allow are excluded.

The log-probability that is reported is that of the model, before all edits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treadle.kernels.activations import ONE, ZERO
from treadle.kernels.jit import jit, jit_apart, jit_inline
from treadle.kernels.simd import copy_array
from treadle.kernels.structs import Array, Ints

_EXCLUDED = np.float32(-np.inf)

NEW = 0
"""The row of a sequence's counts for the new text."""
PROMPT = 1
"""The row of a sequence's counts for the prompt."""

NO_CONSTRAINT = -1
"""The constraint state of a sequence without a constraint."""
DEAD_END = -2
"""The constraint state of a sequence once no token is allowed any more."""


class LogitEdits(NamedTuple):
    """The edits of M sequences; an array has rows for the sequences that need it."""

    bias_row: Ints
    """(M,), the row of `biases`, or -1."""
    biases: Array
    """(R, V), added to logits; -inf for tokens that are excluded."""
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
    """(M,), tokens before which the end token is excluded."""
    constraint_state: Ints
    """(M,), the automaton's state, NO_CONSTRAINT or DEAD_END; updated."""
    transitions: Ints
    """(S, V), the automaton's state after a token, -1 where the token is not allowed."""
    forced: Ints
    """(M, F), the first tokens of the new text; -1 past the last forced one."""


@jit_inline
def has_edits(edits: LogitEdits, m: int) -> bool:
    """Returns whether sequence m changes logits."""
    changes = edits.bias_row[m] >= 0 or edits.count_row[m] >= 0 or edits.constraint_state[m] >= 0
    return bool(changes or edits.new_tokens[m] < edits.min_new_tokens[m])


@jit
def _penalize(edits: LogitEdits, m: int, out: Array) -> None:
    """Applies the penalties of sequence m to `out` (V,)."""
    counts = edits.counts[edits.count_row[m]]
    penalty = edits.repetition[m]
    for v in range(out.size):
        times = counts[NEW, v]
        if penalty != ONE and times + counts[PROMPT, v] > 0:
            out[v] = out[v] / penalty if out[v] > ZERO else out[v] * penalty
        if times > 0:
            out[v] -= edits.presence[m] + edits.frequency[m] * np.float32(times)


@jit_apart
def edit_logits(edits: LogitEdits, m: int, end_token: int, logits: Array, out: Array) -> None:
    """Writes the edited logits of sequence m.

    Args:
        edits: of all sequences.
        m: number of the sequence.
        end_token: the token that ends it, or -1.
        logits: (V,), the model's.
        out: (V,), written; not `logits`.
    """
    if edits.bias_row[m] >= 0:
        bias = edits.biases[edits.bias_row[m]]
        for v in range(out.size):
            out[v] = logits[v] + bias[v]
    else:
        copy_array(logits, out)
    if edits.count_row[m] >= 0:
        _penalize(edits, m, out)
    if end_token >= 0 and edits.new_tokens[m] < edits.min_new_tokens[m]:
        out[end_token] = _EXCLUDED
    if edits.constraint_state[m] >= 0:
        allowed = edits.transitions[edits.constraint_state[m]]
        for v in range(out.size):
            if allowed[v] < 0:
                out[v] = _EXCLUDED


@jit_inline
def record_token(edits: LogitEdits, m: int, token: int) -> None:
    """Updates the counts and the constraint state of sequence m after a sampled token."""
    edits.new_tokens[m] += 1
    if edits.count_row[m] >= 0:
        edits.counts[edits.count_row[m], NEW, token] += 1
    if edits.constraint_state[m] >= 0:
        following = edits.transitions[edits.constraint_state[m], token]
        edits.constraint_state[m] = following if following >= 0 else DEAD_END
