"""Generating in this process: a prompt, a group of one session, and its pieces."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.kernels.logit_edits import PROMPT
from treadle.model.config import SamplingConfig
from treadle.model.generation.beam_search import BeamSearch, Hypothesis
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.decoding_batch import Group
from treadle.model.generation.sampling import resolve_sampling
from treadle.model.generation.sequence import GenerateResult, Piece, Session, StopReason, Wanted
from treadle.model.network.prefill import read_tokens
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scores import Details, Scores, token_scores
from treadle.model.scoring.sequence_scorer import SequenceScorer
from treadle.model.tokenizers.incremental import encode_in_steps
from treadle.model.tokenizers.token_stream import TokenStream

Ints = npt.NDArray[np.int32]

CHUNK = 16
"""Tokens drawn in one kernel call; the first call draws one, so that text begins at once."""

_TOKENS = 16
"""Tokens given their texts and alternatives in one step."""

_BLOCK = 4096
"""Tokens looked at together."""

_GOLDEN = 0x9E3779B97F4A7C15
"""What seeds of further texts lie apart: Weyl's sequence of 64 bits."""


def seed_of(seed: int, index: int) -> int:
    """Return the seed of text `index` of a request; text 0 has the request's own."""
    return (seed + index * _GOLDEN) % 2**64


