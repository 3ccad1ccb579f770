"""`make` measures ONNX Runtime: the forward pass over a batch, to logits and no further."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import Maker, Options, Step
from treadle.kernels.reference import GATES


def _weights(case: Case) -> list[Any]:
    rng = np.random.default_rng(0)
    H = case.hidden
    V = case.vocabulary
    E = case.embedding
    G = GATES[case.cell] * case.hidden
    sizes = {
        "embedding": (V, E),
        "W": (1, G, E),
        "R": (1, G, H),
        "b": (1, 2 * G),
        "Wy": (H, V),
        "by": (V,),
        "h0": (1, case.rows, H),
        "c0": (1, case.rows, H),
    }
    arrays = {name: rng.uniform(-1, 1, size) / H**0.5 for name, size in sizes.items()}
    tensors = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    return [*tensors, numpy_helper.from_array(np.array([1], np.int64), "direction")]


def _graph(case: Case) -> bytes:
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
    graph = helper.make_graph(nodes, "scoring", [tokens], [logits], _weights(case))
    opsets = [helper.make_opsetid("", 17)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def make(case: Case, options: Options) -> Step:
    """Makes one forward pass, its buffers bound beforehand."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options["threads"]
    settings.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(_graph(case), settings, providers=providers)
    tokens = np.random.default_rng(0).integers(case.vocabulary, size=(case.steps, case.rows))
    logits = np.empty((*tokens.shape, case.vocabulary), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("tokens", tokens)
    address = logits.__array_interface__["data"][0]
    binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, address)

    def step() -> float:
        session.run_with_iobinding(binding)
        return float(logits.size // case.vocabulary)  # also keeps the bound array alive

    return step


def load() -> tuple[str, Maker]:
    """Returns ONNX Runtime's version and what makes cases."""
    return str(onnxruntime.__version__), make
