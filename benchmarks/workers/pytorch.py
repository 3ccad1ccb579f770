"""`load` measures PyTorch: training steps, and decoding in four ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import Maker, Options, Step

CELLS: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Network(nn.Module):  # type: ignore[misc, unused-ignore]
    """Embedding, recurrent layers, output layer."""

    def __init__(self, case: Case) -> None:
        """Draws PyTorch's own default parameters."""
        super().__init__()
        self.embedding = nn.Embedding(case.vocabulary, case.embedding)
        self.cell = CELLS[case.cell](case.embedding, case.hidden, case.layers)
        self.output = nn.Linear(case.hidden, case.vocabulary)

    def forward(self, tokens: Any, state: Any) -> tuple[Any, Any]:
        """Returns logits (T, B, V) and the state after tokens (T, B)."""
        hs, state = self.cell(self.embedding(tokens), state)
        return self.output(hs), state


def _detached(state: Any) -> Any:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def make_train(case: Case, options: Options) -> Step:
    """Makes a step: forward, backward, clip at a global norm of 1, Adam; the state is carried on.

    With `autocast`, products of bfloat16 numbers where PyTorch has them: torch.autocast.

    Args:
        case: The network and the batch.
        options: Threads, Adam's kind, and whether to use autocast.

    Returns:
        The step; it returns the tokens that it trained on.
    """
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    network = Network(case)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=options["fused"])
    tokens, targets = torch.randint(case.vocabulary, (2, case.steps, case.rows))
    state: Any = None

    def step() -> float:
        nonlocal state
        with torch.autocast("cpu", torch.bfloat16, enabled=options.get("autocast", False)):
            logits, state = network(tokens, state)
            state = _detached(state)
            loss = functional.cross_entropy(logits.view(-1, case.vocabulary), targets.view(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(tokens.numel())

    return step


def _noise(case: Case) -> Any:
    """Gumbel noise for a chunk at once: argmax(logits + noise) is a draw, the fastest there is."""
    return torch.empty(case.steps, case.vocabulary).exponential_().log_().neg_()


def _by_module(case: Case, network: Network) -> Step:
    """nn.LSTM called once a token."""
    token = torch.zeros(1, 1, dtype=torch.long)
    state = None

    def step() -> float:
        nonlocal token, state
        with torch.inference_mode():
            for noise in _noise(case):
                logits, state = network(token, state)
                token = torch.argmax(logits[0] + noise, dim=1, keepdim=True)
        return float(case.steps)

    return step


def _by_cell(case: Case, network: Network) -> Step:
    """nn.LSTMCell called once a token."""
    cell = nn.LSTMCell(case.embedding, case.hidden)
    h = c = torch.zeros(1, case.hidden)
    token = torch.zeros(1, dtype=torch.long)

    def step() -> float:
        nonlocal token, h, c
        with torch.inference_mode():
            for noise in _noise(case):
                h, c = cell(network.embedding(token), (h, c))
                token = torch.argmax(network.output(h) + noise, dim=1)
        return float(case.steps)

    return step


def hand_written(
    table: torch.Tensor,
    Wh: torch.Tensor,
    Wy: torch.Tensor,
    by: torch.Tensor,
    token: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws a chunk of tokens with the input folded into a table (V, 4H), as ours has it."""
    H = h.size(1)
    for n in range(noise.size(0)):
        a = torch.addmm(torch.index_select(table, 0, token), h, Wh)
        gates = torch.sigmoid(a)
        i = gates[:, :H]
        f = gates[:, H : 2 * H]
        o = gates[:, 3 * H :]
        c = torch.addcmul(f * c, i, torch.tanh(a[:, 2 * H : 3 * H]))
        h = o * torch.tanh(c)
        token = torch.argmax(torch.addmm(by, h, Wy) + noise[n], dim=1)
    return token, h, c


def _by_hand(case: Case, network: Network, run: Any) -> Step:
    cell = network.cell
    bias = cell.bias_ih_l0 + cell.bias_hh_l0
    table = (network.embedding.weight @ cell.weight_ih_l0.T + bias).detach()
    Wh = cell.weight_hh_l0.detach().T.contiguous()
    Wy = network.output.weight.detach().T.contiguous()
    by = network.output.bias.detach()
    h = c = torch.zeros(1, case.hidden)
    token = torch.zeros(1, dtype=torch.long)

    def step() -> float:
        nonlocal token, h, c
        with torch.inference_mode():
            token, h, c = run(table, Wh, Wy, by, token, h, c, _noise(case))
        return float(case.steps)

    return step


def make_decode(case: Case, options: Options) -> Step:
    """Draws a chunk of tokens in one of four ways."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    network = Network(case)
    way = options["way"]
    if way == "module":
        return _by_module(case, network)
    if way == "cell":
        return _by_cell(case, network)
    return _by_hand(
        case, network, hand_written if way == "hand" else torch.jit.script(hand_written)
    )


MAKERS: dict[str, Maker] = {"train": make_train, "decode": make_decode}


def load() -> tuple[str, Maker]:
    """Returns PyTorch's version and what makes cases."""
    return torch.__version__, lambda case, options: MAKERS[case.kind](case, options)
