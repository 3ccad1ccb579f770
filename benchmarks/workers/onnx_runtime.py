"""`make` measures ONNX Runtime: the forward pass over a batch, to logits and no further."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from treadle.benchmarks.answers import scoring_answers
from treadle.benchmarks.networks import Array, network_weights, scored_tokens
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import CheckedStep, Maker, Options, Step

GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Where ours are that ONNX has first, second, ...: i o f c for i f g o, z r h for r z n."""


def _in_order(case: Case, weights: Array) -> Array:
    """Puts the gates of weights (..., G) in ONNX's order."""
    gates = np.split(weights, len(GATE_ORDER[case.cell]), axis=-1)
    return np.concatenate([gates[number] for number in GATE_ORDER[case.cell]], axis=-1)


def _initializers(case: Case) -> list[Any]:
    weights = network_weights(case)
    H = case.hidden
    hidden_bias = np.zeros_like(weights["b0"])
    if case.cell == "gru":
        hidden_bias[2 * H :] = weights["bh0"]
    biases = [_in_order(case, weights["b0"]), _in_order(case, hidden_bias)]
    state = np.zeros((1, case.rows, H), np.float32)
    arrays = {
        "embedding": weights["embedding"],
        "W": _in_order(case, weights["Wx0"]).T[np.newaxis],
        "R": _in_order(case, weights["Wh0"]).T[np.newaxis],
        "b": np.concatenate(biases)[np.newaxis],
        "Wy": weights["Wy"],
        "by": weights["by"],
        "h0": state,
        "c0": state,
    }
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()
    ]
    return [*tensors, numpy_helper.from_array(np.array([1], np.int64), "direction")]


def _graph(case: Case) -> onnx.ModelProto:
    """Gather, one LSTM or GRU node, and the output layer over all steps."""
    kind: dict[str, Any] = {"hidden_size": case.hidden}
    inputs = ["xs", "W", "R", "b", "", "h0"]
    if case.cell == "lstm":
        inputs.append("c0")
    else:
        kind["linear_before_reset"] = 1  # PyTorch's GRU, and ours
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["xs"]),
        helper.make_node(case.cell.upper(), inputs, ["directions"], **kind),
        helper.make_node("Squeeze", ["directions", "direction"], ["hs"]),
        helper.make_node("MatMul", ["hs", "Wy"], ["products"]),
        helper.make_node("Add", ["products", "by"], ["logits"]),
    ]
    shape = [case.steps, case.rows]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, case.vocabulary])
    graph = helper.make_graph(nodes, "scoring", [tokens], [logits], _initializers(case))
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _quantized(model: onnx.ModelProto, options: Options) -> bytes:
    """Returns the model with int8 weights; of a GRU, only the output layer can have them."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["LSTM", "MatMul"],
            per_channel=options["per_channel"],
            weight_type=QuantType.QInt8 if options["signed"] else QuantType.QUInt8,
        )
        return path.read_bytes()


def make(case: Case, options: Options) -> Step:
    """Makes one forward pass, its buffers bound beforehand."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    settings.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    model = _graph(case)
    content = _quantized(model, options) if options.get("int8") else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, settings, providers=providers)
    tokens = scored_tokens(case).astype(np.int64)
    logits = np.empty((*tokens.shape, case.vocabulary), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("tokens", tokens)
    address = logits.__array_interface__["data"][0]
    binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, address)

    def step() -> float:
        session.run_with_iobinding(binding)
        return float(logits.size // case.vocabulary)  # also keeps the bound array alive

    def answers() -> dict[str, Any]:
        step()
        return scoring_answers(tokens, logits)

    return CheckedStep(step, answers)


def load() -> tuple[str, Maker]:
    """Returns ONNX Runtime's version and what makes cases."""
    return str(onnxruntime.__version__), make
