"""`SlotArrays` holds the arrays that the decode kernel works on, one row for each slot.

A step computes every row by itself (see exactness in the kernels). So the other slots change no bit
of a row, and slots may be added and removed between two chunks of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.kernels import structs
from treadle.kernels.decode import DecodedTokens, Sequences, decode
from treadle.kernels.jit import specialize
from treadle.kernels.logit_edits import NO_CONSTRAINT, LogitEdits
from treadle.model.network.session_state import SessionState
from treadle.model.network.shape import CELL_CODES
from treadle.model.network.workspace import allocate_workspace
from treadle.model.tokenizers.token_ids import check_tokens

if TYPE_CHECKING:
    from treadle.model.generation.constraint import Constraint
    from treadle.model.generation.sequence_slot import SequenceSlot
    from treadle.model.network.shape import Shape

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

MAX_SLOTS = 64
"""The most slots that decode together: more of them gain nothing, and make the steps long."""

_MAX_INT32 = 2**31 - 1

_KEPT_WORKSPACES = 4
"""Workspaces that are kept for another use: the number of slots often comes back."""


@dataclass(frozen=True)
class Chunk:
    """The tokens of N steps of M slots. Valid until the next chunk is decoded."""

    tokens: list[list[int]]
    """[M][N]; -1 after a slot's end. Lists, since these are read one by one."""
    log_probabilities: list[list[float]]
    """[M][N], of each token under the model itself, in nats."""
    drawn: DecodedTokens
    """The same as arrays (N, M), with the ranks and alternatives that were asked for."""
    slots: SlotArrays
    """The slots that were decoded."""

    def state_of(self, row: int) -> SessionState:
        """Returns a copy of the state of a slot after the chunk; it must not have ended."""
        return self.slots.state_of(row)


