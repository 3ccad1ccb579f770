"""`Piece` is the output of one step of a generation; `GenerateResult` ends the last one."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.model.network.session_state import SessionState
    from treadle.model.scoring.token_score import TokenScore


class StopReason(enum.StrEnum):
    """Why a generation ended."""

    MAX_NEW_TOKENS = "max_new_tokens"
    STOP_SEQUENCE = "stop_sequence"
    END_TOKEN = "end_token"
    TIME_LIMIT = "time_limit"
    REGEX_COMPLETE = "regex_complete"


@dataclass(frozen=True)
class GenerateResult:
    """The result of a generation."""

    stop_reason: StopReason
    """Why it ended."""
    stop_sequence: str
    """The stop sequence that ended it, or an empty text."""
    seed: int
    """The seed used."""
    prompt_tokens: int
    """Tokens of the prompt read."""
    new_tokens: int
    """Tokens drawn, an end token and those of a stop sequence included."""
    total_log_probability: float
    """Sum of the drawn tokens' log-probabilities, in nats."""
    regex_complete: bool | None = None
    """Whether the text matches the regular expression as a whole; None without one."""
    state: SessionState | None = field(default=None, compare=False)
    """Where to continue from, if it was asked for."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The text's tokens, if they were asked for: no end token, none with part of a stop."""


@dataclass(frozen=True)
class ResumePoint:
    """A place in a text from which another sequence continues it exactly."""

    state: SessionState
    """The state there, with its counts where penalties need them."""
    new_tokens: int
    """Tokens drawn before it."""
    total_log_probability: float
    """Sum of their log-probabilities, in nats."""
    prompt_tokens: int
    """Tokens of the prompt."""


@dataclass(frozen=True)
class Piece:
    """The output of one step of a generation."""

    text: str
    """The next text: never half a character, nor what may be the beginning of a stop sequence."""
    tokens: Sequence[TokenScore]
    """The tokens drawn, where they were asked for; they may run ahead of the text."""
    result: GenerateResult | None
    """Set in the last piece only."""
    new_tokens: int = field(default=0, compare=False)
    """Tokens drawn so far, in this piece and those before it; not those before a resume point."""
    resume: ResumePoint | None = field(default=None, compare=False)
    """Where to continue from, right after the text and the tokens, where it was asked for."""

    @property
    def weight(self) -> int:
        """How many tokens and alternatives it has; each token of a text has as many."""
        return len(self.tokens) * (1 + len(self.tokens[-1].alternatives)) if self.tokens else 0


@dataclass(frozen=True)
class OutputOptions:
    """What a generation reports in addition to its text."""

    tokens: bool = False
    """Each token."""
    state: bool = False
    """The state at the end. Half a character at the end of the text is then not shown: the text
    that continues from the state begins with it."""
    ids: bool = False
    """All tokens of the text, at the end."""
    resume_interval: int = 0
    """Tokens between two resume points; 0: none. There are none where an automaton or the tokens
    of the whole text are needed at its end, nor among forced tokens."""


TOKENS = OutputOptions(tokens=True)
"""Reports each token."""

NO_TOKEN_LEFT = (
    "no token is left to draw: banned_tokens, token_biases, min_new_tokens and regex together "
    "exclude all of them; relax one of them"
)
"""The error of settings that contradict each other in the middle of a text."""
