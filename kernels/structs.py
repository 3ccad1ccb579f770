"""What kernels take and give, bundled by role: parameters, packed weights, workspaces, states.

All layers share one hidden size H, so what belongs to a layer is stacked along a first axis, and
one compiled signature serves any number of layers. G is H, 3H or 4H by the cell; E is 0 for
one-hot input. Everything is float32 and C-contiguous.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]

RNN, GRU, LSTM = 0, 1, 2
"""The `cell` argument of every function over a whole network."""

LOGIT_ROWS = 256
"""Rows of logits held at once."""


ROW_BLOCK = 256
"""Rows of a block: one packed panel of it fits the L1 cache."""


class RowBlock(NamedTuple):
    """Room for ROW_BLOCK gathered rows."""

    left: Array
    """(strips, ROW_BLOCK, ROWS), rows of A, at least ceil(M / ROWS) strips."""
    right: Array
    """(panels, ROW_BLOCK, PANEL), rows of B; with fewer panels than B has, B is cut."""


class Parameters(NamedTuple):
    """What training learns, or the gradients of it."""

    embedding: Array
    """(V, E); (0, 0) for one-hot input."""
    Wx0: Array
    """Input weights of layer 0, (E, G); (V, G) for one-hot input."""
    b: Array
    """(L, G)."""
    bh: Array
    """(L, H), the GRU's hidden bias of n; zeros elsewhere."""
    Wx: Array
    """(L-1, H, G), input weights of layers 1 and up."""
    Wh: Array
    """(L, H, G), recurrent weights."""
    Wy: Array
    """(H, V), output weights; (0, 0) where they are the embedding's transpose."""
    by: Array
    """(V,)."""


class Weights(NamedTuple):
    """What a forward or backward pass reads, packed. Shared by all shards of a step."""

    table: Array
    """(V, G), the folded input; (0, G) where rows are made on demand from the next three."""
    embedding: Array
    """(V, E), or (0, 0) beside a table."""
    Wx0: Array
    """Input weights of layer 0, (E, G), packed."""
    b: Array
    """(L, G)."""
    bh: Array
    """(L, H), the GRU's hidden bias of n; zeros elsewhere."""
    Wx: Array
    """(L-1, ...): input weights (H, G) of layers 1 and up, packed."""
    Wh: Array
    """(L, ...): recurrent weights (H, G), packed."""
    WxT: Array
    """Wx transposed, packed; empty where nothing goes backward."""
    WhT: Array
    """Wh transposed, packed; empty where nothing goes backward."""
    Wy: Array
    """Output weights (H, V), packed."""
    WyT: Array
    """Wy transposed, packed; empty where nothing goes backward."""
    by: Array
    """(V,)."""


class Workspace(NamedTuple):
    """What one shard writes on its way; allocated once a run. Cells leave what they lack empty."""

    gates: Array
    """(L, T, B, G)."""
    hidden: Array
    """(L, T, B, 3H), the GRU's hidden products; (L, 0, B, 3H) elsewhere."""
    hs: Array
    """(L, T+1, B, H)."""
    cs: Array
    """(L, T+1, B, H), the LSTM's cell states; (L, 0, B, H) elsewhere."""
    dhs: Array
    """(T, B, H), or (0, B, H) where nothing goes backward."""
    logits: Array
    """(LOGIT_ROWS, V), or fewer rows."""
    keep: Bits
    """(L-1, T, B, ceil(H / 8)), one bit a unit that a layer hands on; (L-1, 0, B, ...) where
    nothing is dropped."""
    dropped: Array
    """(T, B, H), what the layer at hand gets from below; (0, B, H) where nothing is dropped."""
    scale: Array
    """(2,), what units are multiplied with that are handed on: between layers, to the output."""
    top_keep: Bits
    """(1, T, B, ceil(H / 8)), one bit a unit that the output layer reads; (1, 0, B, ...) where
    nothing is dropped before it."""
    top: Array
    """(LOGIT_ROWS, H), what the output layer reads; (0, H) where nothing is dropped before it."""
    block: RowBlock
    """Room for gathering rows of states and gate gradients; none where nothing goes backward."""


class State(NamedTuple):
    """The hidden state carried from window to window."""

    h: Array
    """(L, B, H)."""
    c: Array
    """(L, B, H), the LSTM's cell state; zeros elsewhere."""


class Gradients(NamedTuple):
    """The gradients of one shard; Wx of layer 0 and the embedding follow from the table's."""

    table: Array
    """(V, G)."""
    b: Array
    """(L, G); row 0 stays 0, it follows from the table's."""
    bh: Array
    """(L, H)."""
    Wx: Array
    """(L-1, H, G)."""
    Wh: Array
    """(L, H, G)."""
    Wy: Array
    """(H, V)."""
    by: Array
    """(V,)."""
