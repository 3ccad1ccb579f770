"""`one_hot` and `embedding_forward` turn tokens into vectors."""

import numpy as np
from numpy.typing import DTypeLike

from treadle.kernels.reference.arrays import Array, Tokens


def one_hot(tokens: Tokens, V: int, dtype: DTypeLike = np.float64) -> Array:
    """Turns each token into a row of V zeros with a one at its id.

    x[v] = 1 if v = token, else 0

    Args:
        tokens: ids in [0, V), any shape.
        V: size of the vocabulary.
        dtype: of the result.

    Returns:
        Vectors, tokens.shape + (V,).
    """
    vectors: Array = np.zeros((*tokens.shape, V), dtype)
    np.put_along_axis(vectors, tokens[..., np.newaxis], 1, axis=-1)
    return vectors


def embedding_forward(tokens: Tokens, embedding: Array) -> Array:
    """Looks up the vector of each token (Bengio et al. 2003).

    x = embedding[token], which equals one_hot(token) @ embedding

    Args:
        tokens: ids, (T, B).
        embedding: one vector a token, (V, E).

    Returns:
        xs, (T, B, E).
    """
    xs: Array = embedding[tokens]
    return xs


def embedding_backward(dxs: Array, tokens: Tokens, embedding: Array) -> Array:
    """Adds the gradient of every looked-up vector to the row that it came from.

    dembedding[v] = sum of dx over the places where token v was read

    Args:
        dxs: gradient of what embedding_forward returned, (T, B, E).
        tokens: ids, (T, B).
        embedding: (V, E); only its shape and dtype are used.

    Returns:
        Gradient of the embedding, (V, E).
    """
    dembedding = np.zeros_like(embedding)
    np.add.at(dembedding, tokens, dxs)  # "+=" would count a token that occurs twice only once
    return dembedding
