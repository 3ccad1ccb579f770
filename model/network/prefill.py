"""`read_tokens` reads a prompt window by window, once for all texts that follow it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from treadle.kernels import network, structs
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.shards import CONTINUED
from treadle.model.network.workspace import allocate_workspace
from treadle.model.tokenizers.token_ids import check_tokens

Ints = npt.NDArray[np.int32]

WINDOW = 64
"""Steps that one kernel call reads or scores."""


def read_tokens(
    shape: Shape, weights: structs.Weights, state: SessionState, tokens: Ints
) -> Iterator[SessionState]:
    """Reads tokens after a state, window by window.

    Args:
        shape: The network's sizes.
        weights: The parameters packed for inference.
        state: The state before the tokens; not changed.
        tokens: (N,), the tokens. The last one becomes the token of the state: the step that
            continues reads it.

    Yields:
        The state after each window; the last one is the state after all tokens.

    Raises:
        TokenError: A token is not in the vocabulary.
    """
    pending = np.array([state.token] if state.token >= 0 else [], np.int32)
    sequence = np.concatenate((pending, tokens))
    check_tokens(sequence, shape.V)
    if not sequence.size:
        yield state
        return
    carried = structs.State(state.hs[:, None].copy(), state.cs[:, None].copy())
    work = None
    for start in range(0, sequence.size - 1, WINDOW):
        stop = min(start + WINDOW, sequence.size - 1)
        if work is None:
            work = allocate_workspace(shape, stop - start, 1, backward=False)
        window = sequence[start:stop].reshape(-1, 1)
        network.read_shard(CELL_CODES[shape.cell], weights, work, carried, window, CONTINUED)
        hs = carried.h[:, 0].copy()
        cs = carried.c[:, 0].copy()
        state = replace(state, hs=hs, cs=cs, token=int(sequence[stop]))
        yield state
    if sequence.size == 1:
        yield replace(state, token=int(sequence[0]))