class Preparation:
    """A prompt that is read once, for one text after it or for many."""

    def __init__(
        self, model: TrainedNetwork, prompt: str, sampling: SamplingConfig,
        state: SessionState | None,
        constraint: Constraint | None = None, deadline: Deadline | None = None,
    ) -> None:  # fmt: skip
        """Begin; of the prompt nothing is looked at yet.

        Args:
            model: whose text it is.
            prompt: the text to go on from.
            sampling: how to go on.
            state: what came before it; None: nothing.
            constraint: the regular expression's, where it was made already.
            deadline: when to end; None: `max_time_s` of the settings from now on.

        Raises:
            ConfigError: a setting does not fit the model.
        """
        self._deadline = Deadline(sampling.max_time_s) if deadline is None else deadline
        self.model = model
        """Whose text it is."""
        self.choices = resolve_sampling(sampling, model.tokenizer, constraint)
        """How to go on."""
        self._text = prompt
        self._encoded = False
        self.prompt = np.zeros(0, np.int32)
        """(N,), the prompt's tokens, once it is encoded."""
        self.before = model.beginning(state)
        """Where the prompt begins."""
        seed, self._position = sampling.seed, 0
        if seed is None:
            seed, self._position = self.before.seed, self.before.position
        self._seed = secrets.randbits(64) if seed is None else seed
        self.after = self.before
        """Where it ends, once it is read."""
        self._held = self.before.held
        self.late = False
        """Whether the time ended before the prompt was read."""

    def encode(self) -> Iterator[None]:
        """Turn the prompt into tokens, in short steps, if that is not done yet.

        Raises:
            UnknownSymbolError: the prompt has a symbol that the vocabulary lacks.
            ConfigError: the policy is UNKNOWN and there is no unknown token.
        """
        if not self._encoded:
            yield from self._in_time(self._encode())

    def read(self) -> Iterator[None]:
        """Read the prompt, in short steps, until it or the time ends.

        Raises:
            UnknownSymbolError: the prompt has a symbol that the vocabulary lacks.
            ConfigError: the policy is UNKNOWN and there is no unknown token.
        """
        yield from self.encode()
        yield from self._in_time(self._read())

    def echo(self, tokens: bool) -> Iterator[Piece | None]:
        """Read the prompt as `read` does, and give it back as it is read.

        Tokens score bit for bit what `Model.score` gives them. Nothing predicts the first one of a
        text that has no context.

        Args:
            tokens: whether they are asked for, with what the settings want of them.

        Yields:
            The prompt as its tokens show it, a window at a time; None after other steps.
        """
        yield from self.encode()
        yield from self._in_time(self._echo(tokens))

    def _in_time(self, steps: Iterator[Piece | None]) -> Iterator[Any]:
        """Take steps until the time is over."""
        while not self.late:
            self.late = self._deadline.over
            if self.late:
                break
            try:
                made = next(steps)
            except StopIteration:
                break
            yield made

    def _encode(self) -> Iterator[None]:
        """Turn the prompt into tokens, and find out what the text after it begins with."""
        model, asked = self.model, self.choices.sampling
        self.prompt = yield from encode_in_steps(model.tokenizer, self._text, asked.unknown_policy)
        if self.before.token < 0 and not self.prompt.size:
            self.before = self.after = replace(self.before, token=model.default_context)
        if self.prompt.size:  # text goes on after the prompt, not after what came before
            stream = model.tokenizer.stream(self._held)
            for start in range(0, self.prompt.size, _BLOCK):
                if start:
                    yield
                stream.push(self.prompt[start : start + _BLOCK])
            self._held = stream.held
        self._text, self._encoded = "", True

    def _read(self) -> Iterator[None]:
        shape, weights = self.model.shape, self.model.weights
        states = read_tokens(shape, weights, self.before, self.prompt)
        self.after = next(states)
        for after in states:
            yield
            self.after = after

    def _echo(self, tokens: bool) -> Iterator[Piece | None]:
        stream = self.model.tokenizer.stream(self.before.held)
        if tokens:
            yield from self._echo_tokens(stream)
        else:
            yield from self._read()
            for start in range(0, self.prompt.size, _BLOCK):
                yield Piece(stream.push(self.prompt[start : start + _BLOCK]), (), None)
        if cut := stream.flush():
            yield Piece(cut, (), None)

    def _echo_tokens(self, stream: TokenStream) -> Iterator[Piece]:
        """Score the prompt's tokens while they are read."""
        if not self.prompt.size:
            return
        model, asked = self.model, self.choices.sampling
        details = Details(asked.ranks, asked.top_log_probabilities)
        sequence = SequenceScorer(model.shape, model.weights, model.tokenizer, self.before, details)
        for part, scores in sequence.score(self.prompt):
            for cut in range(0, part.size, _TOKENS):
                some, their = _slice(part, scores, cut)
                scored = token_scores(model.tokenizer, some, their)
                yield Piece(stream.push(some), scored, None)
        self.after = sequence.state

    @cached_property
    def _counts(self) -> Ints | None:
        """How often text before and the prompt hold each token, (2, V), where penalties ask."""
        if not self.choices.counts:
            return None
        V = self.model.vocabulary_size
        before = self.before.counts
        counts = np.zeros((2, V), np.int32) if before is None else before.copy()
        counts[PROMPT] += np.bincount(self.prompt, minlength=V).astype(np.int32)
        return counts

    def begun(self, index: int) -> SessionState:
        """Return where text `index` begins: after the prompt, with its own draws."""
        seed = seed_of(self._seed, index)
        return replace(
            self.after, seed=seed, position=self._position, held=self._held, counts=self._counts
        )

    def unread(self, index: int) -> Piece:
        """Return the only piece of text `index` where the time ended before the prompt was read."""
        result = GenerateResult(
            stop_reason=StopReason.TIME_LIMIT,
            stop_sequence="",
            seed=seed_of(self._seed, index),
            prompt_tokens=0,
            new_tokens=0,
            total_log_probability=0.0,
        )
        return Piece("", (), result)

    def session(self, index: int, wanted: Wanted) -> Session:
        """Return the session of text `index`.

        Args:
            index: from 0; the same text however many there are.
            wanted: what it is to tell beside its text.
        """
        reread = partial(_after, self.model)
        return Session(
            self.model.tokenizer, self.choices, self.begun(index), self.prompt, wanted, reread,
            self._deadline,
        )  # fmt: skip

    def search(self, count: int, wanted: Wanted) -> BeamSearch:
        """Return a beam search for the `count` likeliest texts after the prompt."""
        return BeamSearch(
            self.model, self.choices, self.begun(0), count, wanted.state, self._deadline
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


def _slice(ids: Ints, scores: Scores, start: int) -> tuple[Ints, Scores]:
    """Some of a window's tokens and their scores: of its first token there may be none."""
    stop, unscored = start + _TOKENS, ids.size - scores.log_probabilities.size
    return ids[start:stop], scores.part(max(start - unscored, 0), stop - unscored)


def _after(model: TrainedNetwork, state: SessionState, ids: list[int]) -> SessionState:
    """The state after tokens that follow another state."""
    tokens = np.array(ids, np.int32)
    if tokens.size:
        *_, state = read_tokens(model.shape, model.weights, state, tokens)
    return state


def pieces(
    model: TrainedNetwork, preparation: Preparation, index: int, wanted: Wanted
) -> Iterator[Piece]:
    """Yield text `index` as it is made, a kernel call a piece; the last piece has the result.

    While a long prompt is read, pieces are empty.
    """
    for _ in preparation.read():
        yield Piece("", (), None)
    if preparation.late:
        yield preparation.unread(index)
        return
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
    group = Group(model.shape, model.weights)
    group.change((), [session.seat])
    count = 1
    while piece is None or piece.result is None:
        drawn = group.decode(min(count, session.left))
        piece = session.take(drawn, 0, partial(group.state_of, 0))
        yield piece
        count = CHUNK
