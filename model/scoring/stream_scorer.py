"""Scoring a stream as it comes, in memory that does not grow with it.

Pieces may be cut anywhere: every token scores bit for bit what it does in the whole text, and the
sums are added up in the order of the tokens, so that they are those of the whole as well.
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
from treadle.model.tokenizers.incremental import IncrementalEncoder, encode_in_steps

Ints = npt.NDArray[np.int32]

_SLICE = 2048
"""Characters made tokens in one step."""


class StreamScorer:
    """Scores texts or items that come in pieces, one after the other."""

    def __init__(
        self,
        network: TrainedNetwork,
        details: Details,
        policy: UnknownPolicy | None,
        begun: SessionState,
        context: str = "",
        *,
        keep_tokens: bool = True,
    ) -> None:
        """Begins a stream.

        Args:
            network: What scores.
            details: What is wanted of every scored token.
            policy: What to do with unknown symbols; None: the model's own policy.
            begun: Where the first text begins; see `Model.beginning`. Later ones do after nothing.
            context: What the first text follows; read by `read_context`, or else with the first
                piece, and not scored.
            keep_tokens: Whether a PieceScore holds its tokens.

        Raises:
            ConfigError: The policy is UNKNOWN and there is no unknown token.
        """
        self._network = network
        self._tokenizer = network.tokenizer
        self._reader = IncrementalEncoder(network.tokenizer, policy)
        self._context, self._policy = context, policy
        self._sequence = SequenceScorer(
            network.shape, network.weights, network.tokenizer, begun, details
        )
        self._keep_tokens = keep_tokens
        self._item, self._total, self._piece = _Tally(), _Tally(), _Tally()
        self._piece_tokens: list[TokenScore] = []
        self._shown: list[int] = []
        self.item_count = 0
        """Texts or items that were ended."""
        self.is_open = False
        """Whether a text or item has begun that is not ended yet."""

    @property
    def total(self) -> Summary:
        """What all tokens so far scored."""
        return self._total.summary

    @property
    def piece_token_count(self) -> int:
        """Tokens scored so far of the piece that is being fed."""
        return self._piece.tokens

    @property
    def state(self) -> SessionState:
        """The state after all tokens so far; what waits to be made a token is not among them."""
        return self._sequence.state

    def take_tokens(self) -> tuple[TokenScore, ...]:
        """Returns the tokens of the piece that is being fed which are scored by now.

        They are handed over: neither the next call nor the piece's score has them again.
        """
        taken, self._piece_tokens = tuple(self._piece_tokens), []
        return taken

    def read_context(self) -> Iterator[None]:
        """Reads the context, in short steps, if that is not done yet.

        Raises:
            UnknownSymbolError: A symbol of it is unknown and the policy is ERROR.
        """
        if self._context:
            context, self._context = self._context, ""
            tokens = yield from encode_in_steps(self._tokenizer, context, self._policy)
            yield from self._sequence.read(tokens)

    def feed(self, text: str, end: bool = False) -> Iterator[PieceScore | None]:
        """Scores the next piece, in short steps.

        Args:
            text: The next text, of any length.
            end: Whether the text or item ends here: what waits is scored, of layout LINES the end
                token too, and what follows begins again, after nothing.

        Yields:
            None after every step, and at last the score.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR; its position is that
                in the whole text. The stream cannot continue, unless it is restored.
            ConfigError: Too many characters would wait; see `IncrementalEncoder`.
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
        """Ends the stream without an end of its text: score what waits, in short steps.

        Raises:
            UnknownSymbolError: As for `feed`.
        """
        yield from self._begin()
        yield from self._score(self._reader.end())

    def mark(self) -> StreamMark:
        """Returns where the stream stands between two pieces."""
        return StreamMark(
            self._reader.copied(), self._context, self._sequence.state, replace(self._item),
            replace(self._total), tuple(self._shown), self.item_count, self.is_open,
        )  # fmt: skip

    def restore(self, mark: StreamMark, error: Exception | None = None) -> None:
        """Goes back to where the stream stood, as often as one likes.

        What follows scores bit for bit what it did then. Text that waited then is dropped where
        it is at fault: it would fail again.

        Args:
            mark: Where it stood.
            error: What failed since.
        """
        at_fault = (
            isinstance(error, UnknownSymbolError)
            and error.position < mark.reader.position
            and self.item_count == mark.item_count  # else the position is that in a later item
        )
        self._reader, self._context = mark.reader.copied(), mark.context
        if at_fault:
            self._reader.drop()
        self._sequence.begin(mark.state)
        self._item, self._total = replace(mark.item), replace(mark.total)
        self._shown = list(mark.shown)
        self.item_count, self.is_open = mark.item_count, mark.is_open

    def _begin(self) -> Iterator[None]:
        """Begins a piece."""
        self._piece, self._piece_tokens = _Tally(), []
        yield from self.read_context()

    def _end_item(self) -> Summary:
        self.item_count += 1
        self.is_open = False
        whole, self._item = self._item.summary, _Tally()
        self._shown = []
        self._sequence.begin(self._network.beginning())
        return whole

    def _score(self, tokens: Ints) -> Iterator[None]:
        """Scores tokens (N,), a window a step."""
        for part, scores in self._sequence.score(tokens):
            self._add(part, scores)
            yield

    def _add(self, part: Ints, scores: Scores) -> None:
        scored = part[part.size - scores.log_probabilities.size :]
        values, characters = scores.log_probabilities.tolist(), self._characters(scored)
        unknown = self._tokenizer.count_unknown(scored)
        for tally in (self._item, self._total, self._piece):
            tally.add(values, characters, unknown)
        if self._keep_tokens:
            self._piece_tokens += token_scores(self._tokenizer, part, scores)

    def _characters(self, scored: Ints) -> int:
        """Returns the code points that more of the item's scored tokens (n,) stand for."""
        # Counted together with the last token that showed: events have blanks between them.
        before, tokens = self._shown, scored.tolist()
        count = self._tokenizer.characters
        for token in reversed(tokens):
            if count([token]):
                self._shown = [token]
                break
        return count([*before, *tokens]) - count(before)


@dataclass
class _Tally:
    """Running sums over tokens."""

    nats: float = 0.0
    tokens: int = 0
    characters: int = 0
    unknown: int = 0

    def add(self, values: list[float], characters: int, unknown: int) -> None:
        """Counts more tokens, by their log-probabilities."""
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
    """Where a `StreamScorer` stood between two pieces."""

    reader: IncrementalEncoder
    context: str
    state: SessionState
    item: _Tally
    total: _Tally
    shown: tuple[int, ...]
    item_count: int
    is_open: bool
