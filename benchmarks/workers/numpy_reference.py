"""`make` measures the plain NumPy reference: the same step, in float32 or float64."""

from __future__ import annotations

import numpy as np

from treadle.benchmarks.settings import Case
from treadle.benchmarks.workers.serve import Maker, Options, Step
from treadle.kernels import reference


def make(case: Case, options: Options) -> Step:
    """Computes loss, gradients, clip at a global norm of 1, Adam; the state carried on."""
    rng = np.random.default_rng(0)
    V = case.vocabulary
    shape = (case.steps, case.rows)
    parameters = reference.initialize(
        case.cell, V, case.embedding, case.hidden, case.layers, rng, options["dtype"]
    )
    moments = {
        name: (np.zeros_like(array), np.zeros_like(array)) for name, array in parameters.items()
    }
    tokens, targets = rng.integers(V, size=(2, *shape))
    states = reference.zero_states(parameters, case.cell, case.rows)
    taken = 0

    def step() -> float:
        nonlocal states, taken
        taken += 1
        _, count, gradients, states = reference.network_loss_and_gradients(
            parameters, case.cell, tokens, targets, states
        )
        reference.clip_by_global_norm(gradients, 1.0)
        for name, (mean, square) in moments.items():
            reference.adam_step(parameters[name], gradients[name], mean, square, taken, lr=1e-3)
        return count

    return step


def load() -> tuple[str, Maker]:
    """Returns the version and what makes cases."""
    return np.__version__, make
