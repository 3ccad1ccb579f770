r"""`to_torch` and `from_torch` convert parameters to the names and shapes of PyTorch, and back.

In memory a layer's weights are (inputs, gates x H), multiplied from the left; PyTorch has the
transposes. The gates have PyTorch's order in both. PyTorch has two biases where one is enough: `b`
is written as `bias_ih` and zeros as `bias_hh`, and reading adds them. Only the GRU's candidate n
keeps both, since r multiplies the hidden side's: the last third of `b`, and `bh`.

What Treadle wrote is read back byte for byte. A network that Treadle cannot compute with (two
directions, projections, other modules) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.model.config import NetworkConfig
from treadle.model.enums import Cell, Softmax
from treadle.model.errors import ConfigError, LoadError
from treadle.model.network.shape import GATES

Array = NDArray[np.float32]
Read = dict[str, NDArray[np.floating[Any]]]

_EMBEDDING = re.compile(r"(?:embedding|embed|encoder)\.(weight)")
_OUTPUT = re.compile(r"(?:output|head|linear|fc|decoder)\.(weight|bias)")
_CLUSTERS = re.compile(r"clusters\.(weight|bias)")
_FIRST = "clusters.first"
_RECURRENT = re.compile(r"(?:rnn|lstm|gru)\.((?:weight|bias)_(?:ih|hh)_l(?:0|[1-9]\d{0,3}))")
_FORMS = (
    (_EMBEDDING, "embedding."),
    (_OUTPUT, "output."),
    (_RECURRENT, "rnn."),
    (_CLUSTERS, "clusters."),
)
_IN_FILES = {
    "embedding": "embedding.weight",
    "Wx": "rnn.weight_ih_l{}",
    "Wh": "rnn.weight_hh_l{}",
    "b": "rnn.bias_ih_l{0} + rnn.bias_hh_l{0}",
    "bh": "rnn.bias_hh_l{}",
    "Wy": "output.weight",
    "by": "output.bias",
    "Wc": "clusters.weight",
    "bc": "clusters.bias",
}
"""What each parameter is in a file, with the number of its layer."""
_KNOWN = "embedding.weight, rnn.{weight,bias}_{ih,hh}_l{0,1,...} and output.{weight,bias}"


def to_torch(
    parameters: Mapping[str, Array], cell: Cell, layers: int, clusters: tuple[int, ...] = ()
) -> dict[str, NDArray[Any]]:
    """Converts parameters to the names and shapes of PyTorch.

    Args:
        parameters: `embedding` (V, E), if there is one; for each layer l `Wx{l}` (D, G H),
            `Wh{l}` (H, G H), `b{l}` (G H,) and, for the GRU, `bh{l}` (H,); `Wy` (H, V), unless it
            is the embedding's transpose, and `by` (V,); of a factored softmax `Wc` (H, C) and
            `bc` (C,); all float32.
        cell: The recurrent cell.
        layers: Recurrent layers.
        clusters: The first token of each cluster of a factored softmax; empty where it is full.

    Returns:
        `embedding.weight`, `rnn.weight_ih_l{l}`, `rnn.weight_hh_l{l}`, `rnn.bias_ih_l{l}`,
        `rnn.bias_hh_l{l}`, `output.weight` and `output.bias`: new arrays, float32, C order; and
        of a factored softmax `clusters.weight`, `clusters.bias` and `clusters.first`, int64.
    """
    named: dict[str, NDArray[Any]] = {}
    if "embedding" in parameters:
        named["embedding.weight"] = parameters["embedding"]
    for layer in range(layers):
        bias = parameters[f"b{layer}"]
        hidden_bias = np.zeros_like(bias)
        if cell is Cell.GRU:
            hidden_bias[2 * (len(bias) // 3) :] = parameters[f"bh{layer}"]
        named[f"rnn.weight_ih_l{layer}"] = parameters[f"Wx{layer}"].T
        named[f"rnn.weight_hh_l{layer}"] = parameters[f"Wh{layer}"].T
        named[f"rnn.bias_ih_l{layer}"] = bias
        named[f"rnn.bias_hh_l{layer}"] = hidden_bias
    # Tied weights are written twice, so that a module without tied weights loads them as well.
    output = parameters["Wy"].T if "Wy" in parameters else parameters["embedding"]
    named["output.weight"] = output
    named["output.bias"] = parameters["by"]
    if clusters:
        named["clusters.weight"] = parameters["Wc"].T
        named["clusters.bias"] = parameters["bc"]
    named = {name: np.array(array, np.float32, order="C") for name, array in named.items()}
    return named | ({_FIRST: np.array(clusters, np.int64)} if clusters else {})


def from_torch(state_dict: Mapping[str, object]) -> tuple[Cell, dict[str, Array]]:
    """Converts what PyTorch trained; cell and sizes follow from the shapes.

    Args:
        state_dict: Floating-point arrays, or what `np.asarray` reads as such. The modules may be
            called embedding, embed or encoder; rnn, lstm or gru; output, head, linear, fc or
            decoder. Biases left out (`bias=False`) are zeros. An `nn.RNN` must use tanh: its
            weights do not show whether it does.

    Returns:
        The cell, and the parameters as `to_torch` takes them: new arrays, float32, C order.

    Raises:
        LoadError: A name is unknown, double or missing, a shape does not fit the others, a value
            is not a finite float32, or the network is bidirectional or projected.
    """
    arrays = _read(state_dict)
    layers = _count_layers(arrays)
    cell, hidden = _cell_of(arrays["rnn.weight_hh_l0"])
    _check_shapes(arrays, cell, hidden, layers)
    parameters: dict[str, NDArray[np.floating[Any]]] = {}
    if "embedding.weight" in arrays:
        parameters["embedding"] = arrays["embedding.weight"]
    for layer in range(layers):
        parameters[f"Wx{layer}"] = arrays[f"rnn.weight_ih_l{layer}"].T
        parameters[f"Wh{layer}"] = arrays[f"rnn.weight_hh_l{layer}"].T
        parameters |= _biases(arrays, cell, hidden, layer)
    weight = arrays["output.weight"]
    parameters["Wy"] = weight.T
    parameters["by"] = arrays.get("output.bias", np.zeros(len(weight), np.float32))
    if "clusters.weight" in arrays:
        weight = arrays["clusters.weight"]
        parameters["Wc"] = weight.T
        parameters["bc"] = arrays.get("clusters.bias", np.zeros(len(weight), np.float32))
    return cell, {name: _as_float32(name, array) for name, array in parameters.items()}


def clusters_of(state_dict: Mapping[str, object]) -> tuple[int, ...]:
    """Returns the first token of each cluster of a factored softmax; none where it is full.

    Args:
        state_dict: As `from_torch` takes it.

    Raises:
        LoadError: `clusters.first` does not belong to `clusters.weight`, or is no list of tokens.
    """
    weight = state_dict.get("clusters.weight")
    first = state_dict.get(_FIRST)
    if weight is None and first is None:
        return ()
    if weight is None or first is None:
        lacking = _FIRST if first is None else "clusters.weight"
        raise LoadError(f"the state dict lacks {lacking}: a factored softmax needs both")
    tokens = np.asarray(first)
    rows = np.asarray(weight).shape[:1]
    if tokens.dtype.kind not in "iu" or tokens.shape != rows or not tokens.size:
        raise LoadError(
            f"{_FIRST} is of type {tokens.dtype} and shape {tokens.shape}: give the first token of "
            "each row of clusters.weight, as int64"
        )
    return tuple(tokens.tolist())


def network_of(
    cell: Cell, parameters: Mapping[str, Array], clusters: tuple[int, ...] = ()
) -> NetworkConfig:
    """Returns the network's settings, which follow from the shapes of its parameters.

    Args:
        cell: The recurrent cell.
        parameters: As `from_torch` returns them.
        clusters: As `clusters_of` returns them.

    Raises:
        LoadError: It is larger than a network of Treadle may be.
    """
    layers = sum(name.startswith("Wh") for name in parameters)
    embedding_size = parameters["embedding"].shape[1] if "embedding" in parameters else 0
    try:
        return NetworkConfig(
            cell,
            parameters["Wh0"].shape[0],
            layers,
            embedding_size,
            softmax=Softmax.FACTORED if clusters else Softmax.FULL,
            softmax_clusters=clusters,
        )
    except ConfigError as fault:
        raise LoadError(f"the network is too large: {fault}") from fault


def _read(state_dict: Mapping[str, object]) -> Read:
    """Returns the arrays under the names that `to_torch` gives."""
    arrays: Read = {}
    for given, value in state_dict.items():
        if given == _FIRST:  # see `clusters_of`
            continue
        name = _canonical(str(given))
        if name in arrays:
            raise LoadError(f"the state dict holds {name} twice, once as {given}")
        try:
            array = np.asarray(value)
        except Exception as fault:  # an array of another library may raise anything
            raise LoadError(f"{given} cannot be read as an array: {fault}") from fault
        if array.dtype.kind != "f":
            raise LoadError(f"{given} is of type {array.dtype}: give it as float32")
        arrays[name] = array
    return arrays


def _canonical(given: str) -> str:
    for form, module in _FORMS:
        match = form.fullmatch(given)
        if match is not None:
            return module + match[1]
    if given.endswith("_reverse"):
        raise LoadError(
            f"{given} belongs to a bidirectional network, which cannot generate: train one with "
            "bidirectional=False"
        )
    if "weight_hr_" in given:
        raise LoadError(f"{given} is of a network with projections: train it with proj_size=0")
    raise LoadError(f"{given!r} is not a parameter of a Treadle network: give only {_KNOWN}")


def _count_layers(arrays: Read) -> int:
    """Returns the number of layers.

    Raises:
        LoadError: A weight of one of them is missing.
    """
    layers = 1 + max((int(name.rpartition("_l")[2]) for name in arrays if "_l" in name), default=0)
    weights = [f"rnn.weight_{side}_l{layer}" for layer in range(layers) for side in ("ih", "hh")]
    for name in (*weights, "output.weight"):
        if name not in arrays:
            raise LoadError(f"the state dict lacks {name}: give all of the network's weights")
    return layers


def _cell_of(weight: NDArray[Any]) -> tuple[Cell, int]:
    """Returns the cell and H, which follow from the shape of `weight_hh_l0`, (G H, H)."""
    if weight.ndim == 2 and weight.shape[1] > 0:
        for cell, gates in GATES.items():
            if weight.shape[0] == gates * weight.shape[1]:
                return cell, weight.shape[1]
    raise LoadError(
        f"rnn.weight_hh_l0 has shape {weight.shape}, which fits no cell: "
        "(H, H) is an RNN's, (3H, H) a GRU's and (4H, H) an LSTM's"
    )


def _check_shapes(arrays: Read, cell: Cell, hidden: int, layers: int) -> None:
    expected = _shapes(arrays, GATES[cell] * hidden, hidden, layers)
    for name, array in arrays.items():
        if array.shape != expected[name] or 0 in array.shape:
            raise LoadError(f"{name} has shape {array.shape}, not {expected[name]}")
    if "clusters.bias" in arrays and "clusters.weight" not in arrays:
        raise LoadError("the state dict lacks clusters.weight: give all of the network's weights")
    biases = [name for name in expected if name.startswith("rnn.bias")]
    missing = [name for name in biases if name not in arrays]
    if 0 < len(missing) < len(biases):
        raise LoadError(f"the state dict lacks {missing[0]}: give all biases of rnn, or none")


def _shapes(arrays: Read, gates: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape that every array must have, given those of `output` and `embedding`."""
    vocabulary = arrays["output.weight"].shape[0] if arrays["output.weight"].ndim else 0
    embedding = arrays.get("embedding.weight")
    size = vocabulary if embedding is None else (*embedding.shape, 0, 0)[1]
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary, size)}
    for layer in range(layers):
        shapes[f"rnn.weight_ih_l{layer}"] = (gates, hidden if layer else size)
        shapes[f"rnn.weight_hh_l{layer}"] = (gates, hidden)
        shapes[f"rnn.bias_ih_l{layer}"] = shapes[f"rnn.bias_hh_l{layer}"] = (gates,)
    clusters = np.shape(arrays["clusters.weight"])[:1] if "clusters.weight" in arrays else (0,)
    return shapes | {
        "output.weight": (vocabulary, hidden),
        "output.bias": (vocabulary,),
        "clusters.weight": (*clusters, hidden),
        "clusters.bias": clusters,
    }


