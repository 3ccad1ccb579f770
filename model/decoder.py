"""Generation: a prompt to tokens, tokens to text, and where to stop.

Tokens are drawn in short kernel calls and taken one by one, so that what a request gives does not
depend on how it was cut into calls.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treadle.kernels import network, structures
from treadle.kernels.decode import Sessions, decode
from treadle.model.config import SamplingConfig
from treadle.model.parameters import CELL_CODES, Shape
from treadle.model.scorer import WINDOW
from treadle.model.tokenizer import Tokenizer
from treadle.model.tokens import TokenScore
from treadle.model.workspace import allocate_state, allocate_workspace

Ints = npt.NDArray[np.int32]
Array = npt.NDArray[np.float32]

CHUNK = 16
"""Tokens drawn in one kernel call; the first call draws one, so that text begins at once."""


class StopReason(enum.StrEnum):
    """Why a generation ended."""

    MAX_NEW_TOKENS = "max_new_tokens"
    STOP_SEQUENCE = "stop_sequence"
    END_TOKEN = "end_token"


@dataclass(frozen=True)
class GenerateResult:
    """What a generation came to."""

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


@dataclass(frozen=True)
class Piece:
    """What one step of a generation made."""

    text: str
    """The next text: never half a character, nor what may be the beginning of a stop sequence."""
    tokens: tuple[TokenScore, ...]
    """The tokens drawn; they may run ahead of the text."""
    result: GenerateResult | None
    """Set in the last piece only."""


class Decoder:
    """One sequence that is read, then continued."""

    def __init__(self, shape: Shape, weights: structures.Weights, end: int) -> None:
        """Begin at the zero state.

        Args:
            shape: the network's sizes.
            weights: packed for inference; only read.
            end: the token that ends the sequence, or -1.
        """
        self._cell = CELL_CODES[shape.cell]
        self._shape = shape
        self._weights = weights
        self._end = end
        self._work = allocate_workspace(shape, 1, 1, backward=False)
        self._state = allocate_state(shape, 1)
        self._sessions: Sessions

    def read(self, tokens: Ints, sampling: SamplingConfig, seed: int) -> Iterator[None]:
        """Read the context, window by window.

        Args:
            tokens: (N,), at least one; the last is kept back for the first draw.
            sampling: how to draw.
            seed: 64 bits.

        Yields:
            None between two windows.
        """
        before = tokens[:-1]
        if before.size:
            steps = min(WINDOW, before.size)
            work = allocate_workspace(self._shape, steps, 1, backward=False)
            for start in range(0, before.size, steps):
                if start:
                    yield
                window = np.ascontiguousarray(before[start : start + steps].reshape(-1, 1))
                goes_on = np.zeros(1, np.bool_)
                network.read_shard(self._cell, self._weights, work, self._state, window, goes_on)
        self._sessions = Sessions(
            token=np.array([tokens[-1]], np.int32),
            end=np.array([self._end], np.int32),
            temperature=np.array([sampling.temperature], np.float32),
            top_k=np.array([min(sampling.top_k, self._shape.V)], np.int32),
            top_p=np.array([sampling.top_p], np.float32),
            min_p=np.array([sampling.min_p], np.float32),
            seed=np.array([seed], np.uint64),
            position=np.zeros(1, np.uint64),
        )

    def draw(self, count: int) -> tuple[list[int], list[float]]:
        """Draw up to `count` tokens, fewer where the end token is drawn.

        Returns:
            The tokens and their log-probabilities under the model itself, in nats.
        """
        tokens = np.empty((count, 1), np.int32)
        log_probabilities = np.empty((count, 1), np.float32)
        decode(
            self._cell, self._weights, self._work, self._state, self._sessions,
            tokens, log_probabilities,
        )  # fmt: skip
        drawn = int(np.count_nonzero(tokens >= 0))
        return tokens[:drawn, 0].tolist(), log_probabilities[:drawn, 0].tolist()


class StopFilter:
    """Lets text through up to a stop sequence, holding back what may become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        """Watch for the given sequences."""
        self._stops = stops
        self._held = ""
        self.found = ""

    def push(self, text: str) -> str:
        """Take more text and return what is certain; sets `found` at the earliest stop."""
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(place, -len(stop), stop) for place, stop in places if place >= 0]
        if hits:
            place, _, self.found = min(hits)
            return self._release(place)
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """Return what is still held back, at the end of the text."""
        return self._release(len(self._held))

    def _undecided(self) -> int:
        """The length of the longest end of the held text that begins a stop sequence."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> str:
        certain, self._held = self._held[:length], self._held[length:]
        return certain


class Generation:
    """Draws from a decoder until a reason to stop, and turns tokens into pieces of text."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, sampling: SamplingConfig, context: Ints,
        prompt_tokens: int,
    ) -> None:  # fmt: skip
        """Begin; nothing is computed yet.

        Args:
            decoder: at the zero state.
            tokenizer: of the model.
            sampling: how to draw and when to stop.
            context: (N,), the tokens to go on from, at least one.
            prompt_tokens: how many of them are the caller's.
        """
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._prompt_tokens = prompt_tokens
        self._filter = StopFilter(sampling.stop_sequences)
        self._stream = tokenizer.stream()
        self._reason: StopReason | None = None
        self._drawn = 0
        self._total = 0.0
        self._reading = decoder.read(context, sampling, self._seed)

    def pieces(self) -> Iterator[Piece]:
        """Yield text as it is made, a kernel call a piece; the last piece has the result."""
        for _ in self._reading:
            yield Piece("", (), None)
        count = 1
        while True:
            left = self._sampling.max_new_tokens - self._drawn
            tokens, text = self._take(min(count, left)) if left > 0 else ((), "")
            if self._drawn >= self._sampling.max_new_tokens and self._reason is None:
                self._reason = StopReason.MAX_NEW_TOKENS
            if self._reason is not None:
                yield Piece(text + self._rest(), tokens, self._result(self._reason))
                return
            yield Piece(text, tokens, None)
            count = CHUNK

    def _take(self, count: int) -> tuple[tuple[TokenScore, ...], str]:
        """Draw up to `count` tokens and read them one by one, until one of them ends the text."""
        taken, text = [], ""
        for token, log_probability in zip(*self._decoder.draw(count), strict=True):
            taken.append(TokenScore(token, self._tokenizer.token_text(token), log_probability))
            self._drawn += 1
            self._total += log_probability
            if token == self._tokenizer.end:
                self._reason = StopReason.END_TOKEN
                break
            text += self._filter.push(self._stream.push([token]))
            if self._filter.found:
                self._reason = StopReason.STOP_SEQUENCE
                break
        return tuple(taken), text

    def _rest(self) -> str:
        """What was held back, if the end came otherwise than by a stop sequence."""
        if self._filter.found:
            return ""
        certain = self._filter.push(self._stream.flush())
        if self._filter.found:  # a replacement character can complete a stop sequence
            self._reason = StopReason.STOP_SEQUENCE
            return certain
        return certain + self._filter.flush()

    def _result(self, reason: StopReason) -> GenerateResult:
        return GenerateResult(
            stop_reason=reason,
            stop_sequence=self._filter.found,
            seed=self._seed,
            prompt_tokens=self._prompt_tokens,
            new_tokens=self._drawn,
            total_log_probability=self._total,
        )
