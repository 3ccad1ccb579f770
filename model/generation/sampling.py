"""What a request's settings come to for one model: the rows that the kernels look at.

Made once for a request, shared by all its sessions, never written to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treadle.model.config import SamplingConfig
from treadle.model.errors import ConfigError
from treadle.model.generation.constraint import Constraint, compile_constraint
from treadle.model.tokenizers.base import Tokenizer

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ResolvedSampling:
    """How tokens are chosen."""

    sampling: SamplingConfig
    """The settings."""
    bias: Array | None = None
    """(V,), added to logits, -inf for tokens never to draw; None where nothing is."""
    forced: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    """(F,), the first tokens of the text."""
    constraint: Constraint | None = None
    """What the text must match; None: anything."""

    @property
    def counts(self) -> bool:
        """Whether penalties need to know how often tokens were there."""
        asked = self.sampling
        return (
            asked.repetition_penalty != 1.0
            or asked.presence_penalty != 0.0
            or asked.frequency_penalty != 0.0
        )


def resolve_sampling(
    sampling: SamplingConfig, tokenizer: Tokenizer, constraint: Constraint | None = None
) -> ResolvedSampling:
    """Make a request's settings ready for one model.

    Args:
        sampling: the settings.
        tokenizer: of the model.
        constraint: the regular expression's, where it was made already.

    Raises:
        ConfigError: a token is not in the vocabulary, all of them are banned, a forced one leads
            away from the regular expression, or that cannot be used.
    """
    V = tokenizer.vocabulary_size
    for name in ("token_biases", "banned_tokens", "forced_tokens"):
        for index, entry in enumerate(getattr(sampling, name)):
            token = entry[0] if isinstance(entry, tuple) else entry
            if token >= V:
                place = f"{name}[{index}]"
                raise ConfigError(f"{place} must be a token, 0 to {V - 1}, not {token}", place)
    bias = _bias(sampling, tokenizer)
    if bias is not None and not np.isfinite(bias).any():
        raise ConfigError(
            "banned_tokens leaves no token to draw: ban fewer of them", "banned_tokens"
        )
    if constraint is None and sampling.regex:
        constraint = compile_constraint(sampling.regex, tokenizer)
    forced = np.array(sampling.forced_tokens, np.int32)
    _check_forced(forced, constraint)
    return ResolvedSampling(sampling, bias, forced, constraint)


def _bias(sampling: SamplingConfig, tokenizer: Tokenizer) -> Array | None:
    """What is added to logits; begin and unknown stand for nothing, and are out unless named."""
    bias = np.zeros(tokenizer.vocabulary_size, np.float32)
    for token in (tokenizer.begin, tokenizer.unknown):
        if token is not None:
            bias[token] = -np.inf
    for token, number in sampling.token_biases:
        bias[token] = number
    bias[list(sampling.banned_tokens)] = -np.inf
    return bias if bias.any() else None


def _check_forced(forced: Ints, constraint: Constraint | None) -> None:
    """Refuse forced tokens that lead away from the regular expression."""
    if constraint is None:
        return
    state = 0
    for index, token in enumerate(forced.tolist()):
        state = int(constraint.table[state, token])
        if state < 0:
            place = f"forced_tokens[{index}]"
            raise ConfigError(f"{place} leads away from regex: change one of them", place)
