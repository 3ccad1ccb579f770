"""Sessions that decode together, joining and leaving between two chunks of tokens.

Every row of a step is computed by itself (see exactness in the kernels), so who else is in the
group changes no bit of a session: groups are a matter of speed alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.kernels.decode import DecodedTokens, Sequences, decode
from treadle.kernels.logit_edits import NO_CONSTRAINT, LogitEdits
from treadle.model.generation.constraint import Constraint
from treadle.model.generation.sampling import ResolvedSampling
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import CELL_CODES, Shape
from treadle.model.network.workspace import allocate_workspace
from treadle.model.tokenizers.token_ids import check_tokens

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

MOST_ROWS = 64
"""Sessions of one group at most: more of them gain nothing, and make its steps long."""


@dataclass(eq=False)
class Seat:
    """What one session brings to a group; read when it joins."""

    choices: ResolvedSampling
    """How its tokens are chosen."""
    state: SessionState
    """Where it begins; its token is at least 0."""
    end: int
    """The token that ends it, or -1."""
    prompt: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    """(N,), the caller's tokens."""
    made: int = 0
    """Tokens of the new text so far."""
    rule: int = 0
    """The state of its automaton, where it has one."""
    counts: Ints | None = None
    """(2, V), how often the new text and the prompt hold each token; None where the settings do
    not ask. Never written to."""


@dataclass(frozen=True)
class Chunk:
    """What N steps of M sessions gave; lists, since these are read one by one."""

    tokens: list[list[int]]
    """[M][N]; -1 after a session's end."""
    log_probabilities: list[list[float]]
    """[M][N], of each token under the model itself, in nats."""
    drawn: DecodedTokens
    """The same as arrays (N, M), and what else was asked for."""


class Group:
    """Some sessions of one model."""

    def __init__(self, shape: Shape, weights: structs.Weights) -> None:
        """Begin with no session.

        Args:
            shape: the network's sizes.
            weights: packed for inference; only read.
        """
        self._shape = shape
        self._weights = weights
        self._cell = CELL_CODES[shape.cell]
        self.seats: list[Seat] = []
        """Who is in it, in the order of the rows."""
        self._rules = _Rules(shape.V)
        empty = (shape.L, 0, shape.H)
        self._state = structs.State(np.zeros(empty, np.float32), np.zeros(empty, np.float32))
        self._sessions = _sessions([])
        self._edits = _edits([], shape.V, self._rules)
        self._works: dict[int, structs.Workspace] = {}

    def change(self, leaving: Collection[Seat], joining: Sequence[Seat]) -> None:
        """Let sessions leave, and others join; those that stay notice nothing.

        Args:
            leaving: seats; one that has not ended may join again later, here or elsewhere.
            joining: seats; with those that stay, at most MOST_ROWS.

        Raises:
            TokenError: a seat's token is not in the vocabulary; nothing has changed then.
        """
        for seat in joining:
            self._check(seat)
        assert len(self.seats) - len(leaving) + len(joining) <= MOST_ROWS
        keep = []
        for m, seat in enumerate(self.seats):
            self._note(m, seat)
            if seat not in leaving:
                keep.append(m)
            else:
                seat.state = self.state_of(m)
        stay = [self.seats[m] for m in keep]
        self._rules = self._rules.of([seat.choices.constraint for seat in (*stay, *joining)])
        self._state = structs.State(
            *(
                # Contiguous whatever was picked: kernels are compiled for nothing else.
                np.ascontiguousarray(
                    np.concatenate((array[:, keep], _stacked(joining, name, array)), axis=1)
                )
                for name, array in (("hs", self._state.h), ("cs", self._state.c))
            )
        )
        self._sessions = _joined(self._sessions, _sessions(joining), keep)
        self.seats = [*stay, *joining]
        self._edits = _edits(self.seats, self._shape.V, self._rules)

    def _check(self, seat: Seat) -> None:
        """Check everything in a seat that kernels index with."""
        V = self._shape.V
        check_tokens(np.array([seat.state.token], np.int64), V)
        check_tokens(np.array([seat.end], np.int64), V, least=-1)
        check_tokens(seat.choices.forced, V, least=-1)
        if seat.choices.constraint is not None:
            seat.choices.constraint.check(V, seat.rule)

    def _note(self, m: int, seat: Seat) -> None:
        """Take down in a seat what its session has come to."""
        edits = self._edits
        seat.made = int(edits.new_tokens[m])
        seat.rule = self._rules.local(seat, int(edits.constraint_state[m]))
        if edits.count_row[m] >= 0:
            seat.counts = edits.counts[edits.count_row[m]]

    def decode(self, count: int) -> Chunk:
        """Draw up to `count` tokens for every session.

        Returns:
            What each drew and what else was asked for, in the order of `seats`.
        """
        M = len(self.seats)
        asked = [seat.choices.sampling for seat in self.seats]
        ranks = any(sampling.ranks for sampling in asked)
        others = max((sampling.top_log_probabilities for sampling in asked), default=0)
        size = (count, M, min(others, self._shape.V))
        drawn = DecodedTokens(
            tokens=np.empty((count, M), np.int32),
            log_probabilities=np.empty((count, M), np.float32),
            ranks=np.zeros((count if ranks else 0, M), np.int32),
            alternatives=np.zeros(size, np.int32),
            alternative_log_probabilities=np.zeros(size, np.float32),
        )
        if M not in self._works:
            if len(self._works) >= 4:  # sizes come and go; a few are worth keeping
                self._works.clear()
            self._works[M] = allocate_workspace(self._shape, 1, M, backward=False)
        decode(
            self._cell, self._weights, self._works[M], self._state, self._sessions, self._edits,
            drawn,
        )  # fmt: skip
        return Chunk(drawn.tokens.T.tolist(), drawn.log_probabilities.T.tolist(), drawn)

    def state_of(self, m: int) -> SessionState:
        """Return a copy of where a session stands after the last chunk.

        Args:
            m: its row; it must not have ended.
        """
        return SessionState(
            self._state.h[:, m].copy(),
            self._state.c[:, m].copy(),
            int(self._sessions.token[m]),
            int(self._sessions.seed[m]),
            int(self._sessions.position[m]),
        )


