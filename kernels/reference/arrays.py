"""`Array`, `Tokens`, `Parameters` and `States` are types of arrays; `GATES` counts gates."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
"""Floating-point numbers, float32 or float64."""

Tokens: TypeAlias = NDArray[np.integer[Any]]
"""Token ids; a negative target is not counted."""

Parameters: TypeAlias = dict[str, Array]
"""Weights, or their gradients, by name."""

States: TypeAlias = tuple[Array, Array | None]
"""Hidden states (L, B, H) of all layers, and of the LSTM the cell states (L, B, H)."""

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Columns of Wx, Wh and b, in units of H, by the name of the cell."""
