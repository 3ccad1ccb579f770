"""`load` measures PyTorch's dynamic quantization: int8 weights, inputs quantized as they come."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized import dynamic as quantized_nn
from torch.ao.quantization import quantize_dynamic

from treadle.benchmarks.answers import scoring_answers
from treadle.benchmarks.networks import Weights, network_weights, scored_tokens
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.pytorch import (
    CellNetwork,
    Network,
    by_cell,
    by_module,
    drawing,
    folded,
    set_weights,
)
from treadle.benchmarks.workers.serve import CheckedStep, Maker, Options, Step


def quantized(network: Any) -> Any:
    """Returns a network with int8 weights wherever PyTorch has an operator for them."""
    kinds = {nn.LSTM, nn.GRU, nn.LSTMCell, nn.Linear}
    return quantize_dynamic(network, kinds, dtype=torch.qint8)


def _linear(weight: Any, bias: Any) -> Any:
    """Returns an int8 layer x W + b of float32 weights (inputs, outputs)."""
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T))
        layer.bias.copy_(bias)
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig  # type: ignore[assignment, unused-ignore]
    return quantized_nn.Linear.from_float(layer)


class HandWritten(nn.Module):  # type: ignore[misc, unused-ignore]
    """Draws a chunk of tokens with the input folded into a table (V, 4H), as ours has it."""

    def __init__(self, weights: Weights) -> None:
        """Quantizes recurrent and output weights."""
        super().__init__()
        Wh = weights["Wh0"]
        self.table = folded(weights)
        self.recurrence = _linear(Wh, torch.zeros(Wh.shape[1]))
        self.output = _linear(weights["Wy"], torch.from_numpy(weights["by"]))

    def forward(
        self, noise: torch.Tensor, token: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the last token and the states after it."""
        H = h.size(1)
        for n in range(noise.size(0)):
            a = torch.index_select(self.table, 0, token) + self.recurrence(h)
            gates = torch.sigmoid(a)
            i = gates[:, :H]
            f = gates[:, H : 2 * H]
            o = gates[:, 3 * H :]
            c = torch.addcmul(f * c, i, torch.tanh(a[:, 2 * H : 3 * H]))
            h = o * torch.tanh(c)
            token = torch.argmax(self.output(h) + noise[n], dim=1)
        return token, h, c


def make_decode(case: Case, options: Options) -> Step:
    """Draws a chunk of tokens in one of four ways."""
    weights = network_weights(case)
    way = options["way"]
    if way == "module":
        return drawing(case, by_module(quantized(set_weights(Network(case), weights))))
    if way == "cell":
        return drawing(case, by_cell(quantized(set_weights(CellNetwork(case), weights))))
    network: Any = HandWritten(weights)
    if way == "script":
        network = torch.jit.script(network)
    return drawing(case, lambda noise, carry: network(noise, *carry))


def make_score(case: Case, options: Options) -> Step:
    """Makes one forward pass over a batch, to the logits."""
    network = quantized(set_weights(Network(case), network_weights(case)))
    read = scored_tokens(case)
    tokens = torch.from_numpy(read).long()

    def step() -> float:
        with torch.inference_mode():
            network(tokens, None)
        return float(tokens.numel())

    def answers() -> dict[str, Any]:
        with torch.inference_mode():
            logits, _ = network(tokens, None)
        return scoring_answers(read, logits.numpy())

    return CheckedStep(step, answers)


MAKERS: dict[str, Maker] = {"decode": make_decode, "score": make_score}


def make(case: Case, options: Options) -> Step:
    """Makes a case with one of PyTorch's libraries for int8 products."""
    torch.backends.quantized.engine = options["engine"]
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    return MAKERS[case.kind](case, options)


def load() -> tuple[str, Maker]:
    """Returns PyTorch's version and what makes cases."""
    return torch.__version__, make
