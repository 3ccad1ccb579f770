"""`write_rtneural` and `write_rtneural_layers` write JSON files that RTNeural loads.

RTNeural runs small networks within audio plug-ins, one time step a call. Its JSON is that of its
`python/model_utils.py` and `RTNeural/model_loader.h` (https://github.com/jatinchowdhury18/RTNeural):
`in_shape`, and `layers` with `type`, `activation`, `shape` and `weights`. Shapes, layouts and the
order of gates are those of Keras: a kernel (inputs, G H), a recurrent kernel (H, G H) and a bias; i
f c o for an LSTM, and z r h for a GRU, with two biases and the reset gate after the product.

RTNeural has no vanilla RNN. One is written as a GRU whose gates do not move: r is 1, z is 0, and
then h' = tanh(x Wx + h Wh + b), to rounding. A token enters as a one-hot vector, and an embedding
is a dense layer without a bias.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.model.atomic_files import write_atomically
from treadle.model.enums import Cell, Softmax
from treadle.model.errors import ConfigError, LayerError
from treadle.model.model_file import ModelHeader
from treadle.model.network.layer import RecurrentLayer

if TYPE_CHECKING:
    from treadle.model.model import Model

Array = npt.NDArray[np.float32]

ACTIVATIONS = ("", "tanh", "relu", "sigmoid", "softmax", "elu")
"""The functions that RTNeural applies after a dense layer; the empty name: nothing is applied."""

_SATURATED = 40.0
"""The bias of a gate that does not move: 1 - sigmoid(-40) is 1 in float32."""


@dataclass(frozen=True)
class Dense:
    """A layer without memory, y = activation(x W + b); the head of a network of layers."""

    W: Array
    """Weights, (D, O), float32."""
    b: Array
    """Bias, (O,), float32."""
    activation: str = ""
    """One of `ACTIVATIONS`."""


def write_rtneural(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model as JSON for RTNeural, whole or not at all.

    Its input is a one-hot vector of V numbers, its output V logits. The key `treadle` holds the
    tokenizer, as in a model file; RTNeural does not read it. The weights are float32, in whatever
    precision the model is viewed.

    Args:
        model: The model.
        path: The file; an existing one is replaced.

    Raises:
        ConfigError: The softmax is factored.
        OSError: The file cannot be written.
    """
    if model.network.softmax is Softmax.FACTORED:
        raise ConfigError(
            "the model has a factored softmax, which RTNeural cannot compute: export it as onnx",
            "network.softmax",
        )
    header = ModelHeader(model.network, model.tokenizer, model.training, model.default_context)
    V = model.vocabulary_size
    write_atomically(Path(path), list(_parts(V, _model_layers(model), header.to_metadata())))


def write_rtneural_layers(
    layers: Sequence[RecurrentLayer | Dense], path: str | os.PathLike[str]
) -> None:
    """Writes layers of real-valued sequences as JSON for RTNeural, whole or not at all.

    Args:
        layers: One or more, each with the outputs of the one before as its inputs.
        path: The file; an existing one is replaced.

    Raises:
        LayerError: There is no layer, one does not fit the one before, a number is not finite, or
            an activation is unknown.
        OSError: The file cannot be written.
    """
    if not layers:
        raise LayerError("there is no layer to export: give one or more")
    size = 0
    for number, layer in enumerate(layers):
        inputs, outputs = _sizes(layer, number)
        if size and inputs != size:
            raise LayerError(
                f"layer {number} takes {inputs} inputs, but layer {number - 1} has {size} outputs: "
                "give layers that follow each other"
            )
        size = outputs
    written = (_layer(layer) for layer in layers)
    write_atomically(Path(path), list(_parts(_sizes(layers[0], 0)[0], written, {})))