def _biases(arrays: Read, cell: Cell, hidden: int, layer: int) -> Read:
    zeros = np.zeros(GATES[cell] * hidden, np.float32)
    inputs = arrays.get(f"rnn.bias_ih_l{layer}", zeros)
    hiddens = arrays.get(f"rnn.bias_hh_l{layer}", zeros).astype(np.float64)
    if cell is not Cell.GRU:
        return {f"b{layer}": _sum(inputs, hiddens)}
    own = hiddens[2 * hidden :].copy()
    hiddens[2 * hidden :] = 0
    return {f"b{layer}": _sum(inputs, hiddens), f"bh{layer}": own}


def _sum(inputs: NDArray[np.floating[Any]], hiddens: NDArray[np.float64]) -> NDArray[np.float64]:
    # If there is nothing to add, even the sign of a zero stays. Numbers that are not finite are
    # refused later, by name.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(hiddens == 0, inputs, inputs + hiddens)


def _as_float32(name: str, array: NDArray[np.floating[Any]]) -> Array:
    with np.errstate(over="ignore"):
        result = np.array(array, np.float32, order="C")
    if not np.isfinite(result).all():
        kind = name.rstrip("0123456789")
        text = _IN_FILES[kind].format(name[len(kind) :])
        raise LoadError(f"{text} contains a value that is not a finite float32: train it again")
    return result
