"""Writes the golden files: what PyTorch makes of small models of every cell.

    pip install torch==2.13.0 numpy safetensors
    python tests/golden/make_golden.py

Neither Treadle nor its tests need PyTorch: they read the files (tests/golden_files.py). The model
is the nn.Module of docs/pytorch.md, taken out of the page, so that the page is tested.

Each file holds the weights under the names of the module's state_dict, trained until greedy
generation is never in doubt, and for one window of random tokens, a few of its targets not counted
(-1), from random initial states:

    tokens, targets (T, B); h0, c0 (L, B, H)
    float32/loss, float32/hT, float32/cT, float32/gradient/<name of the weight>
    float64/...                  the same of the same weights, computed in float64
    greedy/prompt, greedy/tokens, greedy/margin    from states of zero; the margin is the smallest
                                 distance between the best and the second-best logit

optimizers.json holds what PyTorch's optimizers make of some weights and gradients in float64.
"""

import copy
import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent
PAGE = GOLDEN.parents[1] / "docs" / "pytorch.md"
T = 19
B = 7
V = 17
GREEDY_TOKENS = 60


class Case(NamedTuple):
    """One golden file."""

    cell: str
    L: int
    E: int
    """0 for one-hot input."""
    H: int

    @property
    def name(self) -> str:
        return f"{self.cell}_{self.L}layer{'s' * (self.L > 1)}{'' if self.E else '_onehot'}"


CASES = [
    Case("rnn", L=1, E=6, H=21),
    Case("rnn", L=2, E=6, H=13),
    Case("rnn", L=1, E=0, H=21),
    Case("gru", L=1, E=6, H=21),
    Case("gru", L=2, E=6, H=13),
    Case("gru", L=2, E=0, H=13),
    Case("lstm", L=1, E=6, H=21),
    Case("lstm", L=2, E=6, H=33),
    Case("lstm", L=1, E=0, H=13),
]


def definitions_of_the_page() -> dict[str, Any]:
    """Runs the page's first two blocks of Python and returns what they define."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    definitions: dict[str, Any] = {}
    for block in blocks[:2]:
        exec(block, definitions)
    return definitions


def learn_a_tune(model: Any, rng: np.random.Generator) -> list[int]:
    """Trains the model on a tune of 24 notes over and over, and returns the tune.

    Notes occur more than once, so that the next one takes memory. Training stops as soon as the
    model knows the tune: saturated gates would hide errors.
    """
    tune: list[int] = rng.integers(V, size=24).tolist()
    tokens = torch.tensor(tune * 3).unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = torch.tensor(torch.inf)
    while loss > 0.2:
        optimizer.zero_grad()
        logits, _ = model(tokens[:-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return tune


def greedy(model: Any, prompt: list[int]) -> dict[str, Any]:
    """Reads the prompt and continues with the likeliest token, fed back."""
    made: list[int] = []
    margins: list[float] = []
    tokens = torch.tensor(prompt).unsqueeze(1)
    states = None
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            logits, states = model(tokens, states)
            best, second = logits[-1, 0].topk(2).values.tolist()
            margins.append(best - second)
            tokens = logits[-1:].argmax(dim=-1)
            made.append(int(tokens))
    assert min(margins) > 0.5, f"greedy generation hangs on a margin of {min(margins)}"
    assert len(set(made)) > 6, "greedy generation makes the same few tokens over and over"
    return {
        "greedy/prompt": torch.tensor(prompt, dtype=torch.int32),
        "greedy/tokens": torch.tensor(made, dtype=torch.int32),
        "greedy/margin": torch.tensor(min(margins)),
    }


def loss_and_gradients(model: Any, window: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Makes one forward and one backward pass in the given precision."""
    model = copy.deepcopy(model).to(dtype)
    states = window["h0"].to(dtype)
    if "c0" in window:
        states = (states, window["c0"].to(dtype))
    logits, states = model(window["tokens"].long(), states)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), window["targets"].long().flatten(), ignore_index=-1
    )
    loss.backward()
    hT, *cT = states if "c0" in window else (states,)
    results = {"loss": loss.detach(), "hT": hT} | ({"cT": cT[0]} if cT else {})
    results |= {f"gradient/{name}": weight.grad for name, weight in model.named_parameters()}
    return {f"{dtype}/".removeprefix("torch.") + name: each for name, each in results.items()}