def _sizes(layer: RecurrentLayer | Dense, number: int) -> tuple[int, int]:
    """Returns the inputs and outputs of a layer.

    Raises:
        LayerError: A number is not finite, or it is a dense layer with arrays that do not fit, or
            with an unknown activation.
    """
    arrays = [layer.flat] if isinstance(layer, RecurrentLayer) else [layer.W, layer.b]
    if not all(np.isfinite(array).all() for array in arrays):
        raise LayerError(f"layer {number} has a number that is not finite: train it again")
    if isinstance(layer, RecurrentLayer):
        return layer.input_size, layer.hidden_size
    W = np.asarray(layer.W)
    b = np.asarray(layer.b)
    if W.ndim != 2 or b.shape != W.shape[1:] or 0 in W.shape:
        raise LayerError(
            f"layer {number} has weights of shape {W.shape} and a bias of shape {b.shape}: give "
            "(D, O) and (O,)"
        )
    if layer.activation not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in ACTIVATIONS)
        raise LayerError(
            f"layer {number} has the activation {layer.activation!r}, which RTNeural does not "
            f"know: give one of {known}"
        )
    return W.shape[0], W.shape[1]


def _parts(
    inputs: int, layers: Iterator[dict[str, Any]], metadata: Mapping[str, str]
) -> Iterator[bytes]:
    """Yields the file, one layer at a time: the numbers take many times their size as objects."""
    yield f'{{"in_shape":[null,null,{inputs}],"layers":['.encode()
    for number, layer in enumerate(layers):
        yield (b"," if number else b"") + json.dumps(layer, separators=(",", ":")).encode()
    yield b"]"
    for name, value in metadata.items():
        yield f",{json.dumps(name)}:{value}".encode()
    yield b"}\n"


def _model_layers(model: Model) -> Iterator[dict[str, Any]]:
    """Yields the layers of a model: embedding, recurrent layers, output."""
    named = model.parameters.named()
    if "embedding" in named:
        embedding = named["embedding"]
        yield _layer(Dense(embedding, np.zeros(embedding.shape[1], np.float32)))
    for number in range(model.network.layers):
        arrays = {name: named[f"{name}{number}"] for name in ("Wx", "Wh", "b")}
        if model.network.cell is Cell.GRU:
            arrays["bh"] = named[f"bh{number}"]
        yield _recurrent(model.network.cell, arrays)
    Wy = named["Wy"] if "Wy" in named else named["embedding"].T
    yield _layer(Dense(Wy, named["by"]))


def _layer(layer: RecurrentLayer | Dense) -> dict[str, Any]:
    """Returns a layer as JSON values."""
    if isinstance(layer, RecurrentLayer):
        return _recurrent(layer.cell, layer.parameters)
    weights = [np.asarray(layer.W, np.float32), np.asarray(layer.b, np.float32)]
    return _values("dense", layer.activation, weights[1].shape[0], weights)


def _recurrent(cell: Cell, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Returns a recurrent layer as JSON values.

    Args:
        cell: The cell.
        arrays: Wx (D, G), Wh (H, G), b (G,) and of a GRU bh (H,), with gates in PyTorch's order.
    """
    Wx = arrays["Wx"]
    Wh = arrays["Wh"]
    b = arrays["b"]
    H = Wh.shape[0]
    if cell is Cell.LSTM:
        return _values("lstm", "", H, [Wx, Wh, b])  # i f g o, as in Keras
    biases = np.zeros((2, 3 * H), np.float32)
    if cell is Cell.GRU:
        Wx = _update_first(Wx)
        Wh = _update_first(Wh)
        biases[0] = _update_first(b)
        biases[1, 2 * H :] = arrays["bh"]
    else:
        Wx = np.pad(Wx, ((0, 0), (2 * H, 0)))
        Wh = np.pad(Wh, ((0, 0), (2 * H, 0)))
        biases[0, :H] = -_SATURATED
        biases[0, H : 2 * H] = _SATURATED
        biases[0, 2 * H :] = b
    return _values("gru", "", H, [Wx, Wh, biases])


def _update_first(array: Array) -> Array:
    """Returns the columns z r n of the columns r z n."""
    r, z, n = np.split(array, 3, axis=-1)
    return np.concatenate([z, r, n], axis=-1)


def _values(kind: str, activation: str, outputs: int, weights: Sequence[Array]) -> dict[str, Any]:
    # As float64 a float32 is written with all of its digits, and read again to the same bits.
    return {
        "type": kind,
        "activation": activation,
        "shape": [None, None, outputs],
        "weights": [array.tolist() for array in weights],
    }
