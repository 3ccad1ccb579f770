"""`compile_constraint` turns a regular expression into a table of the tokens that it allows.

The automaton of the expression (see `regex_automaton`) reads bytes. It reads all tokens from all of
its states at once, along the tree of their beginnings. The result is a table: from each state, the
state after each token. States from which no text can be completed with the vocabulary are removed,
so that all that the table allows can be completed.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError, EffortError, TokenError
from treadle.model.generation.regex_automaton import (
    THOROUGH,
    Automaton,
    Effort,
    compile_automaton,
    shown,
)
from treadle.model.generation.token_trie import TokenTrie

if TYPE_CHECKING:
    from treadle.model.tokenizers.base import Tokenizer

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

MAX_TABLE = 1 << 24
"""Elements of a table; four bytes each."""

_MAX_ENTRIES = 64
"""Expressions in the cache."""

_NEWLINE = b"\n"

_QUICK_TABLE = 1 << 20
"""Elements of a table that is built in some ten milliseconds."""

_BLOCK = 1 << 20
"""Elements worked on at once, about."""


@dataclass(frozen=True, eq=False)
class Constraint:
    """Which tokens may follow a text, and when it is complete. Its arrays are never written to."""

    table: Ints
    """(S, V), C-contiguous: the state after a token, -1 where the expression does not allow the
    token; row 0 is the start. The end token is allowed in complete states and leads to the same
    state."""
    complete: Bools
    """(S,), whether the text so far matches as a whole."""
    end: int
    """The end token; -1 where the model has none."""

    @cached_property
    def ends(self) -> Bools:
        """(S,), whether nothing but an end token can follow; such a state is complete."""
        follows = self.table >= 0
        if self.end >= 0:
            follows[:, self.end] = False
        return np.asarray(~follows.any(axis=1), np.bool_)

    def check(self, V: int, state: int) -> None:
        """Checks that it is of a vocabulary of V tokens, and has a state (or none, below 0).

        Raises:
            TokenError: It is of another vocabulary, or has no such state.
        """
        if self.table.shape[1] != V or state >= self.table.shape[0]:
            raise TokenError("the automaton of regex does not belong to the model's vocabulary")

    def ended(self, state: int) -> bool:
        """Returns whether nothing but an end token can follow the text that led to a state."""
        return bool(self.ends[state])


def compile_constraint(regex: str, tokenizer: Tokenizer, effort: Effort = THOROUGH) -> Constraint:
    """Returns the automaton that keeps generated text to a regular expression.

    Args:
        regex: The expression that the whole new text must match, in the syntax of Rust's crate
            `regex` without look-around. Of events it is to match the events with one blank between
            them; the blank that joins them to earlier events does not belong to the text.
        tokenizer: The model's tokenizer.
        effort: The limits of the work. One expression at a time is compiled with THOROUGH; with
            less, each thread compiles its own.

    Raises:
        ConfigError: The expression is malformed, has look-around, needs too large an automaton or
            cannot be written with the vocabulary; its field is `regex`.
        EffortError: It takes more than `effort`, which is less than THOROUGH.
    """
    return _CACHE.get(regex, tokenizer, effort)


def cached_constraint(regex: str, tokenizer: Tokenizer) -> Constraint | None:
    """Returns the automaton of a regular expression from the cache; None where it has none.

    Takes no longer however many expressions are being compiled.

    Raises:
        ConfigError: The expression was refused before.
    """
    return _CACHE.cached(regex, tokenizer)


class _Cache:
    """The last results for regular expressions and tokenizers, refusals included."""

    def __init__(self, max_elements: int, max_entries: int) -> None:
        self._max_elements = max_elements
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self._entries: OrderedDict[
            tuple[str, int], tuple[weakref.ref[Tokenizer], Constraint | ConfigError]
        ] = OrderedDict()

    def get(self, regex: str, tokenizer: Tokenizer, effort: Effort = THOROUGH) -> Constraint:
        """Returns the cached result, or compiles and caches it; raises a refusal again."""
        if effort is not THOROUGH:
            return self.cached(regex, tokenizer) or self._compile(regex, tokenizer, effort)
        with self._compiling:  # other threads with the same expression wait for the result
            return self.cached(regex, tokenizer) or self._compile(regex, tokenizer, effort)

    def cached(self, regex: str, tokenizer: Tokenizer) -> Constraint | None:
        """Returns the cached result, if there is one; raises a refusal again."""
        key = regex, id(tokenizer)
        with self._lock:
            owner, result = self._entries.get(key, (None, None))
            # The id of a tokenizer that was deleted may belong to another one.
            if owner is None or owner() is not tokenizer:
                return None
            self._entries.move_to_end(key)
        if isinstance(result, ConfigError):
            raise ConfigError(str(result), result.field)
        return result

    def _compile(self, regex: str, tokenizer: Tokenizer, effort: Effort) -> Constraint:
        """Compiles an expression and caches the result."""
        try:
            constraint = _compile(regex, tokenizer, effort)
        except ConfigError as refused:
            if not isinstance(refused, EffortError) or effort is THOROUGH:
                # Without its traceback, which would keep the caller's frames alive.
                self._keep(regex, tokenizer, ConfigError(str(refused), refused.field))
            raise
        self._keep(regex, tokenizer, constraint)
        return constraint

    def _keep(self, regex: str, tokenizer: Tokenizer, result: Constraint | ConfigError) -> None:
        key = regex, id(tokenizer)
        with self._lock:
            self._entries[key] = weakref.ref(tokenizer), result
            self._entries.move_to_end(key)
            self._shrink()

    def _shrink(self) -> None:
        """Drops entries of deleted tokenizers, and the least recently used ones over the limits."""
        for key in [key for key, (tokenizer, _) in self._entries.items() if tokenizer() is None]:
            del self._entries[key]
        elements = sum(_elements(result) for _, result in self._entries.values())
        while len(self._entries) > 1 and (
            elements > self._max_elements or len(self._entries) > self._max_entries
        ):
            _, (_, dropped) = self._entries.popitem(last=False)
            elements -= _elements(dropped)


_CACHE = _Cache(MAX_TABLE, _MAX_ENTRIES)


def _elements(result: Constraint | ConfigError) -> int:
    return result.table.size if isinstance(result, Constraint) else 0


def _compile(regex: str, tokenizer: Tokenizer, effort: Effort) -> Constraint:
    V = tokenizer.vocabulary_size
    automaton = compile_automaton(regex, effort)
    if effort is not THOROUGH and automaton.complete.size * V > _QUICK_TABLE:
        raise EffortError("regex may need a large table: compile it with THOROUGH", "regex")
    # Special tokens have no text that could match.
    texts = [tokenizer.decode_bytes([token]) for token in range(tokenizer.ordinary)]
    following = texts
    if tokenizer.joins_with_spaces:
        following = [text if text == _NEWLINE else b" " + text for text in texts]
    table, reached = _table(automaton, texts, following, V, regex)
    complete = automaton.complete[reached]
    alive = _can_complete(table, complete)
    if not alive[0]:
        raise _unwritable(regex, tokenizer)
    table, complete = _keep_states(table, complete, alive)
    end = -1
    if tokenizer.end is not None:
        end = tokenizer.end
        table[:, end] = np.where(complete, np.arange(complete.size, dtype=np.int32), -1)
    # The table stays writable: for read-only arrays kernels would be compiled once more.
    complete.setflags(write=False)
    constraint = Constraint(table, complete, end)
    constraint.ends.setflags(write=False)  # computed here, not in the middle of a text
    return constraint


def _table(
    automaton: Automaton, first: list[bytes], following: list[bytes], V: int, regex: str
) -> tuple[Ints, Ints]:
    """Lets every state that tokens lead to read all tokens.

    Args:
        automaton: The automaton over bytes.
        first: The tokens' bytes where a text begins or, if `following` differs, a line.
        following: The tokens' bytes elsewhere.
        V: The vocabulary's size, special tokens included.
        regex: The expression, for errors.

    Returns:
        The table (S, V), and the automaton's state (S,) for each of its rows.
    """
    max_states = MAX_TABLE // V
    A = automaton.complete.size
    tries = [TokenTrie(following)]
    start = 0
    opens = np.zeros(V, np.bool_)
    if first is not following:
        # The automaton's state n is node n within a line, and node A + n where one begins.
        tries.append(TokenTrie(first))
        start = A
        opens[: len(first)] = [text == _NEWLINE for text in first]
    row_of = np.full(A * len(tries), -1, np.int32)
    row_of[start] = 0
    reached = [start]
    parts: list[Ints] = []
    done = 0
    block = max(1, _BLOCK // max(tries[0].size, 1))
    while done < len(reached):
        nodes = np.array(reached[done : done + block], np.int32)
        targets = np.empty((nodes.size, V), np.int32)
        for number, trie in enumerate(tries):
            rows = np.flatnonzero(nodes // A == number)
            if rows.size:
                targets[rows] = trie.read(automaton.moves, nodes[rows] % A, V)
        targets[(targets >= 0) & opens] += A
        found = np.zeros(row_of.size + 1, np.bool_)
        found[targets] = True  # -1 is the last of them
        new = np.flatnonzero(found[:-1] & (row_of < 0))
        row_of[new] = np.arange(len(reached), len(reached) + new.size)
        reached += new.tolist()
        if len(reached) > max_states:
            raise _too_wide(regex, V, max_states)
        parts.append(targets)
        done += nodes.size
    table = np.concatenate(parts)
    parts.clear()
    _renumber(table, row_of)
    return table, np.array(reached, np.int32) % np.int32(A)


def _renumber(table: Ints, number: Ints) -> None:
    """Replaces each state of a table by its number, a part at a time."""
    rows = max(1, _BLOCK // table.shape[1])
    for start in range(0, table.shape[0], rows):
        part = table[start : start + rows]
        part[...] = np.where(part >= 0, number[part], np.int32(-1))


def _can_complete(table: Ints, complete: Bools) -> Bools:
    """Returns whether each state leads to a complete one, searched backward from those."""
    sources, targets = _edges(table)
    order = np.argsort(targets, kind="stable")
    sources = sources[order]
    starts = np.searchsorted(targets[order], np.arange(complete.size + 1))
    alive = complete.copy()
    waiting = np.flatnonzero(alive)
    while waiting.size:
        before = np.concatenate([sources[starts[s] : starts[s + 1]] for s in waiting.tolist()])
        waiting = np.unique(before[~alive[before]])
        alive[waiting] = True
    return alive


def _edges(table: Ints) -> tuple[Ints, Ints]:
    """Returns each pair of states that some token joins, once."""
    S = table.shape[0]
    rows = max(1, _BLOCK // S)
    sources = []
    targets = []
    for start in range(0, S, rows):
        part = table[start : start + rows]
        joined = np.zeros((part.shape[0], S + 1), np.bool_)
        joined[np.arange(part.shape[0])[:, None], part] = True  # -1 is the last of them
        source, target = np.nonzero(joined[:, :S])
        sources.append((source + start).astype(np.int32))
        targets.append(target.astype(np.int32))
    return np.concatenate(sources), np.concatenate(targets)


def _keep_states(table: Ints, complete: Bools, alive: Bools) -> tuple[Ints, Bools]:
    """Returns the table and the complete states with the states that are alive only."""
    if alive.all():
        return table, complete
    number = np.where(alive, np.cumsum(alive, dtype=np.int32) - 1, -1).astype(np.int32)
    kept = table[alive]
    _renumber(kept, number)
    return kept, complete[alive]


def _too_wide(regex: str, V: int, max_states: int) -> ConfigError:
    return ConfigError(
        f"regex {shown(regex)} needs too large an automaton (more than {max_states:,} states, with "
        f"the {V:,} tokens of the model): use smaller repeats or smaller classes",
        "regex",
    )


def _unwritable(regex: str, tokenizer: Tokenizer) -> ConfigError:
    lower = ", which is in lower case" if tokenizer.config.lowers else ""
    return ConfigError(
        f"regex {shown(regex)} cannot be written with the vocabulary of the model{lower}: ask "
        "for text of its tokens only",
        "regex",
    )
