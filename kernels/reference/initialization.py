"""`initialize` draws small random weights."""

import numpy as np
from numpy.typing import DTypeLike

from treadle.kernels.reference.arrays import GATES, Parameters


def initialize(
    cell: str,
    V: int,
    E: int,
    H: int,
    L: int,
    rng: np.random.Generator,
    dtype: DTypeLike = np.float64,
    tied: bool = False,
) -> Parameters:
    """Draws small random weights, from the distributions that PyTorch's modules start with.

    embedding ~ normal(0, 1)
    all else ~ uniform(-1/sqrt(H), 1/sqrt(H))

    A unit sums over H inputs. The bound keeps that sum from vanishing or saturating (LeCun et al.
    1998, Efficient BackProp).

    Args:
        cell: "rnn", "gru" or "lstm".
        V: size of the vocabulary.
        E: size of the embedding, or 0 for one-hot input.
        H: hidden units of every layer.
        L: layers.
        rng: source of the random numbers.
        dtype: of the weights.
        tied: leave out "Wy"; the output weights are the embedding's, and E = H.

    Returns:
        Parameters by name, as the module's docstring lists them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(L):
        D = H if layer else (E or V)
        shapes[f"Wx{layer}"] = (D, GATES[cell] * H)
        shapes[f"Wh{layer}"] = (H, GATES[cell] * H)
        shapes[f"b{layer}"] = (GATES[cell] * H,)
        if cell == "gru":
            shapes[f"bh{layer}"] = (H,)
    shapes |= {"by": (V,)} if tied else {"Wy": (H, V), "by": (V,)}

    parameters: Parameters = {"embedding": rng.standard_normal((V, E)).astype(dtype)} if E else {}
    for name, shape in shapes.items():
        parameters[name] = rng.uniform(-(H**-0.5), H**-0.5, shape).astype(dtype)
    return parameters
