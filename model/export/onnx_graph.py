"""`write_onnx` writes a model as an ONNX file, which ONNX Runtime and its like compute with.

A file has one graph. It reads any number of tokens of any number of sequences and takes and returns
the states, so it serves both phases of generating: the prefill, which reads a prompt in one run,
and the steps, which read one token each. Two graphs would hold the weights twice, or put them into
a second file that can be lost.

The operators are those of opset 17: RNN, GRU (with linear_before_reset) and LSTM, one node a
layer. ONNX orders gates differently from PyTorch, z r n and i o f g, and has two biases where
Treadle keeps one; see https://onnx.ai/onnx/operators/. docs/export.md describes inputs, outputs and
metadata.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.model.atomic_files import write_atomically
from treadle.model.enums import Cell
from treadle.model.errors import ConfigError
from treadle.model.export.packages import required
from treadle.model.model_file import ModelHeader

if TYPE_CHECKING:
    from treadle.model.model import Model

Array = npt.NDArray[Any]

OPSET = 17
"""Every ONNX Runtime since 1.12 of 2022 has it."""

_IR_VERSION = 8
"""The version of the file format that belongs to the opset."""

_LARGEST = (1 << 31) - (16 << 20)
"""Most bytes of weights and metadata: a message of protobuf ends at 2 GiB."""

_END = np.iinfo(np.int64).max
"""The end of a slice that goes to the end of its axis."""

_OPERATORS = {Cell.RNN: "RNN", Cell.GRU: "GRU", Cell.LSTM: "LSTM"}

_ORDER = {Cell.RNN: (0,), Cell.GRU: (1, 0, 2), Cell.LSTM: (0, 3, 1, 2)}
"""Where each gate of ONNX is in Treadle: z r n of r z n, and i o f g of i f g o."""


def write_onnx(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model as an ONNX file, whole or not at all.

    It holds the float32 weights, in whatever precision the model is viewed.

    Args:
        model: The model.
        path: The file; an existing one is replaced.

    Raises:
        ConfigError: The package onnx is not installed, or the model is too large for a file.
        OSError: The file cannot be written.
    """
    write_atomically(Path(path), onnx_model(model).SerializeToString())