class _Rules:
    """The automata of all sessions, one below the other."""

    def __init__(self, V: int, constraints: Sequence[Constraint | None] = ()) -> None:
        self._V = V
        self._first: dict[int, int] = {}
        parts, size = [np.zeros((0, V), np.int32)], np.int32(0)
        for constraint in constraints:
            if constraint is not None and id(constraint) not in self._first:
                table = constraint.table
                self._first[id(constraint)] = int(size)
                parts.append(np.where(table >= 0, table + size, -1) if size else table)
                size += np.int32(table.shape[0])
        self.table: Ints = np.concatenate(parts) if len(parts) > 2 else parts[-1]

    def of(self, constraints: Sequence[Constraint | None]) -> _Rules:
        """Return those of some constraints: these, where they are the same ones."""
        asked = {id(constraint) for constraint in constraints if constraint is not None}
        return self if asked == set(self._first) else _Rules(self._V, constraints)

    def absolute(self, seat: Seat) -> int:
        """Return the row of a session's state."""
        constraint = seat.choices.constraint
        if constraint is None:
            return NO_CONSTRAINT
        return seat.rule if seat.rule < 0 else self._first[id(constraint)] + seat.rule

    def local(self, seat: Seat, row: int) -> int:
        """Return the state of a session's automaton that a row stands for."""
        constraint = seat.choices.constraint
        return row if constraint is None or row < 0 else row - self._first[id(constraint)]


def _stacked(seats: Sequence[Seat], name: str, like: Array) -> Array:
    """The seats' states as (L, M, H)."""
    arrays = [getattr(seat.state, name) for seat in seats]
    return np.stack(arrays, axis=1) if arrays else like[:, :0]


def _sessions(seats: Sequence[Seat]) -> Sequences:
    """What sessions ask for, and where they stand when they join."""
    asked = [seat.choices.sampling for seat in seats]
    return Sequences(
        token=np.array([seat.state.token for seat in seats], np.int32),
        end=np.array([seat.end for seat in seats], np.int32),
        temperature=np.array([sampling.temperature for sampling in asked], np.float32),
        top_k=np.array([min(sampling.top_k, 2**31 - 1) for sampling in asked], np.int32),
        top_p=np.array([sampling.top_p for sampling in asked], np.float32),
        min_p=np.array([sampling.min_p for sampling in asked], np.float32),
        typical_p=np.array([sampling.typical_p for sampling in asked], np.float32),
        seed=np.array([seat.state.seed or 0 for seat in seats], np.uint64),
        position=np.array([seat.state.position for seat in seats], np.uint64),
    )


def _joined(old: Sequences, new: Sequences, keep: list[int]) -> Sequences:
    """The rows of `old` that stay, and then those of `new`."""
    pairs: Any = zip(old, new, strict=True)
    return Sequences(*(np.concatenate((before[keep], added)) for before, added in pairs))


def _edits(seats: Sequence[Seat], V: int, rules: _Rules) -> LogitEdits:
    """What sessions change about their logits, as their seats have it."""
    asked = [seat.choices.sampling for seat in seats]
    rows: dict[int, int] = {}
    for seat in seats:
        if seat.choices.bias is not None:
            rows.setdefault(id(seat.choices.bias), len(rows))
    biases = {id(seat.choices.bias): seat.choices.bias for seat in seats}
    counting = [seat for seat in seats if seat.choices.counts]
    counts = [seat.counts for seat in counting]
    places = {id(seat): place for place, seat in enumerate(counting)}
    longest = max((seat.choices.forced.size for seat in seats), default=0)
    forced = np.full((len(seats), longest), -1, np.int32)
    for row, seat in enumerate(seats):
        forced[row, : seat.choices.forced.size] = seat.choices.forced
    return LogitEdits(
        bias_row=np.array([rows.get(id(seat.choices.bias), -1) for seat in seats], np.int32),
        biases=_stack([biases[key] for key in rows], (V,), np.float32),
        count_row=np.array([places.get(id(seat), -1) for seat in seats], np.int32),
        counts=_stack(counts, (2, V), np.int32),
        repetition=np.array([sampling.repetition_penalty for sampling in asked], np.float32),
        presence=np.array([sampling.presence_penalty for sampling in asked], np.float32),
        frequency=np.array([sampling.frequency_penalty for sampling in asked], np.float32),
        new_tokens=np.array([seat.made for seat in seats], np.int32),
        min_new_tokens=np.array([min(s.min_new_tokens, 2**31 - 1) for s in asked], np.int32),
        constraint_state=np.array([rules.absolute(seat) for seat in seats], np.int32),
        transitions=rules.table,
        forced=forced,
    )


def _stack(arrays: Sequence[Any], shape: tuple[int, ...], kind: type) -> Any:
    """Arrays of one shape, one below the other; none of them is legal."""
    return np.stack(arrays).astype(kind) if arrays else np.zeros((0, *shape), kind)
