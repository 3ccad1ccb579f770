"""`pack_weights` packs parameters for the passes; `unfold_embedding` and others unfold gradients.

The input is folded through the vocabulary: row u of the table is b + E[v] Wx0 for v = used[u],
layer 0's share of the input for token v. A look-up is the same function as an embedding followed by
a product, with the same gradient, at len(used) / (T B) of the cost. In the backward pass, with dX
the table's gradient: dE[v] = dX[u] Wx0^T, dWx0 = E[used]^T dX, db = the sum of dX's rows.

Tied output weights, Wy = E^T (Press and Wolf, "Using the output embedding to improve language
models", 2017), have no array of their own. Both of their packed forms are made from the embedding,
whose gradient is the sum of the input's, dE, and the output's, dWy^T.
"""

from __future__ import annotations

import numpy as np

from treadle.kernels.activations import ZERO
from treadle.kernels.gemm import add_rows
from treadle.kernels.gemm_dispatch import add_matmul_transposed, matmul, pack, pack_transposed
from treadle.kernels.gemm_tile import PANEL
from treadle.kernels.jit import jit_apart, jit_inline
from treadle.kernels.simd import add_row, copy, copy_array
from treadle.kernels.structs import Array, Gradients, Ints, Parameters, RowBlock, Weights

_LINE = 16
"""Floats in a cache line."""


@jit_inline
def _tied(parameters: Parameters) -> bool:
    """Returns True where the output weights are the embedding's transpose."""
    return bool(parameters.Wy.shape[0] == 0)


@jit_apart
def _add_transposed(matrix: Array, total: Array) -> None:
    """Adds the transpose of a matrix (M, N) to `total` (N, M)."""
    M, N = matrix.shape
    for start in range(0, M, _LINE):  # whole lines of the total, while the cache holds its rows
        for n in range(N):
            for m in range(start, min(M, start + _LINE)):
                total[n, m] += matrix[m, n]


@jit_apart
def _take_rows(matrix: Array, rows: Ints) -> Array:
    """Returns the rows of a matrix with the numbers `rows` (U,), in that order."""
    taken = np.empty((rows.size, matrix.shape[1]), np.float32)
    for u in range(rows.size):
        copy_array(matrix[rows[u]], taken[u])
    return taken


@jit_apart
def _fold_input(parameters: Parameters, weights: Weights, used: Ints) -> None:
    """Writes the first len(used) rows of the table."""
    b = parameters.b[0]
    G = b.size
    for u in range(used.size):
        copy(b, 0, weights.table, u * G, G)
    if parameters.embedding.shape[0] == 0:
        for u in range(used.size):
            add_row(parameters.Wx0, used[u] * G, weights.table, u * G, G)
        return
    matmul(_take_rows(parameters.embedding, used), weights.Wx0, weights.table[: used.size], True)


@jit_apart
def pack_weights(parameters: Parameters, weights: Weights, used: Ints) -> None:
    """Packs what the forward pass reads.

    Args:
        parameters: the network's.
        weights: all but the transposes is written; an empty table is left out.
        used: (U,), the tokens that the table's first U rows stand for; ascending.
    """
    copy_array(parameters.b, weights.b)
    copy_array(parameters.bh, weights.bh)
    copy_array(parameters.by, weights.by)
    if weights.embedding.shape[0]:
        copy_array(parameters.embedding, weights.embedding)
    if parameters.embedding.shape[0]:
        pack(parameters.Wx0, weights.Wx0)
    if weights.table.shape[0]:
        _fold_input(parameters, weights, used)
    if _tied(parameters):
        pack_transposed(parameters.embedding, weights.Wy)
    else:
        pack(parameters.Wy, weights.Wy)
    weights.bc[:] = parameters.bc
    pack(parameters.Wc, weights.Wc)
    for layer in range(parameters.Wh.shape[0]):
        pack(parameters.Wh[layer], weights.Wh[layer])
        if layer:
            pack(parameters.Wx[layer - 1], weights.Wx[layer - 1])


@jit_apart
def pack_transposes(parameters: Parameters, weights: Weights) -> None:
    """Packs what only the backward pass reads.

    Args:
        parameters: the network's.
        weights: the transposes are written.
    """
    if _tied(parameters):
        pack(parameters.embedding, weights.WyT)
    else:
        pack_transposed(parameters.Wy, weights.WyT)
    pack_transposed(parameters.Wc, weights.WcT)
    for layer in range(parameters.Wh.shape[0]):
        pack_transposed(parameters.Wh[layer], weights.WhT[layer])
        if layer:
            pack_transposed(parameters.Wx[layer - 1], weights.WxT[layer - 1])


@jit_apart
def unfold_input_weights(
    parameters: Parameters, gradients: Gradients, used: Ints, block: RowBlock, out: Parameters
) -> None:
    """Turns the table's gradient into those of the input weights and the first bias.

    Args:
        parameters: those of the step's beginning.
        gradients: of the whole batch.
        used: as given to `pack_weights`.
        block: for rows of E and G elements.
        out: Wx0 and row 0 of b are written; the rest is left as it is.
    """
    d_table = gradients.table[: used.size]
    out.Wx0[:] = ZERO
    add_rows(d_table, out.b[0])
    if parameters.embedding.shape[0]:
        add_matmul_transposed(_take_rows(parameters.embedding, used), d_table, block, out.Wx0)
    else:
        for u in range(used.size):
            copy_array(d_table[u], out.Wx0[used[u]])


@jit_apart
def unfold_embedding(
    parameters: Parameters, gradients: Gradients, used: Ints, out: Parameters
) -> None:
    """Turns the table's gradient into the embedding's, and adds the output's where it is tied.

    Does nothing for one-hot input.

    Args:
        parameters: those of the step's beginning.
        gradients: of the whole batch.
        used: as given to `pack_weights`.
        out: the embedding is written; the rest is left as it is.
    """
    if parameters.embedding.shape[0] == 0:
        return
    E, G = parameters.Wx0.shape
    U = used.size
    Wx0T = np.empty(((E + PANEL - 1) // PANEL, G, PANEL), np.float32)
    pack_transposed(parameters.Wx0, Wx0T)
    d_rows = np.empty((U, E), np.float32)
    matmul(gradients.table[:U], Wx0T, d_rows, False)
    out.embedding[:] = ZERO
    for u in range(U):
        copy_array(d_rows[u], out.embedding[used[u]])
    if _tied(parameters):
        _add_transposed(gradients.Wy, out.embedding)