class SlotArrays:
    """The slots of one model that decode together.

    Args:
        shape: The network's sizes.
        weights: Packed for inference; only read.
    """

    def __init__(self, shape: Shape, weights: structs.Weights) -> None:
        self._shape = shape
        self._weights = weights
        self._cell = CELL_CODES[shape.cell]
        self.slots: list[SequenceSlot] = []
        """The slots in the order of the rows."""
        self._rules = _Rules(shape.V)
        empty = (shape.L, 0, shape.H)
        self._state = structs.State(np.zeros(empty, np.float32), np.zeros(empty, np.float32))
        self._sessions = _sessions([])
        self._edits = _edits([], shape.V, self._rules)
        self._works: dict[int, structs.Workspace] = {}
        self._decode: Callable[..., None] | None = None  # as compiled for the present arrays

    def replace(self, leaving: Collection[SequenceSlot], joining: Sequence[SequenceSlot]) -> None:
        """Removes some slots and adds others; the rest is not affected.

        Args:
            leaving: Slots to remove. Each is brought up to date, so that it can be added again,
                here or elsewhere.
            joining: Slots to add; with those that stay, at most MAX_SLOTS.

        Raises:
            TokenError: A slot's token is not in the vocabulary; nothing has changed then.
        """
        for slot in joining:
            self.check(slot)
        assert len(self.slots) - len(leaving) + len(joining) <= MAX_SLOTS
        kept_rows = []
        for row, slot in enumerate(self.slots):
            self._update(row, slot)
            if slot in leaving:
                slot.state = self.state_of(row)
            else:
                kept_rows.append(row)
        staying = [self.slots[row] for row in kept_rows]
        self._rules = self._rules.of([slot.sampling.constraint for slot in (*staying, *joining)])
        self._state = structs.State(
            _join_states(self._state.h, kept_rows, [slot.state.hs for slot in joining]),
            _join_states(self._state.c, kept_rows, [slot.state.cs for slot in joining]),
        )
        self._sessions = _join_sessions(self._sessions, kept_rows, _sessions(joining))
        self.slots = [*staying, *joining]
        self._edits = _edits(self.slots, self._shape.V, self._rules)
        self._decode = None

    def check(self, slot: SequenceSlot) -> None:
        """Checks everything in a slot that kernels index with.

        Raises:
            TokenError: Something is not of the vocabulary.
        """
        V = self._shape.V
        check_tokens(np.array([slot.state.token], np.int64), V)
        check_tokens(np.array([slot.end], np.int64), V, least=-1)
        check_tokens(slot.sampling.forced, V, least=-1)
        if slot.sampling.constraint is not None:
            slot.sampling.constraint.check(V, slot.rule)

    def _update(self, row: int, slot: SequenceSlot) -> None:
        """Writes to a slot how far its row has come."""
        edits = self._edits
        slot.made = int(edits.new_tokens[row])
        slot.rule = self._rules.local(slot, int(edits.constraint_state[row]))
        if edits.count_row[row] >= 0:
            slot.counts = edits.counts[edits.count_row[row]]

    def decode(self, steps: int) -> Chunk:
        """Draws up to `steps` tokens for every slot, in one kernel call.

        Returns:
            The tokens, in the order of `slots`.
        """
        M = len(self.slots)
        settings = [slot.sampling.settings for slot in self.slots]
        ranked_steps = steps if any(each.ranks for each in settings) else 0
        alternatives = max((each.top_log_probabilities for each in settings), default=0)
        size = (steps, M, min(alternatives, self._shape.V))
        drawn = DecodedTokens(
            tokens=np.empty((steps, M), np.int32),
            log_probabilities=np.empty((steps, M), np.float32),
            ranks=np.zeros((ranked_steps, M), np.int32),
            alternatives=np.zeros(size, np.int32),
            alternative_log_probabilities=np.zeros(size, np.float32),
        )
        given = (self._cell, self._weights, self._workspace(M), self._state, self._sessions)
        if self._decode is None:
            self._decode = specialize(decode, *given, self._edits, drawn)
        self._decode(*given, self._edits, drawn)
        tokens = drawn.tokens.T.tolist()
        log_probabilities = drawn.log_probabilities.T.tolist()
        return Chunk(tokens, log_probabilities, drawn, self)

    def _workspace(self, M: int) -> structs.Workspace:
        if M not in self._works:
            if len(self._works) >= _KEPT_WORKSPACES:
                self._works.clear()
            self._works[M] = allocate_workspace(self._shape, 1, M, backward=False)
        return self._works[M]

    def state_of(self, row: int) -> SessionState:
        """Returns a copy of the state of a slot after the last chunk; it must not have ended."""
        return SessionState(
            self._state.h[:, row].copy(),
            self._state.c[:, row].copy(),
            int(self._sessions.token[row]),
            int(self._sessions.seed[row]),
            int(self._sessions.position[row]),
        )


class _Rules:
    """The tables of all slots' automata, one below the other."""

    def __init__(self, V: int, constraints: Sequence[Constraint | None] = ()) -> None:
        self._V = V
        self._first: dict[int, int] = {}
        parts = [np.zeros((0, V), np.int32)]
        size = np.int32(0)
        for constraint in constraints:
            if constraint is not None and id(constraint) not in self._first:
                table = constraint.table
                self._first[id(constraint)] = int(size)
                parts.append(np.where(table >= 0, table + size, -1) if size else table)
                size += np.int32(table.shape[0])
        self.table: Ints = np.concatenate(parts) if len(parts) > 2 else parts[-1]

    def of(self, constraints: Sequence[Constraint | None]) -> _Rules:
        """Returns the tables of some constraints: these, where they are the same ones."""
        needed = {id(constraint) for constraint in constraints if constraint is not None}
        return self if needed == set(self._first) else _Rules(self._V, constraints)

    def absolute(self, slot: SequenceSlot) -> int:
        """Returns the row of the joined table for the state of a slot's automaton."""
        constraint = slot.sampling.constraint
        if constraint is None:
            return NO_CONSTRAINT
        return slot.rule if slot.rule < 0 else self._first[id(constraint)] + slot.rule

    def local(self, slot: SequenceSlot, row: int) -> int:
        """Returns the state of a slot's automaton for a row of the joined table."""
        constraint = slot.sampling.constraint
        return row if constraint is None or row < 0 else row - self._first[id(constraint)]


