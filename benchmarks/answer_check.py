"""`AnswerCheck` holds what a side answered against the float64 reference.

Whether drawn tokens are draws of the right probabilities is a matter of statistics; all else is
compared number by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.benchmarks.answers import FIRST_TOKEN, Array, log_softmax, of_tokens
from treadle.benchmarks.checks import CheckError
from treadle.benchmarks.networks import network_weights, scored_tokens
from treadle.benchmarks.processes import WorkerError
from treadle.benchmarks.race import OURS
from treadle.benchmarks.rivals import EARLIER, Entrant
from treadle.benchmarks.settings import Case
from treadle.kernels import reference

TOLERANCE = 1e-3
"""Of float32, in nats or in units of the hidden state, which is below 1."""

INT8_TOLERANCE = 0.05
"""Of int8: the mean difference of that many numbers."""

DEVIATIONS = 6.0
"""Standard deviations that the mean log-probability of drawn tokens may be off by."""


def reference_pass(case: Case, tokens: npt.NDArray[np.int32]) -> tuple[Array, Array]:
    """Runs the float64 reference over tokens from a state of zeros.

    Args:
        case: The network.
        tokens: What it reads, (T, B).

    Returns:
        Log-probabilities (T, B, V) after each token, and the last hidden state (B, H).
    """
    weights: reference.Parameters = {
        name: array.astype(np.float64) for name, array in network_weights(case).items()
    }
    states = reference.zero_states(weights, case.cell, tokens.shape[1])
    logits, (hs, _), _ = reference.network_forward(weights, case.cell, tokens, states)
    return log_softmax(logits), hs[-1]


def deviations(log_probabilities: Array, drawn: npt.NDArray[np.int32]) -> float:
    """Returns how far drawn tokens are from draws of probabilities, in standard deviations.

    Args:
        log_probabilities: Of every token, (T, B, V).
        drawn: What was drawn, (T, B).
    """
    probabilities = np.exp(log_probabilities)
    expected = (probabilities * log_probabilities).sum(axis=2)
    variance = (probabilities * log_probabilities**2).sum(axis=2) - expected**2
    found = of_tokens(log_probabilities, drawn)
    return float(abs((found - expected).sum()) / np.sqrt(variance.sum()))


def difference(case: Case, answers: Mapping[str, Any], is_int8: bool) -> float:
    """Returns how far answers are from the reference's: the largest of float32, the mean of int8.

    Args:
        case: The network.
        answers: `tokens`, and `log_probabilities` or `h`, as a worker sends them.
        is_int8: Whether the side multiplies int8 numbers.

    Raises:
        WorkerError: the tokens are no draws of the reference's probabilities.
    """
    drawn = np.array(answers["tokens"], np.int32)
    if case.kind == "score":
        read = scored_tokens(case)[:, : drawn.shape[1]]
        if not np.array_equal(read, drawn):
            raise WorkerError("other tokens were scored")
        expected, _ = reference_pass(case, read[:-1])
        drawn = read[1:]
    else:
        first = np.full((1, drawn.shape[1]), FIRST_TOKEN, np.int32)
        expected, h = reference_pass(case, np.concatenate((first, drawn[:-1])))
        off = deviations(expected, drawn)
        if not off <= DEVIATIONS:
            raise WorkerError(f"the tokens are {off:.1f} standard deviations from fair draws")
    if "h" in answers:
        differences = np.abs(np.array(answers["h"]) - h)
    else:
        found = np.array(answers["log_probabilities"])
        differences = np.abs(found - of_tokens(expected, drawn))
    return float(differences.mean() if is_int8 else differences.max())


class AnswerCheck:
    """Checks every entrant of a case; `off` holds how far each was from the reference."""

    def __init__(self) -> None:
        """Begin with nobody checked."""
        self.off: dict[str, float] = {}

    def check(self, name: str, entrant: Entrant) -> None:
        """Asks an entrant, which has made its case, for answers and compares them.

        Args:
            name: in the race.
            entrant: to be checked.

        Raises:
            CheckError: ours are wrong.
            WorkerError: a rival's are wrong, or it cannot answer.
        """
        if name == EARLIER:
            return  # it may be from before there were answers
        is_int8 = bool(entrant.options.get("int8"))
        tolerance = INT8_TOLERANCE if is_int8 else TOLERANCE
        who = entrant.worker.name
        try:
            off = difference(entrant.case, entrant.worker.answers(), is_int8)
            if not off <= tolerance:
                raise WorkerError(f"its answers are off by {off:.1e}, more than {tolerance:.0e}")
        except WorkerError as error:
            fault = f"{entrant.case.label}, {entrant.case.kind}: {who}: {error}"
            if name == OURS:
                raise CheckError(fault) from None
            raise WorkerError(fault) from None
        self.off[name] = off