def onnx_model(model: Model) -> Any:
    """Makes the ONNX form of a model.

    Args:
        model: The model.

    Returns:
        An `onnx.ModelProto`, which has passed the full check of the package onnx.

    Raises:
        ConfigError: The package onnx is not installed, or the model is too large for a file.
    """
    onnx = required("onnx", "onnx")
    metadata = _metadata(model)
    size = 4 * model.parameter_count + sum(len(value.encode()) for value in metadata.values())
    if size > _LARGEST:
        raise ConfigError(
            f"the model takes {size:,} bytes, but an ONNX file holds {_LARGEST:,}: export it as "
            "safetensors"
        )
    builder = _Graph(onnx, model)
    graph = onnx.helper.make_graph(
        builder.nodes(), "treadle", builder.inputs(), builder.outputs(), builder.initializers()
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    made = onnx.helper.make_model(
        graph, producer_name="treadle", opset_imports=[opset], ir_version=_IR_VERSION
    )
    onnx.helper.set_model_props(made, metadata)
    onnx.checker.check_model(made, full_check=True)
    return made


def state_names(cell: Cell) -> dict[str, str]:
    """Returns the names of the states: of each input, the output that has the next value."""
    names = {"h": "h_next"}
    return {**names, "c": "c_next"} if cell is Cell.LSTM else names


def _metadata(model: Model) -> dict[str, str]:
    """Returns what a reader of the file needs besides the graph."""
    header = ModelHeader(model.network, model.tokenizer, model.training, model.default_context)
    states = {
        name: {"next": following, "shape": [model.network.layers, "B", model.network.hidden_size]}
        for name, following in state_names(model.network.cell).items()
    }
    return {
        **header.to_metadata(),
        "treadle.states": json.dumps(states),
        "treadle.content_hash": model.content_hash.hex(),
    }


class _Graph:
    """The parts of a graph: hidden states are (T, B, H) inside, time first, as its operators."""

    def __init__(self, onnx: Any, model: Model) -> None:
        self._onnx = onnx
        self._shape = model.parameters.shape
        self._parameters = model.parameters.named()
        self._states = state_names(self._shape.cell)
        self._arrays: dict[str, Array] = {}
        self._nodes: list[Any] = []

    def inputs(self) -> list[Any]:
        """Returns the tokens, the states, and the first step whose results are returned."""
        types = self._onnx.TensorProto
        make = self._onnx.helper.make_tensor_value_info
        states = [make(name, types.FLOAT, self._state_shape()) for name in self._states]
        return [
            make("tokens", types.INT64, ["B", "T"]),
            *states,
            make("from_step", types.INT64, [1]),
        ]

    def outputs(self) -> list[Any]:
        """Returns the log-probabilities and the next states."""
        types = self._onnx.TensorProto
        make = self._onnx.helper.make_tensor_value_info
        states = [make(name, types.FLOAT, self._state_shape()) for name in self._states.values()]
        return [
            make("log_probabilities", types.FLOAT, ["B", "steps", self._shape.V]),
            *states,
        ]

    def _state_shape(self) -> list[int | str]:
        return [self._shape.L, "B", self._shape.H]

    def nodes(self) -> list[Any]:
        """Returns the operators, in the order of their execution."""
        self._add("Transpose", ["tokens"], ["tokens_by_step"], perm=[1, 0])
        self._add_input()
        for layer in range(self._shape.L):
            self._add_layer(layer)
        for name, following in self._states.items():
            parts = [f"{name}{layer}_next" for layer in range(self._shape.L)]
            self._add("Concat", parts, [following], axis=0)
        self._add_output()
        return self._nodes

    def initializers(self) -> list[Any]:
        """Returns the weights and constants of the nodes."""
        convert = self._onnx.numpy_helper.from_array
        arrays = self._arrays.items()
        return [convert(np.ascontiguousarray(array), name) for name, array in arrays]

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **settings: Any) -> None:
        name = outputs[0] or outputs[1]
        node = self._onnx.helper.make_node(operator, inputs, outputs, f"to_{name}", **settings)
        self._nodes.append(node)

    def _constant(self, name: str, array: Array) -> str:
        """Stores an array with the graph."""
        self._arrays[name] = array
        return name

    def _integers(self, name: str, *numbers: int) -> str:
        return self._constant(name, np.array(numbers, np.int64))

    def _add_input(self) -> None:
        """Adds the first layer's input, (T, B, E), or (T, B, V) where it is one-hot."""
        if self._shape.E:
            embedding = self._constant("embedding", self._parameters["embedding"])
            self._add("Gather", [embedding, "tokens_by_step"], ["xs0"], axis=0)
            return
        depth = self._integers("vocabulary_size", self._shape.V)
        values = self._constant("off_on", np.array([0, 1], np.float32))
        self._add("OneHot", ["tokens_by_step", depth, values], ["xs0"], axis=-1)

    def _add_layer(self, layer: int) -> None:
        """Adds a recurrent layer: it makes hs of its inputs and its initial states."""
        W, R, B = self._layer_weights(layer)
        axis = self._integers("layer_axis", 0)
        start = self._integers(f"layer{layer}", layer)
        end = self._integers(f"layer{layer + 1}", layer + 1)
        for name in self._states:
            self._add("Slice", [name, start, end, axis], [f"{name}{layer}"])
        inputs = [f"xs{layer}", W, R, B, ""]  # the empty one: all sequences have T steps
        inputs += [f"{name}{layer}" for name in self._states]
        outputs = [f"directions{layer}", *(f"{name}{layer}_next" for name in self._states)]
        settings = {"linear_before_reset": 1} if self._shape.cell is Cell.GRU else {}
        operator = _OPERATORS[self._shape.cell]
        self._add(operator, inputs, outputs, hidden_size=self._shape.H, **settings)
        direction = self._integers("direction_axis", 1)
        self._add("Squeeze", [f"directions{layer}", direction], [f"xs{layer + 1}"])

    def _layer_weights(self, layer: int) -> tuple[str, str, str]:
        """Stores a layer's weights in the layout of ONNX: (1, GH, D), (1, GH, H) and (1, 2GH)."""
        cell = self._shape.cell
        b = self._parameters[f"b{layer}"]
        bh = np.zeros_like(b)
        if cell is Cell.GRU:
            bh[2 * self._shape.H :] = self._parameters[f"bh{layer}"]
        biases = np.concatenate([self._gates(b), self._gates(bh)])
        return (
            self._constant(f"W{layer}", self._gates(self._parameters[f"Wx{layer}"].T)[np.newaxis]),
            self._constant(f"R{layer}", self._gates(self._parameters[f"Wh{layer}"].T)[np.newaxis]),
            self._constant(f"B{layer}", biases[np.newaxis]),
        )

    def _gates(self, rows: Array) -> Array:
        """Returns rows of gates, (GH, ...), in the order of ONNX."""
        cell = self._shape.cell
        parts = np.split(rows, len(_ORDER[cell]))
        return np.concatenate([parts[gate] for gate in _ORDER[cell]])

    def _add_output(self) -> None:
        """Adds the output layer: the log-probabilities from `from_step` on."""
        end = self._integers("last", _END)
        axis = self._integers("step_axis", 0)
        self._add("Slice", [f"xs{self._shape.L}", "from_step", end, axis], ["hs_by_step"])
        self._add("Transpose", ["hs_by_step"], ["hs"], perm=[1, 0, 2])
        if self._shape.tied:
            self._add("Transpose", ["embedding"], ["Wy"], perm=[1, 0])
        else:
            self._constant("Wy", self._parameters["Wy"])
        by = self._constant("by", self._parameters["by"])
        self._add("MatMul", ["hs", "Wy"], ["products"])
        self._add("Add", ["products", by], ["logits"])
        if self._shape.clusters:
            self._add_clusters()
        else:
            self._add("LogSoftmax", ["logits"], ["log_probabilities"], axis=-1)

    def _add_clusters(self) -> None:
        """Adds the log-probabilities of a factored softmax, from `hs` and `logits`."""
        cuts = (*self._shape.clusters, self._shape.V)
        Wc = self._constant("Wc", self._parameters["Wc"])
        bc = self._constant("bc", self._parameters["bc"])
        self._add("MatMul", ["hs", Wc], ["cluster_products"])
        self._add("Add", ["cluster_products", bc], ["cluster_logits"])
        self._add_slice("logits", 0, cuts[0], "head_logits")
        self._add("Concat", ["head_logits", "cluster_logits"], ["first_level"], axis=-1)
        self._add("LogSoftmax", ["first_level"], ["first_log_probabilities"], axis=-1)
        parts = ["head_log_probabilities"]
        self._add_slice("first_log_probabilities", 0, cuts[0], parts[0])
        for c, first in enumerate(cuts[:-1]):
            self._add_slice("logits", first, cuts[c + 1], f"logits_of{c}")
            self._add("LogSoftmax", [f"logits_of{c}"], [f"within{c}"], axis=-1)
            place = cuts[0] + c
            self._add_slice("first_log_probabilities", place, place + 1, f"cluster{c}")
            self._add("Add", [f"cluster{c}", f"within{c}"], [f"log_probabilities_of{c}"])
            parts.append(f"log_probabilities_of{c}")
        self._add("Concat", parts, ["log_probabilities"], axis=-1)

    def _add_slice(self, name: str, first: int, last: int, out: str) -> None:
        """Adds the slice of the last axis from `first` to `last`."""
        start = self._integers(f"{out}_first", first)
        end = self._integers(f"{out}_last", last)
        axis = self._integers("token_axis", 2)
        self._add("Slice", [name, start, end, axis], [out])
