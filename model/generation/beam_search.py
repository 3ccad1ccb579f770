"""Beam search: the likeliest texts, as far as the most promising beginnings lead to them.

Of each length the `best_of` best beginnings are kept. A text's score is the sum of its tokens'
log-probabilities and biases; equal scores go by the beginning's place, then the tokens' logits,
then the lower token, so a beam of one is the greedy choice. As no score rises by another token
(biases above 0 are reckoned with), the search is over once the texts asked for are ended and
none that goes on could still pass them. Where `best_of` holds all beginnings, what is found is the
best there is. There is no bonus for length: of two texts the likelier one wins, which often is the
shorter one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

import numpy as np

from treadle.model.errors import ConfigError
from treadle.model.generation.beam_rows import (
    Array,
    Followers,
    Rows,
    best_first,
    followers,
    token_rank,
)
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.generation.sequence import StopReason
from treadle.model.generation.spelling import Spelling, spell
from treadle.model.generation.stop_sequences import StopFilter
from treadle.model.network.prefill import Ints, read_tokens
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.token_score import Alternative, TokenScore

if TYPE_CHECKING:
    from treadle.model.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Hypothesis:
    """A text that was found."""

    text: str
    """The text, up to a stop sequence."""
    ids: tuple[int, ...]
    """Its tokens: no end token, none with part of a stop sequence."""
    tokens: Sequence[TokenScore]
    """All tokens chosen, an end token and those of a stop sequence included."""
    total_log_probability: float
    """Sum over those, in nats, under the model itself."""
    stop_reason: StopReason
    """Why it ended."""
    stop_sequence: str
    """The stop sequence that ended it, or an empty text."""
    regex_complete: bool | None
    """Whether the text's tokens match the regular expression as a whole; None without one."""
    state: SessionState = field(compare=False)
    """The state after `ids`, where states are asked for; its seed and position are those that the
    search began with."""

    @property
    def new_tokens(self) -> int:
        """How many tokens were chosen."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class _Others:
    """The likeliest tokens in the place of one, best first."""

    ids: Ints
    scores: Array


@dataclass(frozen=True, slots=True)
class _Node:
    """A beginning of a text: another beginning and a token."""

    parent: _Node | None
    token: int
    length: int
    score: float
    total: float
    rule: int = 0
    held: bytes = b""
    filter: StopFilter | None = None
    log_probability: float = 0.0
    rank: int = 0
    others: _Others | None = None

    def path(self) -> list[_Node]:
        """The beginnings of every length from 1 to this one."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class _Told(Sequence[TokenScore]):
    """The tokens of a text, each made when it is asked for.

    A long text has a million alternatives. As that many objects they would take half a gigabyte,
    and Python's collector of garbage would look at all of them while every other thread waits.

    Args:
        tokenizer: gives the texts of tokens.
        path: the beginnings that end with each token.
    """

    def __init__(self, tokenizer: Tokenizer, path: list[_Node]) -> None:
        self._tokenizer = tokenizer
        self._path = path

    def __len__(self) -> int:
        return len(self._path)

    @overload
    def __getitem__(self, place: int) -> TokenScore: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[TokenScore, ...]: ...

    def __getitem__(self, place: int | slice) -> TokenScore | tuple[TokenScore, ...]:
        if isinstance(place, slice):
            return tuple(map(self._made, self._path[place]))
        return self._made(self._path[place])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def _made(self, node: _Node) -> TokenScore:
        text_of = self._tokenizer.token_text
        others: tuple[Alternative, ...] = ()
        if node.others is not None:
            pairs = zip(node.others.ids.tolist(), node.others.scores.tolist(), strict=True)
            others = tuple(Alternative(token, text_of(token), score) for token, score in pairs)
        return TokenScore(node.token, text_of(node.token), node.log_probability, node.rank, others)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A text that goes no further."""

    node: _Node
    reason: StopReason


class BeamSearch:
    """The search for the likeliest texts after a state."""

    def __init__(
        self, model: TrainedNetwork, choices: ResolvedSampling, begun: SessionState, count: int,
        goes_on: bool = False, deadline: Deadline | None = None,
    ) -> None:  # fmt: skip
        """Begin; nothing is computed yet.

        Args:
            model: whose texts to find.
            choices: what they may be; `best_of` of the settings is the beam's width. Settings of
                the draw (temperature, penalties and the like) are not looked at.
            begun: the state after the prompt, with a token to go on from.
            count: how many texts to find, at most `best_of`.
            goes_on: whether states are asked for: half a character at the end of a text is then
                left to whoever goes on.
            deadline: when to end; None: `max_time_s` of the settings from now on.
        """
        sampling = choices.sampling
        assert begun.token >= 0
        assert 1 <= count <= sampling.best_of
        self._model, self._sampling, self._begun = model, sampling, begun
        self._count, self._goes_on = count, goes_on
        self._deadline = Deadline(sampling.max_time_s) if deadline is None else deadline
        self._choices = choices
        self._end = -1 if model.tokenizer.end is None else model.tokenizer.end
        bias = self._choices.bias
        self._most_bias = 0.0 if bias is None else max(0.0, float(bias.max()))
        self._rows = Rows(model.shape, model.weights, begun)
        stops = StopFilter(sampling.stop_sequences) if sampling.stop_sequences else None
        root = _Node(None, begun.token, 0, 0.0, 0.0, held=begun.held, filter=stops)
        self._live: list[_Node] = []
        self._ended: list[_Ended] = []
        self._results: list[Hypothesis] = []
        reason = self._reason_at_once()
        if reason is None:
            self._live = [root]
        else:
            self._ended = [_Ended(root, reason)]

    def steps(self) -> Iterator[None]:
        """Search; yields between short pieces of work.

        Raises:
            ConfigError: the settings leave no token to choose.
        """
        while self._live:
            found: list[Followers] = []
            seen: list[tuple[Array, _Others | None]] = []
            for first, logits, scores in self._rows.read([node.token for node in self._live]):
                for row, node in enumerate(self._live[first : first + len(logits)]):
                    of_row = logits[row], scores[row]
                    found.append(
                        followers(self._choices, self._end, node.length, node.rule, *of_row)
                    )
                    seen.append(self._seen(*of_row))
                yield
            self._grow(found, seen)
            self._stop_when_settled()
        for ended in self._ended:
            yield from self._conclude(ended)

    def results(self) -> list[Hypothesis]:
        """Return the texts found, best first; fewer than asked for where there are no more."""
        return self._results

    def beginnings(self) -> int:
        """Return how many beginnings of texts are kept; this takes as long as there are many."""
        seen: set[int] = set()
        for node in (*self._live, *(ended.node for ended in self._ended)):
            at: _Node | None = node
            while at is not None and id(at) not in seen:
                seen.add(id(at))
                at = at.parent
        return len(seen)

    def _reason_at_once(self) -> StopReason | None:
        """Why no token is to be chosen at all, if that is so."""
        if self._sampling.max_new_tokens == 0:
            return StopReason.MAX_NEW_TOKENS
        constraint = self._choices.constraint
        # A model with end tokens is asked how likely the end is.
        if constraint is not None and constraint.ended(0) and self._end < 0:
            return StopReason.REGEX_COMPLETE
        return None

    def _seen(self, logits: Array, scores: Array) -> tuple[Array, _Others | None]:
        """What is to be told of a row (V,) beside its best tokens: its logits, the likeliest."""
        kept = logits.copy() if self._sampling.ranks else logits[:0]
        count = self._sampling.top_log_probabilities
        if not count:
            return kept, None
        ids = best_first(logits, count)
        return kept, _Others(ids.astype(np.int32), scores[ids])

    def _grow(self, found: list[Followers], seen: list[tuple[Array, _Others | None]]) -> None:
        """Go on with the best beginnings that are a token longer."""
        beams = np.repeat(np.arange(len(found)), [row.tokens.size for row in found])
        tokens, edited, scores, own = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )
        totals = np.array([node.score for node in self._live])[beams] + scores
        order = np.lexsort((tokens, -edited, beams, -totals))[: self._sampling.best_of]
        if not order.size and not self._ended:
            raise ConfigError(_NOTHING_LEFT, "banned_tokens")
        live, places = [], []
        for place in order.tolist():
            beam, token = int(beams[place]), int(tokens[place])
            logits, others = seen[beam]
            rank = token_rank(logits, token) if logits.size else 0
            score, log_probability = float(totals[place]), float(own[place])
            node = self._child(self._live[beam], token, score, log_probability, rank, others)
            reason = self._reason(node)
            if reason is None:
                live.append(node)
                places.append(beam)
            else:
                self._ended.append(_Ended(node, reason))
        self._live = live
        self._rows.keep(places)
        self._ended.sort(key=lambda ended: -ended.node.score)  # stable: the earlier of equals
        del self._ended[self._count :]

    def _child(
        self, parent: _Node, token: int, score: float, log_probability: float, rank: int,
        others: _Others | None,
    ) -> _Node:  # fmt: skip
        """A beginning with another token."""
        rule, held, stops = parent.rule, parent.held, parent.filter
        if self._choices.constraint is not None:
            rule = int(self._choices.constraint.table[rule, token])
        if stops is not None and token != self._end:
            stream = self._model.tokenizer.stream(held)
            text, held = stream.push([token]), stream.held
            if parent.length >= self._sampling.min_new_tokens:
                stops = copy.copy(stops)
                stops.push(text)
        return _Node(
            parent, token, parent.length + 1, score, parent.total + log_probability, rule, held,
            stops, log_probability, rank, others,
        )  # fmt: skip

    def _reason(self, node: _Node) -> StopReason | None:
        """Why a beginning goes no further, if that is so."""
        if node.token == self._end:
            return StopReason.END_TOKEN
        if node.filter is not None and node.filter.found:
            return StopReason.STOP_SEQUENCE
        constraint = self._choices.constraint
        if constraint is not None and constraint.ended(node.rule):
            return StopReason.REGEX_COMPLETE
        if node.length >= self._sampling.max_new_tokens:
            return StopReason.MAX_NEW_TOKENS
        return None

    def _stop_when_settled(self) -> None:
        """End the search once no beginning can pass the texts found, or the time is over."""
        if not self._live:
            return
        best = self._live[0]
        if len(self._ended) == self._count:
            left = self._sampling.max_new_tokens - best.length
            if self._ended[-1].node.score >= best.score + left * self._most_bias:
                self._live = []
        if self._deadline.over:
            self._ended += [_Ended(node, StopReason.TIME_LIMIT) for node in self._live]
            self._ended.sort(key=lambda ended: -ended.node.score)
            del self._ended[self._count :]
            self._live = []

    def _conclude(self, ended: _Ended) -> Iterator[None]:
        """Make a result of a text: its words, and the state after it, which is read anew."""
        path, model = ended.node.path(), self._model
        ids = [node.token for node in path]
        spelling = self._spell(ids, ended.reason)
        kept = ids[: spelling.kept]
        tokens, state = np.array(kept, np.int32), self._begun
        if self._goes_on:
            for after in read_tokens(model.shape, model.weights, self._begun, tokens):
                state = after
                yield
        rule, complete = ([0] + [node.rule for node in path])[spelling.kept], None
        if self._choices.constraint is not None:
            complete = bool(self._choices.constraint.complete[rule])
        self._results.append(
            Hypothesis(
                text=spelling.text,
                ids=tuple(kept),
                tokens=_Told(model.tokenizer, path),
                total_log_probability=ended.node.total,
                stop_reason=StopReason.STOP_SEQUENCE if spelling.stop else ended.reason,
                stop_sequence=spelling.stop,
                regex_complete=complete,
                state=replace(state, held=spelling.held),
            )
        )

    def _spell(self, ids: list[int], reason: StopReason) -> Spelling:
        has_end = reason is StopReason.END_TOKEN
        return spell(
            self._model.tokenizer, self._begun.held, ids[:-1] if has_end else ids,
            self._sampling, flush=has_end or not self._goes_on,
        )  # fmt: skip


_NOTHING_LEFT = (
    "no token is left to choose: banned_tokens, token_biases, min_new_tokens and regex together "
    "exclude all of them; take one of them back"
)
