"""`load` measures PyTorch: training steps, and decoding in four ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from treadle.benchmarks.answers import FIRST_TOKEN, MOST_ROWS
from treadle.benchmarks.networks import Weights, network_weights
from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import CheckedStep, Maker, Options, Step

CELLS: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

Carry = tuple[Any, Any, Any]
"""The last token, h and c."""

Advance = Callable[[Any, Carry], Carry]
"""Draws a token a row of noise (steps, rows, V)."""


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


class CellNetwork(nn.Module):  # type: ignore[misc, unused-ignore]
    """The same for one step at a time, with an LSTMCell."""

    def __init__(self, case: Case) -> None:
        """Draws PyTorch's own default parameters."""
        super().__init__()
        self.embedding = nn.Embedding(case.vocabulary, case.embedding)
        self.cell = nn.LSTMCell(case.embedding, case.hidden)
        self.output = nn.Linear(case.hidden, case.vocabulary)


def set_weights(network: Any, weights: Weights) -> Any:
    """Copies the weights that all sides compute with; returns the network."""
    suffix = "" if isinstance(network, CellNetwork) else "_l0"
    H = weights["Wh0"].shape[0]
    b = torch.from_numpy(weights["b0"])
    hidden_bias = torch.zeros_like(b)
    if "bh0" in weights:
        hidden_bias[2 * H :] = torch.from_numpy(weights["bh0"])
    network.load_state_dict(
        {
            "embedding.weight": torch.from_numpy(weights["embedding"]),
            f"cell.weight_ih{suffix}": torch.from_numpy(weights["Wx0"].T),
            f"cell.weight_hh{suffix}": torch.from_numpy(weights["Wh0"].T),
            f"cell.bias_ih{suffix}": b,
            f"cell.bias_hh{suffix}": hidden_bias,
            "output.weight": torch.from_numpy(weights["Wy"].T),
            "output.bias": torch.from_numpy(weights["by"]),
        }
    )
    return network.eval()


def _noise(case: Case) -> Any:
    """Gumbel noise for a chunk at once: argmax(logits + noise) is a draw, the fastest there is."""
    noise = torch.empty(case.steps, case.rows, case.vocabulary)
    return noise.exponential_().log_().neg_()


def by_module(network: Any) -> Advance:
    """Calls nn.LSTM once a token."""

    def advance(noise: Any, carry: Carry) -> Carry:
        token, h, c = carry
        state = (h[None], c[None])
        token = token[None]
        for row in noise:
            logits, state = network(token, state)
            token = torch.argmax(logits + row, dim=2)
        return token[0], state[0][0], state[1][0]

    return advance


def by_cell(network: Any) -> Advance:
    """Calls nn.LSTMCell once a token."""

    def advance(noise: Any, carry: Carry) -> Carry:
        token, h, c = carry
        for row in noise:
            h, c = network.cell(network.embedding(token), (h, c))
            token = torch.argmax(network.output(h) + row, dim=1)
        return token, h, c

    return advance


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


def folded(weights: Weights) -> Any:
    """Returns the table (V, 4H) of the input products, biases included."""
    table = weights["embedding"] @ weights["Wx0"] + weights["b0"]
    return torch.from_numpy(table)


def _by_hand(weights: Weights, run: Any) -> Advance:
    table = folded(weights)
    Wh, Wy, by = (torch.from_numpy(weights[name]) for name in ("Wh0", "Wy", "by"))
    return lambda noise, carry: run(table, Wh, Wy, by, *carry, noise)


def drawing(case: Case, advance: Advance) -> CheckedStep:
    """Returns a step that draws a chunk of tokens for every row."""
    zeros = torch.zeros(case.rows, case.hidden)
    begin: Carry = (torch.full((case.rows,), FIRST_TOKEN), zeros, zeros)
    carry = begin

    def step() -> float:
        nonlocal carry
        with torch.inference_mode():
            carry = advance(_noise(case), carry)
        return float(case.steps * case.rows)

    def answers() -> dict[str, Any]:
        latest = begin
        tokens = []
        with torch.inference_mode():
            for noise in _noise(case).split(1):
                latest = advance(noise, latest)
                tokens.append(latest[0][:MOST_ROWS].tolist())
        return {"tokens": tokens, "h": latest[1][:MOST_ROWS].tolist()}

    return CheckedStep(step, answers)


def make_decode(case: Case, options: Options) -> Step:
    """Draws a chunk of tokens in one of four ways."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    weights = network_weights(case)
    way = options["way"]
    if way == "module":
        return drawing(case, by_module(set_weights(Network(case), weights)))
    if way == "cell":
        return drawing(case, by_cell(set_weights(CellNetwork(case), weights)))
    run = hand_written if way == "hand" else torch.jit.script(hand_written)
    return drawing(case, _by_hand(weights, run))


MAKERS: dict[str, Maker] = {"train": make_train, "decode": make_decode}


def load() -> tuple[str, Maker]:
    """Returns PyTorch's version and what makes cases."""
    return torch.__version__, lambda case, options: MAKERS[case.kind](case, options)
