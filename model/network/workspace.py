"""`allocate_workspace`, `allocate_weights` and `allocate_state` allocate memory for kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.kernels import gemm_int8, structs
from treadle.kernels.aligned_arrays import aligned_zeros
from treadle.kernels.dropout import keep_bytes
from treadle.kernels.gemm_bf16 import allocate_pair_block, pair_count
from treadle.kernels.gemm_packing import panel_count
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.gemm_transposed import allocate_row_block
from treadle.kernels.panel_words import as_words
from treadle.kernels.weight_packing import pack_weights
from treadle.model.enums import Cell, InferencePrecision

if TYPE_CHECKING:
    from treadle.model.network.parameters import Parameters
    from treadle.model.network.shape import Shape

Array = npt.NDArray[np.float32]

TABLE_LIMIT = 1 << 24
"""The most elements of the folded input for generating and scoring; above it, rows are computed on
demand."""


def _panels(*shape: int, pairs: bool = False) -> Any:
    """Allocates panels for matrices (..., K, N), of float32 numbers or of pairs of bfloat16."""
    *stack, K, N = shape
    panels = (*stack, panel_count(N))
    if pairs:
        return as_words(aligned_zeros((*panels, pair_count(K), PANEL), np.uint32))
    return aligned_zeros((*panels, K, PANEL))


def allocate_weights(
    shape: Shape, table_rows: int, backward: bool, pairs: bool = False, panels: bool = True
) -> structs.Weights:
    """Allocates packed weights.

    Args:
        shape: The network's sizes.
        table_rows: Rows of the folded input; 0 to make them on demand.
        backward: Whether the transposes are needed.
        pairs: Whether all but layer 0's input weights are packed as bfloat16 numbers.
        panels: Whether there are recurrent weights, output weights and input weights of layers 1
            and up.

    Returns:
        The arrays, not yet filled.
    """
    V = shape.V
    E = shape.E
    H = shape.H
    L = shape.L
    G = shape.G
    layers = L if panels else 0
    C = len(shape.clusters)
    return structs.Weights(
        table=aligned_zeros((table_rows, G)),
        embedding=aligned_zeros((0, 0) if table_rows else (V, E)),
        Wx0=_panels(E, G),
        b=aligned_zeros((L, G)),
        bh=aligned_zeros((L, H)),
        Wx=_panels(max(0, layers - 1), H, G, pairs=pairs),
        Wh=_panels(layers, H, G, pairs=pairs),
        WxT=_panels(L - 1 if backward else 0, G, H, pairs=pairs),
        WhT=_panels(L if backward else 0, G, H, pairs=pairs),
        Wy=_panels(H, V if panels else 0, pairs=pairs),
        WyT=_panels(V if backward else 0, H, pairs=pairs),
        by=aligned_zeros(V),
        Wc=_panels(H, C),
        WcT=_panels(C if backward else 0, H),
        bc=aligned_zeros(C),
        clusters=np.array([*shape.clusters, V], np.int64),
    )


def _pair_block(M: int, N: int) -> structs.RowBlock:
    """Returns an empty block for pairs of rows."""
    block = allocate_pair_block(M, N)
    return structs.RowBlock(as_words(block.left), as_words(block.right))


def with_transposes(packed: structs.Weights, shape: Shape, table_rows: int) -> structs.Weights:
    """Allocates packed weights with transposes, around weights packed for inference.

    Args:
        packed: The same network's packed weights without transposes, of float32 numbers. What can
            be shared is shared.
        shape: The network's sizes.
        table_rows: Rows of the folded input.

    Returns:
        The arrays; the transposes are not yet filled.
    """
    H = shape.H
    L = shape.L
    G = shape.G
    table = packed.table
    if table.shape[0] != table_rows:
        table = aligned_zeros((table_rows, G))
    return packed._replace(
        table=table,
        embedding=aligned_zeros((0, 0)),
        WxT=_panels(L - 1, G, H),
        WhT=_panels(L, G, H),
        WyT=_panels(shape.V, H),
        WcT=_panels(len(shape.clusters), H),
    )


def allocate_workspace(
    shape: Shape,
    steps: int,
    rows: int,
    backward: bool,
    drops: bool = False,
    pairs: bool = False,
    drops_top: bool = False,
) -> structs.Workspace:
    """Allocates a workspace for windows of up to `steps` steps and exactly `rows` rows.

    Args:
        shape: The network's sizes.
        steps: The longest window.
        rows: Sequences.
        backward: Whether a gradient is needed.
        drops: Whether units are dropped between layers.
        pairs: Whether gradients of weights are products of bfloat16 numbers.
        drops_top: Whether units are dropped before the output layer.

    Returns:
        The workspace, not yet filled.
    """
    gather = _pair_block if pairs else allocate_row_block
    H = shape.H
    L = shape.L
    dropping = steps if drops and L > 1 else 0
    top = steps if drops_top else 0
    logit_rows = min(structs.LOGIT_ROWS, steps * rows)
    width = shape.logit_width if backward else shape.V
    top_rows = steps * rows if shape.clusters else logit_rows
    is_gru = shape.cell is Cell.GRU
    is_lstm = shape.cell is Cell.LSTM
    return structs.Workspace(
        gates=aligned_zeros((L, steps, rows, shape.G)),
        ah=aligned_zeros((L, steps if is_gru else 0, rows, 3 * H)),
        hs=aligned_zeros((L, steps + 1, rows, H)),
        cs=aligned_zeros((L, steps + 1 if is_lstm else 0, rows, H)),
        dhs=aligned_zeros((steps if backward else 0, rows, H)),
        logits=aligned_zeros((logit_rows, width)),
        keep=aligned_zeros((L - 1, dropping, rows, keep_bytes(H)), np.uint8),
        dropped=aligned_zeros((dropping, rows, H)),
        scale=np.ones(2, np.float32),
        top_keep=aligned_zeros((1, top, rows, keep_bytes(H)), np.uint8),
        top=aligned_zeros((top_rows if drops_top else 0, H)),
        block=gather(max(H, shape.E), shape.G) if backward else gather(0, 0),
    )


def allocate_state(shape: Shape, rows: int) -> structs.State:
    """Returns the zero state of `rows` sequences."""
    size = (shape.L, rows, shape.H)
    return structs.State(aligned_zeros(size), aligned_zeros(size))


def pack_for_inference(
    parameters: Parameters,
    precision: InferencePrecision = InferencePrecision.FP32,
    shared: structs.Weights | None = None,
) -> structs.Weights:
    """Packs parameters for generating and scoring; the result is never written to.

    Args:
        parameters: The network's numbers.
        precision: The numbers that products multiply. With INT8, recurrent weights, output weights
            and the input weights of layers 1 and up are packed as int8; layer 0's input and all
            biases are float32 all the same.
        shared: The same parameters packed in the other precision; what does not depend on the
            precision is taken from there.

    Returns:
        The packed weights, without transposes.
    """
    if precision is InferencePrecision.INT8:
        return _with_int8_panels(parameters, shared or _pack(parameters, panels=False))
    weights = _pack(parameters, panels=True)
    if shared is None:
        return weights
    return shared._replace(Wx=weights.Wx, Wh=weights.Wh, Wy=weights.Wy)


def _pack(parameters: Parameters, panels: bool) -> structs.Weights:
    """Packs parameters in float32; without panels, only what every precision has."""
    shape = parameters.shape
    stacks = parameters.stacks
    fits = shape.E == 0 or shape.V * shape.G <= TABLE_LIMIT
    weights = allocate_weights(shape, shape.V if fits else 0, backward=False, panels=panels)
    if not panels:
        stacks = stacks._replace(Wx=stacks.Wx[:0], Wh=stacks.Wh[:0])
    used = np.arange(shape.V if fits else 0, dtype=np.int32)
    pack_weights(stacks, weights, used)
    return weights


def _with_int8_panels(parameters: Parameters, weights: structs.Weights) -> structs.Weights:
    """Returns packed weights whose products multiply int8 numbers."""
    shape = parameters.shape
    stacks = parameters.stacks
    size = (panel_count(shape.G), gemm_int8.row_count(shape.H))
    Wx = gemm_int8.allocate_panels(shape.L - 1, *size)
    Wh = gemm_int8.allocate_panels(shape.L, *size)
    for layer in range(shape.L):
        Wh[layer] = gemm_int8.pack(stacks.Wh[layer])
        if layer:
            Wx[layer - 1] = gemm_int8.pack(stacks.Wx[layer - 1])
    Wy = gemm_int8.pack(stacks.embedding.T if shape.tied else stacks.Wy)
    return weights._replace(Wx=as_words(Wx), Wh=as_words(Wh), Wy=as_words(Wy))
