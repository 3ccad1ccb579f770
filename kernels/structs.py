"""`Parameters`, `Weights`, `Workspace`, `State` and `Gradients` bundle the arrays of a network.

Numba passes these tuples to kernels by value. All layers share one hidden size H, so the arrays of
the layers are stacked along a first axis, and one compiled signature serves any number of layers.
G is H, 3H or 4H by the cell; E is 0 for one-hot input. Everything is float32 and C-contiguous.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]

RNN = 0
GRU = 1
LSTM = 2
"""The `cell` argument of every function over a whole network."""

LOGIT_ROWS = 256
"""Rows of logits that are in memory at once, at most."""


ROW_BLOCK = 256
"""Rows of a block: one packed panel of it fits the L1 cache."""


class RowBlock(NamedTuple):
    """A buffer for ROW_BLOCK gathered rows (see `gemm_transposed`, and `gemm_bf16`)."""

    left: Array
    """(1, ROW_BLOCK, at least M), for rows (M,) of A, one behind the other."""
    right: Array
    """(panels, ROW_BLOCK, PANEL), for rows of B; with fewer panels than B needs, B is cut."""


class Parameters(NamedTuple):
    """The parameters that training learns, or their gradients."""

    embedding: Array
    """(V, E); (0, 0) for one-hot input."""
    Wx0: Array
    """Input weights of layer 0, (E, G); (V, G) for one-hot input."""
    b: Array
    """(L, G)."""
    bh: Array
    """(L, H), the GRU's hidden bias of n; zeros for other cells."""
    Wx: Array
    """(L-1, H, G), input weights of layers 1 and up."""
    Wh: Array
    """(L, H, G), recurrent weights."""
    Wy: Array
    """(H, V), output weights; (0, 0) where they are the embedding's transpose."""
    by: Array
    """(V,)."""
    Wc: Array
    """(H, C), weights of the clusters of a factored softmax; (0, 0) where it is full."""
    bc: Array
    """(C,)."""


class Weights(NamedTuple):
    """Packed parameters, as the forward and backward passes read them; shared by all shards."""

    table: Array
    """(V, G), the folded input; (0, G) where rows are computed on demand from the next three."""
    embedding: Array
    """(V, E), or (0, 0) where there is a table."""
    Wx0: Array
    """Input weights of layer 0, (E, G), packed."""
    b: Array
    """(L, G)."""
    bh: Array
    """(L, H), the GRU's hidden bias of n; zeros for other cells."""
    Wx: Array
    """(L-1, ...): input weights (H, G) of layers 1 and up, packed."""
    Wh: Array
    """(L, ...): recurrent weights (H, G), packed."""
    WxT: Array
    """Wx transposed, packed; empty where there is no backward pass."""
    WhT: Array
    """Wh transposed, packed; empty where there is no backward pass."""
    Wy: Array
    """Output weights (H, V), packed."""
    WyT: Array
    """Wy transposed, packed; empty where there is no backward pass."""
    by: Array
    """(V,)."""
    Wc: Array
    """(H, C), weights of the clusters, packed as float32 numbers."""
    WcT: Array
    """Wc transposed, packed as float32 numbers; empty where there is no backward pass."""
    bc: Array
    """(C,)."""
    clusters: Places
    """(C + 1,), the first token of every cluster, then V; (1,) where the softmax is full."""


class Workspace(NamedTuple):
    """What one shard writes during a step; allocated once a run.

    A cell leaves what it lacks empty.
    """

    gates: Array
    """(L, T, B, G)."""
    ah: Array
    """(L, T, B, 3H), the GRU's h Wh; (L, 0, B, 3H) for other cells."""
    hs: Array
    """(L, T+1, B, H)."""
    cs: Array
    """(L, T+1, B, H), the LSTM's cell states; (L, 0, B, H) for other cells."""
    dhs: Array
    """(T, B, H), or (0, B, H) where there is no backward pass."""
    logits: Array
    """(LOGIT_ROWS, V), or fewer rows; for a backward pass, V is the head or the largest cluster
    where the softmax is factored."""
    keep: Bits
    """(L-1, T, B, ceil(H / 8)), one bit a unit that a layer passes on; (L-1, 0, B, ...)
    where nothing is dropped."""
    dropped: Array
    """(T, B, H), the input of the current layer; (0, B, H) where nothing is dropped."""
    scale: Array
    """(2,), the factors of units that are kept: between layers, before the output layer."""
    top_keep: Bits
    """(1, T, B, ceil(H / 8)), one bit a unit that the output layer reads; (1, 0, B, ...) where
    nothing is dropped before it."""
    top: Array
    """(LOGIT_ROWS, H), what the output layer reads; (0, H) where nothing is dropped before it;
    (T B, H) where the softmax is factored."""
    block: RowBlock
    """For rows of states and gate gradients; empty where there is no backward pass."""


class State(NamedTuple):
    """The hidden state carried from window to window."""

    h: Array
    """(L, B, H)."""
    c: Array
    """(L, B, H), the LSTM's cell state; zeros for other cells."""


class Gradients(NamedTuple):
    """The gradients of one shard; those of Wx0 and the embedding follow from the table's."""

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
    Wc: Array
    """(H, C)."""
    bc: Array
    """(C,)."""
