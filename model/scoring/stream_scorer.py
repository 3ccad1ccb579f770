"""`StreamScorer` scores a stream as it comes, in memory that does not grow with it.

Pieces may be cut anywhere: every token scores bit for bit what it scores in the whole text, and
sums are added up in the order of the tokens, so that they are those of the whole text as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from treadle.model.enums import UnknownPolicy
from treadle.model.errors import UnknownSymbolError
from treadle.model.network.ordered_sum import in_order
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scores import Details, PieceScore, Scores, Summary, token_scores
from treadle.model.scoring.sequence_scorer import SequenceScorer
from treadle.model.scoring.token_score import TokenScore
from treadle.model.tokenizers.incremental_encoder import IncrementalEncoder, encode_in_steps

Ints = npt.NDArray[np.int32]

_SLICE = 2048
"""Characters tokenized in one step."""


class StreamScorer:
    """Scores texts or items that come in pieces, one after the other."""

    def __init__(
        self,
        network: TrainedNetwork,
        details: Details,
        policy: UnknownPolicy | None,
        start: SessionState,
        context: str = "",
        *,
        keep_tokens: bool = True,
        sequence: SequenceScorer | None = None,
    ) -> None:
        """Begins a stream.

        Args:
            network: The network that scores.
            details: What to report of every scored token.
            policy: What to do with unknown symbols; None: the model's own policy.
            start: The state that the first text begins with; see `TrainedNetwork.beginning`. Later
                texts begin as new ones.
            context: The text that the first text follows; read by `read_context`, or else with the
                first piece, and not scored.
            keep_tokens: Whether a PieceScore holds its tokens.
            sequence: Scores the tokens; None: a scorer that begins at `start`.

        Raises:
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        self._network = network
        self._tokenizer = network.tokenizer
        self._reader = IncrementalEncoder(network.tokenizer, policy)
        self._context = context
        self._policy = policy
        self._sequence = sequence or SequenceScorer(network, start, details)
        self._keep_tokens = keep_tokens
        self._item = _Totals()
        self._stream = _Totals()
        self._piece = _Totals()
        self._piece_tokens: list[TokenScore] = []
        self._last_visible: list[int] = []
        self.item_count = 0
        """Texts or items that were ended."""
        self.is_open = False
        """Whether a text or item has begun that is not ended yet."""

    @property
    def total(self) -> Summary:
        """Summary of all tokens so far."""
        return self._stream.summary

    @property
    def piece_token_count(self) -> int:
        """Tokens scored so far of the piece that is being fed."""
        return self._piece.tokens

    @property
    def state(self) -> SessionState:
        """The state after all tokens so far; text that is held back is not part of it."""
        return self._sequence.state

    def take_tokens(self) -> tuple[TokenScore, ...]:
        """Returns the tokens of the piece that is being fed which are scored by now.

        They are handed over: neither the next call nor the piece's score has them again.
        """
        taken = tuple(self._piece_tokens)
        self._piece_tokens = []
        return taken

    def read_context(self) -> Iterator[None]:
        """Reads the context, in short steps, if that is not done yet.

        Yields:
            None after every step.

        Raises:
            UnknownSymbolError: A symbol of it is unknown and the policy is ERROR.
        """
        if self._context:
            context = self._context
            self._context = ""
            tokens = yield from encode_in_steps(self._tokenizer, context, self._policy)
            yield from self._sequence.read(tokens)

    def feed(self, text: str, end: bool = False) -> Iterator[PieceScore | None]:
        """Scores the next piece, in short steps.

        Args:
            text: The next text, of any length.
            end: Whether the text or item ends here: text held back is then scored, of layout LINES
                the end token too, and what follows begins a new text or item.

        Yields:
            None after every step, and at last the score.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR; its position is that
                in the whole text. The stream cannot continue, unless it is restored.
            ConfigError: Too many characters would be held back; see `IncrementalEncoder`.
        """
        yield from self._begin()
        self.is_open = self.is_open or bool(text)
        for start in range(0, len(text), _SLICE):
            yield from self._score(self._reader.push(text[start : start + _SLICE]))
        whole = None
        if end:
            yield from self._score(self._reader.end())
            if self._tokenizer.end is not None:
                yield from self._score(np.array([self._tokenizer.end], np.int32))
            whole = self._end_item()
        yield PieceScore(self._piece.nats, self._piece.tokens, tuple(self._piece_tokens), whole)

    def finish(self) -> Iterator[None]:
        """Ends the stream without an end of its text: scores what is held back, in short steps.

        Yields:
            None after every step.

        Raises:
            UnknownSymbolError: As for `feed`.
        """
        yield from self._begin()
        yield from self._score(self._reader.end())

    def mark(self) -> StreamMark:
        """Returns a mark between two pieces that `restore` can return to."""
        return StreamMark(
            reader=self._reader.copied(),
            context=self._context,
            state=self._sequence.state,
            item=replace(self._item),
            stream=replace(self._stream),
            last_visible=tuple(self._last_visible),
            item_count=self.item_count,
            is_open=self.is_open,
        )

    def restore(self, mark: StreamMark, error: Exception | None = None) -> None:
        """Goes back to a mark; it may be used any number of times.

        What follows scores bit for bit what it did then. Text that was held back then is dropped
        if it caused the error: it would fail again.

        Args:
            mark: The mark to return to.
            error: The error since then, if there was one.
        """
        at_fault = (
            isinstance(error, UnknownSymbolError)
            and error.position < mark.reader.position
            and self.item_count == mark.item_count  # else the position is that in a later item
        )
        self._reader = mark.reader.copied()
        if at_fault:
            self._reader.drop()
        self._context = mark.context
        self._sequence.begin(mark.state)
        self._item = replace(mark.item)
        self._stream = replace(mark.stream)
        self._last_visible = list(mark.last_visible)
        self.item_count = mark.item_count
        self.is_open = mark.is_open

    def _begin(self) -> Iterator[None]:
        """Begins a piece."""
        self._piece = _Totals()
        self._piece_tokens = []
        yield from self.read_context()

    def _end_item(self) -> Summary:
        whole = self._item.summary
        self.item_count += 1
        self.is_open = False
        self._item = _Totals()
        self._last_visible = []
        self._sequence.begin(self._network.beginning())
        return whole

    def _score(self, tokens: Ints) -> Iterator[None]:
        """Scores tokens (N,), a window a step."""
        for part, scores in self._sequence.score(tokens):
            self._add(part, scores)
            yield

    def _add(self, part: Ints, scores: Scores) -> None:
        """Adds the scores of some tokens (n,) to the totals."""
        scored = part[part.size - scores.log_probabilities.size :]
        values = scores.log_probabilities.tolist()
        characters = self._characters(scored)
        unknown = self._tokenizer.count_unknown(scored)
        for totals in (self._item, self._stream, self._piece):
            totals.add(values, characters, unknown)
        if self._keep_tokens:
            self._piece_tokens += token_scores(self._tokenizer, part, scores)

    def _characters(self, scored: Ints) -> int:
        """Returns how many more code points the item has with some scored tokens (n,)."""
        # Counted together with the last visible token: events have blanks between them.
        before = self._last_visible
        tokens = scored.tolist()
        count = self._tokenizer.characters
        for token in reversed(tokens):
            if count([token]):
                self._last_visible = [token]
                break
        return count([*before, *tokens]) - count(before)


@dataclass
class _Totals:
    """Running sums over tokens."""

    nats: float = 0.0
    tokens: int = 0
    characters: int = 0
    unknown: int = 0

    def add(self, values: list[float], characters: int, unknown: int) -> None:
        """Adds more tokens, by their log-probabilities."""
        self.nats = in_order(values, self.nats)
        self.tokens += len(values)
        self.characters += characters
        self.unknown += unknown

    @property
    def summary(self) -> Summary:
        """The sums so far."""
        return Summary(self.nats, self.tokens, self.characters, self.unknown)


@dataclass(frozen=True)
class StreamMark:
    """A `StreamScorer` as it was between two pieces."""

    reader: IncrementalEncoder
    context: str
    state: SessionState
    item: _Totals
    stream: _Totals
    last_visible: tuple[int, ...]
    item_count: int
    is_open: bool