def make(case: Case, seed: int, page: dict[str, Any]) -> None:
    """Writes one golden file."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = page["SequenceModel"](case.cell, V, case.E, case.H, case.L)
    tune = learn_a_tune(model, rng)

    window = {
        "tokens": torch.tensor(rng.integers(V, size=(T, B)), dtype=torch.int32),
        "targets": torch.tensor(rng.integers(V, size=(T, B)), dtype=torch.int32),
        "h0": torch.tensor(rng.uniform(-0.9, 0.9, (case.L, B, case.H)), dtype=torch.float32),
    }
    if case.cell == "lstm":
        window["c0"] = torch.tensor(rng.uniform(-2, 2, window["h0"].shape), dtype=torch.float32)
    window["targets"][0, 2] = window["targets"][5, :3] = window["targets"][-2:, -1] = -1

    arrays = {**model.state_dict(), **window, **greedy(model, tune[:2])}
    for dtype in (torch.float32, torch.float64):
        arrays |= loss_and_gradients(model, window, dtype)
    path = GOLDEN / f"{case.name}.safetensors"
    contiguous = {name: array.detach().contiguous() for name, array in arrays.items()}
    save_file(contiguous, path)
    path.chmod(0o644)  # save_file leaves it to its owner alone
    check_the_pages_load(model, page)
    loss, margin = (float(arrays[name]) for name in ("float64/loss", "greedy/margin"))
    print(f"{path.name}: {path.stat().st_size} bytes, loss {loss:.6f}, margin {margin:.2f}")


def check_the_pages_load(model: Any, page: dict[str, Any]) -> None:
    """Saves the model, loads it with the page's function and compares logits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(model.state_dict(), path)
        loaded = page["load"](path)
    tokens = torch.arange(V).reshape(V, 1)
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.5}),
    "sgd, decay": (torch.optim.SGD, {"lr": 0.5, "weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
    "adagrad, decay": (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1}),
    "adam": (torch.optim.AdamW, {"lr": 0.003, "betas": (0.9, 0.99), "weight_decay": 0.0}),
    "adam, decay": (torch.optim.AdamW, {"lr": 0.003, "betas": (0.9, 0.999), "weight_decay": 0.1}),
    "adam, beta2 near 1": (
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.9, 0.99999999), "weight_decay": 0.0},
    ),
    "adam, beta1 near 1": (
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.99999999, 0.999), "weight_decay": 0.0},
    ),
}
OPTIMIZER_STEPS = 40


def make_optimizers() -> None:
    """Writes what the optimizers make of five weights and OPTIMIZER_STEPS gradients."""
    rng = np.random.default_rng(11)
    start = rng.standard_normal(5).astype(np.float32).astype(np.float64)
    gradients = rng.standard_normal((OPTIMIZER_STEPS, 5)).astype(np.float32).astype(np.float64)
    results = {}
    for name, (make_one, settings) in OPTIMIZERS.items():
        weights = torch.nn.Parameter(torch.tensor(start))
        optimizer = make_one([weights], **settings)
        for gradient in gradients:
            weights.grad = torch.tensor(gradient)
            optimizer.step()
        results[name] = {"settings": settings, "weights": weights.tolist()}
    content = {"start": start.tolist(), "gradients": gradients.tolist(), "results": results}
    (GOLDEN / "optimizers.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Writes all golden files."""
    make_optimizers()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    page = definitions_of_the_page()
    for seed, case in enumerate(CASES, start=1):
        make(case, seed, page)


if __name__ == "__main__":
    main()
