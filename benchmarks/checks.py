"""`run_checks` checks the kernels on this machine: gradients, the reference, the same bits.

Numbers of kernels that compute something else are worth nothing, so this runs first.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import binding as llvm

from treadle.benchmarks.processes import python
from treadle.benchmarks.progress import Say
from treadle.kernels import reference
from treadle.model import Cell, compiled_for
from treadle.model.network.engine import Engine
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape

CELLS = ("rnn", "gru", "lstm")
GRADIENT_TOLERANCE = 1e-7
"""Of a central difference in float64, in units of the gradient's largest element."""
KERNEL_TOLERANCE = 1e-5
"""Of a float32 kernel, in units of the array's largest element."""
OTHER_PROCESSOR = "haswell"
"""What x86-64-v3 is in LLVM's naming."""
PATIENCE_S = 1800.0

Array = npt.NDArray[np.floating[Any]]

Digests = dict[str, dict[str, str]]
"""A digest of trained weights by cell and by number of threads."""


class CheckError(Exception):
    """A check failed; the message is the one sentence to say about it."""


def difference(ours: Array, expected: Array) -> float:
    """Returns the largest difference in units of the largest expected element."""
    largest = np.abs(expected).max(initial=1e-30)
    return float(np.abs(ours - expected).max(initial=0.0) / largest)


def central_difference(loss: Callable[[], float], array: Array, step: float = 1e-5) -> Array:
    """Differentiates `loss` by every element of `array`, which is changed and restored."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = loss()
        array[index] = value - step
        gradient[index] = (above - loss()) / (2 * step)
        array[index] = value
    return gradient


def _batch(rng: np.random.Generator, V: int, T: int, B: int) -> npt.NDArray[np.int32]:
    """Tokens and targets, (2, T, B); some targets are not counted."""
    batch = rng.integers(V, size=(2, T, B), dtype=np.int32)
    batch[1, 0, ::3] = -1
    return batch


def check_gradients(cell: str) -> float:
    """Holds the reference's backward pass against finite differences; returns the largest error."""
    rng = np.random.default_rng(1)
    parameters = reference.initialize(cell, V=5, E=3, H=4, L=2, rng=rng)
    tokens, targets = _batch(rng, 5, T=4, B=3)
    h, c = reference.zero_states(parameters, cell, B=3)
    states = (rng.normal(size=h.shape), None if c is None else rng.normal(size=c.shape))

    def loss() -> float:
        total, count, _, _ = reference.network_loss_and_gradients(
            parameters, cell, tokens, targets, states
        )
        return total / count

    gradients = reference.network_loss_and_gradients(parameters, cell, tokens, targets, states)[2]
    return max(
        difference(gradients[name], central_difference(loss, array))
        for name, array in parameters.items()
    )


def check_kernels(cell: str, embedding: int) -> float:
    """Holds loss and gradients of two windows against the reference; returns the largest error."""
    V = 37
    H = 33
    L = 2
    B = 19
    T = 13
    rng = np.random.default_rng(2)
    drawn = reference.initialize(cell, V, embedding, H, L, rng, np.float32)
    parameters = Parameters.from_named(Shape(Cell(cell), V, embedding, H, L), drawn)
    exact: reference.Parameters = {name: array.astype(np.float64) for name, array in drawn.items()}
    states = reference.zero_states(exact, cell, B)
    engine = Engine(parameters, B, T, Pool(2))
    error = 0.0
    for window in range(2):
        tokens, targets = _batch(rng, V, T, B)
        loss, _ = engine.loss_and_gradient(tokens, targets, np.full(B, window == 0))
        expected, _, gradients, states = reference.network_loss_and_gradients(
            exact, cell, tokens, targets, states
        )
        ours = engine.gradient.named()
        errors = [difference(ours[name], gradient) for name, gradient in gradients.items()]
        error = max(error, abs(loss - expected) / expected, *errors)
    return error


def _digests(target: str | None, *threads: str) -> Digests:
    """Trains in a fresh process, for another processor if one is named."""
    environment = dict(os.environ)
    if target is not None:
        environment.pop("NUMBA_CPU_FEATURES", None)
        environment["NUMBA_CPU_NAME"] = target
    command = python("-m", "treadle.benchmarks.bits", *threads)
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"training 200 steps took longer than {PATIENCE_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise CheckError(f"training 200 steps failed for {target or 'this processor'}: {said}")
    digests: Digests = json.loads(done.stdout)
    return digests


def has_other_processor() -> bool:
    """Returns whether code for x86-64-v3 can run here."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx2", False) and features.get("fma", False))


def compare_digests(by_threads: Digests, other: Digests) -> None:
    """Fails unless all digests of a cell are the same.

    Raises:
        CheckError: some differ.
    """
    for cell, digests in by_threads.items():
        if len(set(digests.values())) > 1:
            raise CheckError(
                f"the {cell}'s weights after 200 steps depend on the number of threads "
                f"({', '.join(digests)})"
            )
        for digest in other.get(cell, {}).values():
            if digest not in digests.values():
                raise CheckError(
                    f"the {cell}'s weights after 200 steps differ between {compiled_for()} and "
                    f"{OTHER_PROCESSOR}"
                )


def _bounded(what: str, cell: str, error: float, tolerance: float) -> float:
    if not error <= tolerance:
        raise CheckError(f"{what} of the {cell} are off by {error:.1e}, more than {tolerance:.0e}")
    return error


def run_checks(say: Say) -> dict[str, Any]:
    """Runs all checks.

    Returns:
        The largest errors, and for which processors the bits were compared.

    Raises:
        CheckError: one failed.
    """
    say("check gradients of the reference by finite differences")
    what = "the reference's gradients"
    gradients = {c: _bounded(what, c, check_gradients(c), GRADIENT_TOLERANCE) for c in CELLS}
    say("check compiled kernels against the reference")
    what = "the compiled loss and gradients"
    kernels = {
        c: _bounded(what, c, max(check_kernels(c, E) for E in (0, 5)), KERNEL_TOLERANCE)
        for c in CELLS
    }
    say("check bits with 1, 2 and 3 threads")
    ours = _digests(None, "1", "2", "3")
    other = {}
    if has_other_processor():
        say(f"check bits of {OTHER_PROCESSOR}; compiles its kernels the first time")
        other = _digests(OTHER_PROCESSOR, "1")
    compare_digests(ours, other)
    return {
        "gradient_error": gradients,
        "kernel_error": kernels,
        "same_bits_threads": [1, 2, 3],
        "same_bits_processors": [compiled_for(), *([OTHER_PROCESSOR] if other else [])],
    }
