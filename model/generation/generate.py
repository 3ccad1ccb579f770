"""`PreparedPrompt` reads a prompt once, and generates one or many texts after it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.kernels.logit_edits import PROMPT
from treadle.model.generation.beam_search import BeamSearch
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.decoding_batch import DecodingBatch
from treadle.model.generation.output import (
    GenerateResult,
    OutputOptions,
    Piece,
    ResumePoint,
    StopReason,
)
from treadle.model.generation.sampling import resolve_sampling
from treadle.model.generation.sequence import Sequence
from treadle.model.network.prefill import read_tokens
from treadle.model.scoring.scores import Details, token_scores
from treadle.model.scoring.sequence_scorer import SequenceScorer
from treadle.model.tokenizers.incremental_encoder import encode_in_steps

if TYPE_CHECKING:
    from treadle.model.config import SamplingConfig
    from treadle.model.generation.beam_search import Hypothesis
    from treadle.model.generation.constraint import Constraint
    from treadle.model.network.session_state import SessionState
    from treadle.model.network.trained_network import TrainedNetwork
    from treadle.model.scoring.scores import Scores
    from treadle.model.tokenizers.incremental_decoder import IncrementalDecoder

Ints = npt.NDArray[np.int32]

CHUNK = 16
"""Tokens drawn in one kernel call; the first call draws one, so that text begins at once."""

_SCORED_TOKENS = 16
"""Tokens of an echo whose texts and alternatives are made in one step."""

_BLOCK = 4096
"""Tokens that are turned into text in one step."""

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""The difference between the seeds of two texts: Weyl's sequence of 64 bits."""


def seed_of(seed: int, index: int) -> int:
    """Returns the seed of text `index` of a request; text 0 has the request's own."""
    return (seed + index * _SEED_STRIDE) % 2**64


