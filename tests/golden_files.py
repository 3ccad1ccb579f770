"""The golden files of tests/golden: what PyTorch makes of small models, in Treadle's own terms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors.numpy import load_file

Array = NDArray[np.floating[Any]]
Arrays = dict[str, Array]

FOLDER = Path(__file__).parent / "golden"

GOLDEN_NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
"""Cell and layers, like "lstm_2layers", and "_onehot" where there is no embedding."""

assert GOLDEN_NAMES, "no golden files: a test that ran over none would pass"


@dataclass(frozen=True)
class Golden:
    """One window of training and one greedy generation, as PyTorch computes them."""

    name: str
    cell: str
    """"rnn", "gru" or "lstm"."""
    state_dict: Arrays
    """Weights as the PyTorch module holds them: its names, its layout, two biases; float32."""
    parameters: Arrays
    """The same weights as the kernels hold them."""
    tokens: NDArray[np.int32]
    """(T, B)."""
    targets: NDArray[np.int32]
    """(T, B); -1 is not counted."""
    h0: Array
    """Initial hidden states, (L, B, H)."""
    c0: Array | None
    """Initial cell states, (L, B, H), of the LSTM."""
    loss: float
    """Mean nats over the counted targets."""
    gradients: Arrays
    """Of the mean loss, by the names of `parameters`."""
    final_h: Array
    """Hidden states after the last token, (L, B, H)."""
    final_c: Array | None
    """Cell states after the last token, (L, B, H), of the LSTM."""
    greedy_prompt: NDArray[np.int32]
    """Tokens read from states of zero."""
    greedy_tokens: NDArray[np.int32]
    """The likeliest tokens after the prompt, each fed back; no decision is a close one."""


def load_golden(name: str, dtype: DTypeLike = np.float32) -> Golden:
    """Reads a golden file.

    Args:
        name: one of GOLDEN_NAMES.
        dtype: float32 or float64: the precision PyTorch computed in, and that of the arrays. The
            weights and the initial states have the same float32 values in both, but for the sum of
            PyTorch's two biases, which float32 rounds.
    """
    cell = name.partition("_")[0]
    arrays = load_file(FOLDER / f"{name}.safetensors")
    state_dict = {key: array for key, array in arrays.items() if "." in key and "/" not in key}
    run = _under(f"{np.dtype(dtype)}/", arrays)
    c0 = arrays.get("c0")
    return Golden(
        name=name,
        cell=cell,
        state_dict=state_dict,
        parameters=_as_parameters(cell, state_dict, dtype, both_biases=True),
        tokens=arrays["tokens"],
        targets=arrays["targets"],
        h0=arrays["h0"].astype(dtype),
        c0=None if c0 is None else c0.astype(dtype),
        loss=float(run["loss"]),
        gradients=_as_parameters(cell, _under("gradient/", run), dtype, both_biases=False),
        final_h=run["hT"],
        final_c=run.get("cT"),
        greedy_prompt=arrays["greedy/prompt"],
        greedy_tokens=arrays["greedy/tokens"],
    )


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Takes what is called by the prefix, and takes that off."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _as_parameters(cell: str, weights: Arrays, dtype: DTypeLike, both_biases: bool) -> Arrays:
    """Turns PyTorch's names and layout to the kernels'.

    Of weights both biases go into the one, summed before rounding; their gradients are equal but
    for rounding, and each is that of the sum.
    """
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    H = wide["output.weight"].shape[1]
    parameters = {"Wy": wide["output.weight"].T, "by": wide["output.bias"]}
    if "embedding.weight" in wide:
        parameters["embedding"] = wide["embedding.weight"]
    for layer in range(sum(name.startswith("rnn.weight_ih_l") for name in wide)):
        parameters[f"Wx{layer}"] = wide[f"rnn.weight_ih_l{layer}"].T
        parameters[f"Wh{layer}"] = wide[f"rnn.weight_hh_l{layer}"].T
        b = wide[f"rnn.bias_ih_l{layer}"].copy()
        hidden_b = wide[f"rnn.bias_hh_l{layer}"]
        shared = 2 * H if cell == "gru" else b.size  # the GRU's n has two biases in truth
        if both_biases:
            b[:shared] += hidden_b[:shared]
        parameters[f"b{layer}"] = b
        if cell == "gru":
            parameters[f"bh{layer}"] = hidden_b[shared:]
    return {name: np.ascontiguousarray(array, dtype) for name, array in parameters.items()}
