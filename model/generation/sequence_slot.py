"""`SequenceSlot` is the place of one sequence among those that decode together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from treadle.model.generation.sampling import ResolvedSampling
    from treadle.model.network.session_state import SessionState

Ints = npt.NDArray[np.int32]


@dataclass(eq=False)
class SequenceSlot:
    """The place of one sequence: how its tokens are chosen, and where it stands."""

    sampling: ResolvedSampling
    """How its tokens are chosen."""
    state: SessionState
    """Where it stands when it is added; its token is at least 0."""
    end: int
    """The token that ends it, or -1."""
    made: int = 0
    """Tokens of the new text so far."""
    rule: int = 0
    """The state of its automaton, where it has one."""
    counts: Ints | None = None
    """(2, V), how often the new text and the prompt hold each token; None where the settings do
    not need it. Never written to."""