class PreparedPrompt:
    """A prompt that is read once, for one text after it or for many.

    Nothing of the prompt is looked at before `encode`, `read` or `echo`.

    Args:
        network: The network that generates.
        prompt: The text to continue from, or its tokens (N,), each below the vocabulary's size.
        sampling: How tokens are chosen and when to stop.
        state: The state before the prompt; None: a new text or item.
        constraint: The automaton of the regular expression, where it was built already.
        deadline: When to end; None: `max_time_s` of the settings from now on.

    Raises:
        ConfigError: A setting does not fit the model.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        prompt: str | Ints,
        sampling: SamplingConfig,
        state: SessionState | None,
        constraint: Constraint | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self._deadline = Deadline(sampling.max_time_s) if deadline is None else deadline
        self._network = network
        self.sampling = resolve_sampling(sampling, network.tokenizer, constraint)
        """How tokens are chosen."""
        self._prompt = prompt
        self._encoded = False
        self.tokens = np.zeros(0, np.int32)
        """(N,), the prompt's tokens, once it is encoded."""
        self.before = network.beginning(state)
        """The state before the prompt."""
        seed = sampling.seed
        self._position = 0
        if seed is None:
            seed = self.before.seed
            self._position = self.before.position
        self.chooses_seed = seed is None
        """Whether the seed is drawn here, since neither the settings nor the state have one."""
        self._seed = secrets.randbits(64) if seed is None else seed
        self.after = self.before
        """The state after the prompt, once it is read."""
        self._held = self.before.held
        self.timed_out = False
        """Whether the time ended before the prompt was read."""

    def encode(self) -> Iterator[None]:
        """Turns the prompt into tokens, in short steps, if that is not done yet.

        Raises:
            UnknownSymbolError: The prompt has a symbol that the vocabulary lacks.
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        if not self._encoded:
            yield from self._in_time(self._encode())

    def read(self) -> Iterator[None]:
        """Reads the prompt, in short steps, until it or the time ends.

        Raises:
            UnknownSymbolError: The prompt has a symbol that the vocabulary lacks.
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        yield from self.encode()
        yield from self._in_time(self._read())

    def echo(self, tokens: bool) -> Iterator[Piece | None]:
        """Reads the prompt as `read` does, and returns its text on the way.

        Tokens score bit for bit what `Model.score` gives them. Nothing predicts the first one of a
        text that has no context.

        Args:
            tokens: Whether to report the tokens, with the details that the settings ask for.

        Yields:
            The prompt as its tokens show it, a window at a time; None after other steps.
        """
        yield from self.encode()
        yield from self._in_time(self._echo(tokens))

    def _in_time(self, steps: Iterator[Piece | None]) -> Iterator[Any]:
        """Takes steps until the time is over."""
        while not self.timed_out:
            self.timed_out = self._deadline.over
            if self.timed_out:
                break
            try:
                piece = next(steps)
            except StopIteration:
                break
            yield piece

    def _encode(self) -> Iterator[None]:
        """Turns the prompt into tokens, and finds out what the text after it begins with."""
        network = self._network
        if isinstance(self._prompt, str):
            policy = self.sampling.settings.unknown_policy
            self.tokens = yield from encode_in_steps(network.tokenizer, self._prompt, policy)
        else:
            self.tokens = self._prompt
        if self.before.token < 0 and not self.tokens.size:
            self.before = replace(self.before, token=network.default_context)
            self.after = self.before
        if self.tokens.size:  # text continues after the prompt, not after the state before it
            stream = network.tokenizer.stream(self._held)
            for start in range(0, self.tokens.size, _BLOCK):
                if start:
                    yield
                stream.push(self.tokens[start : start + _BLOCK])
            self._held = stream.held
        self._prompt = ""
        self._encoded = True

    def _read(self) -> Iterator[None]:
        states = read_tokens(self._network.shape, self._network.weights, self.before, self.tokens)
        self.after = next(states)
        for after in states:
            yield
            self.after = after

    def _echo(self, tokens: bool) -> Iterator[Piece | None]:
        stream = self._network.tokenizer.stream(self.before.held)
        if tokens:
            yield from self._echo_tokens(stream)
        else:
            yield from self._read()
            for start in range(0, self.tokens.size, _BLOCK):
                yield Piece(stream.push(self.tokens[start : start + _BLOCK]), (), None)
        if cut := stream.flush():
            yield Piece(cut, (), None)

    def _echo_tokens(self, stream: IncrementalDecoder) -> Iterator[Piece]:
        """Scores the prompt's tokens while they are read."""
        if not self.tokens.size:
            return
        network = self._network
        settings = self.sampling.settings
        details = Details(settings.ranks, settings.top_log_probabilities)
        scorer = SequenceScorer(network, self.before, details)
        for window, scores in scorer.score(self.tokens):
            for start in range(0, window.size, _SCORED_TOKENS):
                ids, some_scores = _slice(window, scores, start)
                scored = token_scores(network.tokenizer, ids, some_scores)
                yield Piece(stream.push(ids), scored, None)
        self.after = scorer.state

    @property
    def seed(self) -> int:
        """The seed of text 0."""
        return self._seed

    @cached_property
    def _counts(self) -> Ints | None:
        """The counts (2, V) of tokens in earlier text and the prompt, where penalties need them."""
        if not self.sampling.counts:
            return None
        V = self._network.vocabulary_size
        before = self.before.counts
        counts = np.zeros((2, V), np.int32) if before is None else before.copy()
        counts[PROMPT] += np.bincount(self.tokens, minlength=V).astype(np.int32)
        return counts

    def begun(self, index: int) -> SessionState:
        """Returns the state in which text `index` begins: after the prompt, with its own seed."""
        seed = seed_of(self._seed, index)
        return replace(
            self.after, seed=seed, position=self._position, held=self._held, counts=self._counts
        )

    def timed_out_piece(self, index: int) -> Piece:
        """Returns the only piece of text `index` if time ended before the prompt was read."""
        result = GenerateResult(
            stop_reason=StopReason.TIME_LIMIT,
            stop_sequence="",
            seed=seed_of(self._seed, index),
            prompt_tokens=0,
            new_tokens=0,
            total_log_probability=0.0,
        )
        return Piece("", (), result)

    def sequence(self, index: int, output: OutputOptions) -> Sequence:
        """Returns text `index` after the prompt, of which nothing is drawn yet.

        Args:
            index: From 0; the same text however many there are.
            output: What to report in addition to the text.
        """
        return Sequence(
            self._network, self.sampling, self.begun(index), self.tokens, output, self._deadline
        )

    def resumed(self, point: ResumePoint, output: OutputOptions) -> Sequence:
        """Returns the rest of a text that another sequence with the same settings has begun.

        The prompt is not needed for it.

        Args:
            point: Where to continue from.
            output: What to report in addition to the text.
        """
        begun = self._network.beginning(point.state)
        if self.sampling.counts and begun.counts is None:
            begun = replace(begun, counts=np.zeros((2, self._network.vocabulary_size), np.int32))
        return Sequence(
            self._network, self.sampling, begun, self.tokens, output, self._deadline, point
        )

    def beam_search(self, count: int, output: OutputOptions) -> BeamSearch:
        """Returns a beam search for the `count` likeliest texts after the prompt."""
        return BeamSearch(
            self._network, self.sampling, self.begun(0), count, output.state, self._deadline
        )

    def beam_piece(self, hypothesis: Hypothesis, output: OutputOptions) -> Piece:
        """Returns a text that a beam search has found, as the only piece of its text."""
        result = GenerateResult(
            stop_reason=hypothesis.stop_reason,
            stop_sequence=hypothesis.stop_sequence,
            seed=self._seed,
            prompt_tokens=int(self.tokens.size),
            new_tokens=hypothesis.new_tokens,
            total_log_probability=hypothesis.total_log_probability,
            regex_complete=hypothesis.regex_complete,
            state=hypothesis.state if output.state else None,
            ids=hypothesis.ids if output.ids else (),
        )
        tokens = hypothesis.tokens if output.tokens else ()
        return Piece(hypothesis.text, tokens, result, result.new_tokens)

    def stream(self, index: int, output: OutputOptions) -> Iterator[Piece]:
        """Reads the prompt and generates text `index` after it, one short kernel call a piece.

        Args:
            index: From 0; which of the texts after the prompt.
            output: What to report in addition to the text.

        Yields:
            The pieces, the last of which has the result. While a long prompt is read, pieces are
            empty.

        Raises:
            ConfigError: The settings leave no token to draw.
        """
        for _ in self.read():
            yield Piece("", (), None)
        if self.timed_out:
            yield self.timed_out_piece(index)
            return
        if self.sampling.settings.best_of:
            search = self.beam_search(index + 1, output)
            for _ in search.steps():
                yield Piece("", (), None)
            yield self.beam_piece(search.results()[index], output)
            return
        yield from _decode_alone(self._network, self.sequence(index, output))


def _slice(ids: Ints, scores: Scores, start: int) -> tuple[Ints, Scores]:
    """Returns some of a window's tokens and their scores: its first token may have none."""
    stop = start + _SCORED_TOKENS
    unscored = ids.size - scores.log_probabilities.size
    return ids[start:stop], scores.part(max(start - unscored, 0), stop - unscored)


def _decode_alone(network: TrainedNetwork, sequence: Sequence) -> Iterator[Piece]:
    """Generates one text in a batch of its own."""
    only_piece = sequence.nothing_to_draw()
    if only_piece is not None:
        yield only_piece
        return
    batch = DecodingBatch(network)
    batch.add([sequence])
    tokens = 1
    while batch.sequences:
        for _, piece in batch.step(tokens):
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        tokens = CHUNK