def _join_states(old: Array, kept_rows: list[int], added: Sequence[Array]) -> Array:
    """Returns the rows of `old` (L, M, H) that stay, and then the added ones, each (L, H)."""
    new = np.stack(added, axis=1) if added else old[:, :0]
    # Contiguous however the rows were picked: kernels are compiled for nothing else.
    return np.ascontiguousarray(np.concatenate((old[:, kept_rows], new), axis=1))


def _sessions(slots: Sequence[SequenceSlot]) -> Sequences:
    """Returns how tokens are drawn for slots that join, and where these stand."""
    settings = [slot.sampling.settings for slot in slots]
    return Sequences(
        token=np.array([slot.state.token for slot in slots], np.int32),
        end=np.array([slot.end for slot in slots], np.int32),
        temperature=np.array([each.temperature for each in settings], np.float32),
        top_k=np.array([min(each.top_k, _MAX_INT32) for each in settings], np.int32),
        top_p=np.array([each.top_p for each in settings], np.float32),
        min_p=np.array([each.min_p for each in settings], np.float32),
        typical_p=np.array([each.typical_p for each in settings], np.float32),
        seed=np.array([slot.state.seed or 0 for slot in slots], np.uint64),
        position=np.array([slot.state.position for slot in slots], np.uint64),
    )


def _join_sessions(old: Sequences, kept_rows: list[int], new: Sequences) -> Sequences:
    """Returns the rows of `old` that stay, and then those of `new`."""
    pairs: Any = zip(old, new, strict=True)
    return Sequences(*(np.concatenate((before[kept_rows], added)) for before, added in pairs))


def _edits(slots: Sequence[SequenceSlot], V: int, rules: _Rules) -> LogitEdits:
    """Returns what slots change about their logits."""
    settings = [slot.sampling.settings for slot in slots]
    bias_rows: dict[int, int] = {}
    for slot in slots:
        if slot.sampling.bias is not None:
            bias_rows.setdefault(id(slot.sampling.bias), len(bias_rows))
    biases = {id(slot.sampling.bias): slot.sampling.bias for slot in slots}
    counting = [slot for slot in slots if slot.sampling.counts]
    count_rows = {id(slot): row for row, slot in enumerate(counting)}
    longest = max((slot.sampling.forced.size for slot in slots), default=0)
    forced = np.full((len(slots), longest), -1, np.int32)
    for row, slot in enumerate(slots):
        forced[row, : slot.sampling.forced.size] = slot.sampling.forced
    return LogitEdits(
        bias_row=np.array([bias_rows.get(id(slot.sampling.bias), -1) for slot in slots], np.int32),
        biases=_stack([biases[key] for key in bias_rows], (V,), np.float32),
        count_row=np.array([count_rows.get(id(slot), -1) for slot in slots], np.int32),
        counts=_stack([slot.counts for slot in counting], (2, V), np.int32),
        repetition=np.array([each.repetition_penalty for each in settings], np.float32),
        presence=np.array([each.presence_penalty for each in settings], np.float32),
        frequency=np.array([each.frequency_penalty for each in settings], np.float32),
        new_tokens=np.array([slot.made for slot in slots], np.int32),
        min_new_tokens=np.array(
            [min(each.min_new_tokens, _MAX_INT32) for each in settings], np.int32
        ),
        constraint_state=np.array([rules.absolute(slot) for slot in slots], np.int32),
        transitions=rules.table,
        forced=forced,
    )


def _stack(arrays: Sequence[Any], shape: tuple[int, ...], kind: type) -> Any:
    """Returns arrays of one shape, one below the other; there may be none."""
    return np.stack(arrays).astype(kind) if arrays else np.zeros((0, *shape), kind)
