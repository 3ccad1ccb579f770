"""`BeamSearch` finds the likeliest texts among those that the best beginnings lead to.

Of each length the `best_of` best beginnings are kept. The score of a text is the sum of its tokens'
log-probabilities and biases. Equal scores are ordered by the index of the beginning, then by the
tokens' logits, then by the lower token, so a beam of one is the greedy choice.

No further token raises a score (biases above 0 are taken into account). So the search is over once
the texts asked for have ended and no beginning could still pass them. Where `best_of` holds all
beginnings, the texts found are the best there are. There is no bonus for length: of two texts the
likelier one wins, which often is the shorter one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError
from treadle.model.generation.beam_rows import (
    Array,
    BeamRows,
    Continuations,
    continuations,
    largest_first,
    token_rank,
)
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.output import NO_TOKEN_LEFT, StopReason
from treadle.model.generation.stop_sequences import StopFilter, StoppedText, stopped_text
from treadle.model.network.prefill import read_tokens
from treadle.model.scoring.token_score import Alternative, TokenScore

if TYPE_CHECKING:
    from treadle.model.generation.sampling import ResolvedSampling
    from treadle.model.network.session_state import SessionState
    from treadle.model.network.trained_network import TrainedNetwork
    from treadle.model.tokenizers.base import Tokenizer

Ints = npt.NDArray[np.int32]


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
class _Alternatives:
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
    alternatives: _Alternatives | None = None

    def path(self) -> list[_Node]:
        """Returns the beginnings of every length from 1 to this one."""
        nodes = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class _PathScores(Sequence[TokenScore]):
    """The tokens of a text, each made when it is read.

    A long text has a million alternatives. As that many objects they would take half a gigabyte,
    and Python's garbage collector would look at all of them while every other thread waits.

    Args:
        tokenizer: Gives the texts of tokens.
        path: The beginnings that end with each token.
    """

    def __init__(self, tokenizer: Tokenizer, path: list[_Node]) -> None:
        self._tokenizer = tokenizer
        self._path = path

    def __len__(self) -> int:
        return len(self._path)

    @overload
    def __getitem__(self, index: int) -> TokenScore: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[TokenScore, ...]: ...

    def __getitem__(self, index: int | slice) -> TokenScore | tuple[TokenScore, ...]:
        if isinstance(index, slice):
            return tuple(map(self._token_score, self._path[index]))
        return self._token_score(self._path[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def _token_score(self, node: _Node) -> TokenScore:
        text_of = self._tokenizer.token_text
        others: tuple[Alternative, ...] = ()
        if node.alternatives is not None:
            ids = node.alternatives.ids.tolist()
            scores = node.alternatives.scores.tolist()
            pairs = zip(ids, scores, strict=True)
            others = tuple(Alternative(token, text_of(token), score) for token, score in pairs)
        return TokenScore(node.token, text_of(node.token), node.log_probability, node.rank, others)


@dataclass(frozen=True, slots=True)
class _Finished:
    """A text that has ended."""

    node: _Node
    reason: StopReason


@dataclass(frozen=True, slots=True)
class _Details:
    """What is kept of a row (V,) of logits, for reporting the token that is chosen from it."""

    logits: Array
    """A copy where ranks are asked for, otherwise empty."""
    alternatives: _Alternatives | None


class BeamSearch:
    """The search for the likeliest texts after a state. Nothing is computed before `steps`.

    Args:
        network: The network that generates.
        sampling: Which tokens are allowed; `best_of` of the settings is the width of the beam.
            Settings of random draws (temperature, penalties and the like) are not used.
        begun: The state after the prompt, with a token to continue from.
        count: How many texts to find, at most `best_of`.
        continues: Whether states are asked for. Half a character at the end of a text is then not
            shown: the text that continues begins with it.
        deadline: When to end; None: `max_time_s` of the settings from now on.
    """

    def __init__(
        self,
        network: TrainedNetwork,
        sampling: ResolvedSampling,
        begun: SessionState,
        count: int,
        continues: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        settings = sampling.settings
        assert begun.token >= 0
        assert 1 <= count <= settings.best_of
        self._network = network
        self._tokenizer = network.tokenizer
        self._sampling = sampling
        self._settings = settings
        self._begun = begun
        self._count = count
        self._continues = continues
        self._deadline = Deadline(settings.max_time_s) if deadline is None else deadline
        self._end = -1 if network.tokenizer.end is None else network.tokenizer.end
        bias = sampling.bias
        self._max_bias = 0.0 if bias is None else max(0.0, float(bias.max()))
        self._rows = BeamRows(network.shape, network.weights, begun)
        stops = StopFilter(settings.stop_sequences) if settings.stop_sequences else None
        root = _Node(None, begun.token, 0, 0.0, 0.0, held=begun.held, filter=stops)
        self._live: list[_Node] = []
        self._finished: list[_Finished] = []
        self._results: list[Hypothesis] = []
        reason = self._reason_at_once()
        if reason is None:
            self._live = [root]
        else:
            self._finished = [_Finished(root, reason)]

    def steps(self) -> Iterator[None]:
        """Searches; yields between short pieces of work.

        Raises:
            ConfigError: The settings leave no token to choose.
        """
        while self._live:
            found: list[Continuations] = []
            details: list[_Details] = []
            for first, logits, scores in self._rows.read([node.token for node in self._live]):
                for row, node in enumerate(self._live[first : first + len(logits)]):
                    found.append(
                        continuations(
                            self._sampling,
                            self._end,
                            node.length,
                            node.rule,
                            logits[row],
                            scores[row],
                        )
                    )
                    details.append(self._details(logits[row], scores[row]))
                yield
            self._extend(found, details)
            self._stop_when_settled()
        for finished in self._finished:
            yield from self._conclude(finished)

    def results(self) -> list[Hypothesis]:
        """Returns the texts found, best first; fewer than asked for where there are no more."""
        return self._results

    def beginnings(self) -> int:
        """Returns how many beginnings of texts are kept; takes time in proportion to them."""
        seen: set[int] = set()
        for node in (*self._live, *(finished.node for finished in self._finished)):
            at: _Node | None = node
            while at is not None and id(at) not in seen:
                seen.add(id(at))
                at = at.parent
        return len(seen)

    def _reason_at_once(self) -> StopReason | None:
        """Returns why no token is to be chosen at all, if that is so."""
        if self._settings.max_new_tokens == 0:
            return StopReason.MAX_NEW_TOKENS
        constraint = self._sampling.constraint
        # A model with end tokens still chooses one: its log-probability is part of the result.
        if constraint is not None and constraint.ended(0) and self._end < 0:
            return StopReason.REGEX_COMPLETE
        return None

    def _details(self, logits: Array, scores: Array) -> _Details:
        kept = logits.copy() if self._settings.ranks else logits[:0]
        count = self._settings.top_log_probabilities
        if not count:
            return _Details(kept, None)
        ids = largest_first(logits, count)
        return _Details(kept, _Alternatives(ids.astype(np.int32), scores[ids]))

    def _extend(self, found: list[Continuations], details: list[_Details]) -> None:
        """Continues with the best beginnings that are a token longer."""
        beams = np.repeat(np.arange(len(found)), [row.tokens.size for row in found])
        tokens, edited, scores, own = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )
        totals = np.array([node.score for node in self._live])[beams] + scores
        order = np.lexsort((tokens, -edited, beams, -totals))[: self._settings.best_of]
        if not order.size and not self._finished:
            raise ConfigError(NO_TOKEN_LEFT, "banned_tokens")
        live = []
        rows = []
        for place in order.tolist():
            beam = int(beams[place])
            token = int(tokens[place])
            node = self._child(
                self._live[beam], token, float(totals[place]), float(own[place]), details[beam]
            )
            reason = self._reason(node)
            if reason is None:
                live.append(node)
                rows.append(beam)
            else:
                self._finished.append(_Finished(node, reason))
        self._live = live
        self._rows.keep(rows)
        self._keep_best_finished()

    def _keep_best_finished(self) -> None:
        self._finished.sort(key=lambda finished: -finished.node.score)  # stable: equals in order
        del self._finished[self._count :]

    def _child(
        self, parent: _Node, token: int, score: float, log_probability: float, details: _Details
    ) -> _Node:
        """Returns a beginning with another token."""
        rule = parent.rule
        held = parent.held
        stops = parent.filter
        if self._sampling.constraint is not None:
            rule = int(self._sampling.constraint.table[rule, token])
        if stops is not None and token != self._end:
            stream = self._tokenizer.stream(held)
            text = stream.push([token])
            held = stream.held
            if parent.length >= self._settings.min_new_tokens:
                stops = copy.copy(stops)
                stops.push(text)
        return _Node(
            parent,
            token,
            parent.length + 1,
            score,
            parent.total + log_probability,
            rule,
            held,
            stops,
            log_probability,
            token_rank(details.logits, token) if details.logits.size else 0,
            details.alternatives,
        )

    def _reason(self, node: _Node) -> StopReason | None:
        """Returns why a beginning is the whole text, if that is so."""
        if node.token == self._end:
            return StopReason.END_TOKEN
        if node.filter is not None and node.filter.found:
            return StopReason.STOP_SEQUENCE
        constraint = self._sampling.constraint
        if constraint is not None and constraint.ended(node.rule):
            return StopReason.REGEX_COMPLETE
        if node.length >= self._settings.max_new_tokens:
            return StopReason.MAX_NEW_TOKENS
        return None

    def _stop_when_settled(self) -> None:
        """Ends the search once no beginning can pass the texts found, or the time is over."""
        if not self._live:
            return
        best = self._live[0]
        if len(self._finished) == self._count:
            left = self._settings.max_new_tokens - best.length
            if self._finished[-1].node.score >= best.score + left * self._max_bias:
                self._live = []
        if self._deadline.over:
            self._finished += [_Finished(node, StopReason.TIME_LIMIT) for node in self._live]
            self._keep_best_finished()
            self._live = []

    def _conclude(self, finished: _Finished) -> Iterator[None]:
        """Adds the result of a text: its text, and the state after it, which is computed again."""
        path = finished.node.path()
        ids = [node.token for node in path]
        shown = self._shown_text(ids, finished.reason)
        kept = ids[: shown.kept]
        tokens = np.array(kept, np.int32)
        state = self._begun
        if self._continues:
            network = self._network
            for after in read_tokens(network.shape, network.weights, self._begun, tokens):
                state = after
                yield
        complete = None
        if self._sampling.constraint is not None:
            rule = path[shown.kept - 1].rule if shown.kept else 0
            complete = bool(self._sampling.constraint.complete[rule])
        self._results.append(
            Hypothesis(
                text=shown.text,
                ids=tuple(kept),
                tokens=_PathScores(self._tokenizer, path),
                total_log_probability=finished.node.total,
                stop_reason=StopReason.STOP_SEQUENCE if shown.stop else finished.reason,
                stop_sequence=shown.stop,
                regex_complete=complete,
                state=replace(state, held=shown.held),
            )
        )

    def _shown_text(self, ids: list[int], reason: StopReason) -> StoppedText:
        has_end = reason is StopReason.END_TOKEN
        return stopped_text(
            self._tokenizer,
            self._begun.held,
            ids[:-1] if has_end else ids,
            self._settings,
            flush=has_end or not self._continues,
        )
