"""Generating in this process: a prompt, a group of one session, and its pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.model.beam import BeamSearch, Hypothesis
from treadle.model.choices import Choices, make_choices
from treadle.model.config import SamplingConfig
from treadle.model.constraint import Constraint
from treadle.model.group import Group
from treadle.model.prompt import read_tokens
from treadle.model.session import (
    TOKENS,
    GenerateResult,
    Piece,
    Session,
    Wanted,
)
from treadle.model.state import SessionState
from treadle.model.tokens import TokenScore

if TYPE_CHECKING:
    from treadle.model.model import Model

Ints = npt.NDArray[np.int32]

CHUNK = 16
"""Tokens drawn in one kernel call; the first call draws one, so that text begins at once."""

_GOLDEN = 0x9E3779B97F4A7C15
"""What seeds of further texts lie apart: Weyl's sequence of 64 bits."""


def seed_of(seed: int, index: int) -> int:
    """Return the seed of text `index` of a request; text 0 has the request's own."""
    return (seed + index * _GOLDEN) % 2**64


class Preparation:
    """A prompt that is read once, for one text after it or for many."""

    def __init__(
        self, model: Model, prompt: str, sampling: SamplingConfig, state: SessionState | None,
        constraint: Constraint | None = None,
    ) -> None:  # fmt: skip
        """Turn a prompt into tokens; nothing is read yet.

        Args:
            model: whose text it is.
            prompt: the text to go on from.
            sampling: how to go on.
            state: what came before it; None: nothing.
            constraint: the regular expression's, where it was made already.

        Raises:
            UnknownSymbolError: the prompt has a symbol that the vocabulary lacks.
            ConfigError: a setting does not fit the model.
        """
        limit = sampling.max_time_s
        self._deadline_s = None if limit is None else time.monotonic() + limit
        self.model = model
        """Whose text it is."""
        self.choices = make_choices(sampling, model.tokenizer, constraint)
        """How to go on."""
        self.prompt = model.tokenizer.encode(prompt, sampling.unknown_policy)
        """(N,), the prompt's tokens."""
        self.before = model.beginning(state)
        """Where the prompt begins."""
        if self.before.token < 0 and not self.prompt.size:
            self.before = replace(self.before, token=model.default_context)
        seed, self._position = sampling.seed, 0
        if seed is None:
            seed, self._position = self.before.seed, self.before.position
        self._seed = secrets.randbits(64) if seed is None else seed
        self.after = self.before
        """Where it ends, once it is read."""
        self._held = self.before.held
        if self.prompt.size:  # text goes on after the prompt, not after what came before
            stream = model.tokenizer.stream(self._held)
            stream.push(self.prompt)
            self._held = stream.held

    def read(self) -> Iterator[None]:
        """Read the prompt; yields between two windows."""
        shape, weights = self.model.parameters.shape, self.model.weights
        states = read_tokens(shape, weights, self.before, self.prompt)
        self.after = next(states)
        for after in states:
            yield
            self.after = after

    @property
    def shown(self) -> str:
        """The prompt as its tokens show it."""
        stream = self.model.tokenizer.stream(self.before.held)
        return stream.push(self.prompt) + stream.flush()

    def begun(self, index: int) -> SessionState:
        """Return where text `index` begins: after the prompt, with its own draws."""
        seed = seed_of(self._seed, index)
        return replace(self.after, seed=seed, position=self._position, held=self._held)

    def session(self, index: int, wanted: Wanted) -> Session:
        """Return the session of text `index`.

        Args:
            index: from 0; the same text however many there are.
            wanted: what it is to tell beside its text.
        """
        reread = partial(_after, self.model)
        return Session(
            self.model.tokenizer, self.choices, self.begun(index), self.prompt, wanted, reread,
            self._deadline_s,
        )  # fmt: skip

    def search(self, count: int, wanted: Wanted) -> BeamSearch:
        """Return a beam search for the `count` likeliest texts after the prompt."""
        return BeamSearch(
            self.model, self.choices, self.begun(0), count, wanted.state, self._deadline_s
        )

    def found(self, hypothesis: Hypothesis, wanted: Wanted) -> Piece:
        """Return what a beam search has found as the only piece of a text."""
        result = GenerateResult(
            stop_reason=hypothesis.stop_reason,
            stop_sequence=hypothesis.stop_sequence,
            seed=self._seed,
            prompt_tokens=int(self.prompt.size),
            new_tokens=hypothesis.new_tokens,
            total_log_probability=hypothesis.total_log_probability,
            regex_complete=hypothesis.regex_complete,
            state=hypothesis.state if wanted.state else None,
            ids=hypothesis.ids if wanted.ids else (),
        )
        return Piece(hypothesis.text, hypothesis.tokens if wanted.tokens else (), result)


def _after(model: Model, state: SessionState, ids: list[int]) -> SessionState:
    """The state after tokens that follow another state."""
    tokens = np.array(ids, np.int32)
    if tokens.size:
        *_, state = read_tokens(model.parameters.shape, model.weights, state, tokens)
    return state


def pieces(model: Model, preparation: Preparation, index: int, wanted: Wanted) -> Iterator[Piece]:
    """Yield text `index` as it is made, a kernel call a piece; the last piece has the result.

    While a long prompt is read, pieces are empty.
    """
    for _ in preparation.read():
        yield Piece("", (), None)
    if preparation.choices.sampling.best_of:
        search = preparation.search(index + 1, wanted)
        for _ in search.steps():
            yield Piece("", (), None)
        yield preparation.found(search.results()[index], wanted)
        return
    session = preparation.session(index, wanted)
    piece = session.nothing_to_draw()
    if piece is not None:
        yield piece
        return
    group = Group(model.parameters.shape, model.weights)
    group.change((), [session.seat])
    count = 1
    while piece is None or piece.result is None:
        drawn = group.decode(min(count, session.left))
        piece = session.take(drawn, 0, partial(group.state_of, 0))
        yield piece
        count = CHUNK


def _never(*_: object) -> SessionState:
    raise AssertionError("no state was asked for")


def echo(preparation: Preparation, out: list[TokenScore]) -> Iterator[None]:
    """Score the tokens of a prompt; yields after each kernel call.

    They are drawn by force, which gives the same bits as scoring them does. Nothing foretells the
    first one of a text that has no context.

    Args:
        preparation: whose prompt it is.
        out: gets them.
    """
    model = preparation.model
    begun, ids = preparation.before, preparation.prompt
    if begun.token < 0 and ids.size:
        first = int(ids[0])
        out.append(TokenScore(first, model.tokenizer.token_text(first), None))
        begun, ids = replace(begun, token=first), ids[1:]
    if not ids.size:
        return
    asked = preparation.choices.sampling
    sampling = SamplingConfig(
        seed=0, max_new_tokens=ids.size, ranks=asked.ranks,
        top_log_probabilities=asked.top_log_probabilities,
    )  # fmt: skip
    group = Group(model.parameters.shape, model.weights)
    session = Session(
        model.tokenizer, Choices(sampling, forced=ids), begun, ids[:0], TOKENS, _never
    )
    group.change((), [session.seat])
    while session.left > 0:
        out += session.take(group.decode(min(CHUNK, session.left)), 0, _never).tokens
        yield
