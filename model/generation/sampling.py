"""`resolve_sampling` turns the settings of a request into the arrays that the kernels read.

They are made once for a request, shared by all its sequences, and never written to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError
from treadle.model.generation.constraint import compile_constraint

if TYPE_CHECKING:
    from treadle.model.config import SamplingConfig
    from treadle.model.generation.constraint import Constraint
    from treadle.model.tokenizers.base import Tokenizer

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ResolvedSampling:
    """The settings of a request, resolved for one model."""

    settings: SamplingConfig
    """The settings."""
    bias: Array | None = None
    """(V,), added to logits, -inf for tokens never to draw; None where nothing is added."""
    forced: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    """(F,), the first tokens of the text."""
    constraint: Constraint | None = None
    """The automaton of the regular expression that the text must match; None: any text."""

    @property
    def counts(self) -> bool:
        """Whether penalties need to know how often each token has occurred."""
        settings = self.settings
        return (
            settings.repetition_penalty != 1.0
            or settings.presence_penalty != 0.0
            or settings.frequency_penalty != 0.0
        )


def resolve_sampling(
    settings: SamplingConfig, tokenizer: Tokenizer, constraint: Constraint | None = None
) -> ResolvedSampling:
    """Resolves the settings of a request for one model.

    Args:
        settings: The settings.
        tokenizer: The model's tokenizer.
        constraint: The automaton of the regular expression, where it was built already.

    Returns:
        The resolved settings.

    Raises:
        ConfigError: A token is not in the vocabulary, all tokens are banned, a forced one
            contradicts the regular expression, or that expression cannot be used.
    """
    V = tokenizer.vocabulary_size
    for name in ("token_biases", "banned_tokens", "forced_tokens"):
        for index, entry in enumerate(getattr(settings, name)):
            token = entry[0] if isinstance(entry, tuple) else entry
            if token >= V:
                place = f"{name}[{index}]"
                raise ConfigError(f"{place} must be a token, 0 to {V - 1}, not {token}", place)
    bias = _bias(settings, tokenizer)
    if bias is not None and not np.isfinite(bias).any():
        raise ConfigError(
            "banned_tokens leaves no token to draw: ban fewer of them", "banned_tokens"
        )
    if constraint is None and settings.regex:
        constraint = compile_constraint(settings.regex, tokenizer)
    forced = np.array(settings.forced_tokens, np.int32)
    _check_forced(forced, constraint)
    return ResolvedSampling(settings, bias, forced, constraint)


def _bias(settings: SamplingConfig, tokenizer: Tokenizer) -> Array | None:
    """Returns the numbers that are added to logits.

    The tokens `begin` and `unknown` stand for no text: they are never drawn unless named.
    """
    bias = np.zeros(tokenizer.vocabulary_size, np.float32)
    for token in (tokenizer.begin, tokenizer.unknown):
        if token is not None:
            bias[token] = -np.inf
    for token, number in settings.token_biases:
        bias[token] = number
    bias[list(settings.banned_tokens)] = -np.inf
    return bias if bias.any() else None


def _check_forced(forced: Ints, constraint: Constraint | None) -> None:
    """Refuses forced tokens that the regular expression does not allow."""
    if constraint is None:
        return
    state = 0
    for index, token in enumerate(forced.tolist()):
        state = int(constraint.table[state, token])
        if state < 0:
            place = f"forced_tokens[{index}]"
            raise ConfigError(f"{place} does not fit regex: change one of them", place)
