"""Text that a regular expression allows: an automaton over a model's vocabulary.

The expression's automaton over bytes (see `automaton`) reads all tokens from all of its states at
once, along the tree of their beginnings. What is left is a table: from each state, the state after
each token. States from which no text can be completed with this vocabulary are taken out, so that
whatever the table allows can be completed.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError, EffortError, TokenError
from treadle.model.generation.regex_automaton import THOROUGH, Automaton, Effort, compile_automaton
from treadle.model.generation.token_trie import TokenTree
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.bytes import ByteTokenizer
from treadle.model.tokenizers.subwords import SubwordTokenizer
from treadle.model.tokenizers.whitespace import WhitespaceTokenizer

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

MAX_TABLE = 1 << 24
"""Elements of a table; four bytes each."""

_NEWLINE = b"\n"
_QUICK_TABLE = 1 << 20
"""Elements of a table that is made in some ten milliseconds."""

_BLOCK = 1 << 20
"""Elements worked on at once, more or less."""


@dataclass(frozen=True, eq=False)
class Constraint:
    """Which tokens may follow a text, and when it is complete. Its arrays are never written to."""

    table: Ints
    """(S, V), C-contiguous: the state after a token, -1 where the token leads away from the
    expression; row 0 is the start. The end token stands in complete states and leads to them
    themselves."""
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
        """Check that it is of a vocabulary of V tokens, and has a state (or none, below 0).

        Raises:
            TokenError: it is not, or has not.
        """
        if self.table.shape[1] != V or state >= self.table.shape[0]:
            raise TokenError("the automaton of regex is not of this model's vocabulary")

    def ended(self, state: int) -> bool:
        """Whether nothing but an end token can follow the text that led to a state."""
        return bool(self.ends[state])


def compile_constraint(regex: str, tokenizer: Tokenizer, effort: Effort = THOROUGH) -> Constraint:
    """Make, or recall, what keeps generated text to a regular expression.

    Args:
        regex: what the whole new text must match, in the syntax of Rust's crate `regex` without
            look-around. Of events it is to match the events with one blank between them; the
            blank that joins them to events before is no part of it.
        tokenizer: of the model.
        effort: what it may take. One expression at a time is made thoroughly; of those that are
            made quickly, each thread makes its own.

    Raises:
        ConfigError: the expression is malformed, has look-around, stands for too large an
            automaton or cannot be written with the vocabulary; its field is `regex`.
        EffortError: it takes more than `effort`, which is less than the most.
    """
    return _CACHE.get(regex, tokenizer, effort)


def kept_constraint(regex: str, tokenizer: Tokenizer) -> Constraint | None:
    """Recall what keeps generated text to a regular expression; None where nothing is kept.

    Takes no longer however many expressions are being made.

    Raises:
        ConfigError: the expression was refused before.
    """
    return _CACHE.kept(regex, tokenizer)


class _Cache:
    """What was compiled or refused last, for each regular expression and tokenizer."""

    def __init__(self, most_elements: int, most_entries: int) -> None:
        self._most_elements, self._most_entries = most_elements, most_entries
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._entries: OrderedDict[
            tuple[str, int], tuple[weakref.ref[Tokenizer], Constraint | ConfigError]
        ] = OrderedDict()

    def get(self, regex: str, tokenizer: Tokenizer, effort: Effort = THOROUGH) -> Constraint:
        """Return what is kept, or compile and keep it; raise again what was refused."""
        if effort is not THOROUGH:
            return self.kept(regex, tokenizer) or self._make(regex, tokenizer, effort)
        with self._compiling:  # those who ask for the same meanwhile wait for it
            return self.kept(regex, tokenizer) or self._make(regex, tokenizer, effort)

    def kept(self, regex: str, tokenizer: Tokenizer) -> Constraint | None:
        """Return what is kept, if anything is; raise again what was refused."""
        key = regex, id(tokenizer)
        with self._lock:
            owner, made = self._entries.get(key, (None, None))
            # A tokenizer that is gone may have left its id to another.
            if owner is None or owner() is not tokenizer:
                return None
            self._entries.move_to_end(key)
        if isinstance(made, ConfigError):
            raise ConfigError(str(made), made.field)
        return made

    def _make(self, regex: str, tokenizer: Tokenizer, effort: Effort) -> Constraint:
        """Compile and keep what comes of it."""
        try:
            made = _compile(regex, tokenizer, effort)
        except ConfigError as refused:
            if not isinstance(refused, EffortError) or effort is THOROUGH:
                # Without its traceback, which would keep the caller's frames alive.
                self._keep(regex, tokenizer, ConfigError(str(refused), refused.field))
            raise
        self._keep(regex, tokenizer, made)
        return made

    def _keep(self, regex: str, tokenizer: Tokenizer, made: Constraint | ConfigError) -> None:
        key = regex, id(tokenizer)
        with self._lock:
            self._entries[key] = weakref.ref(tokenizer), made
            self._entries.move_to_end(key)
            self._shrink()

    def _shrink(self) -> None:
        """Drop what is gone, and then the least recently used, down to the limits; not the last."""
        for key in [key for key, (tokenizer, _) in self._entries.items() if tokenizer() is None]:
            del self._entries[key]
        elements = sum(_elements(made) for _, made in self._entries.values())
        while len(self._entries) > 1 and (
            elements > self._most_elements or len(self._entries) > self._most_entries
        ):
            _, (_, dropped) = self._entries.popitem(last=False)
            elements -= _elements(dropped)


_CACHE = _Cache(MAX_TABLE, 64)


def _elements(made: Constraint | ConfigError) -> int:
    return made.table.size if isinstance(made, Constraint) else 0


def _compile(regex: str, tokenizer: Tokenizer, effort: Effort) -> Constraint:
    automaton = compile_automaton(regex, effort)
    if (
        effort is not THOROUGH
        and automaton.complete.size * tokenizer.vocabulary_size > _QUICK_TABLE
    ):
        raise EffortError("regex may stand for a large table: make it thoroughly", "regex")
    texts = _texts(tokenizer)
    following = texts
    if isinstance(tokenizer, WhitespaceTokenizer):
        following = [text if text == _NEWLINE else b" " + text for text in texts]
    table, reached = _table(automaton, texts, following, tokenizer.vocabulary_size, regex)
    complete = automaton.complete[reached]
    alive = _can_complete(table, complete)
    if not alive[0]:
        raise _unwritable(regex, tokenizer)
    table, complete = _take(table, complete, alive)
    end = -1
    if tokenizer.end is not None:
        end = tokenizer.end
        table[:, end] = np.where(complete, np.arange(complete.size, dtype=np.int32), -1)
    # The table stays writable: kernels take read-only arrays for others and are compiled anew.
    complete.setflags(write=False)
    constraint = Constraint(table, complete, end)
    constraint.ends.setflags(write=False)  # made here, not in the middle of a text
    return constraint


def _texts(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every ordinary token; special ones write no text that could be asked for."""
    ordinary = range(tokenizer.ordinary)
    if isinstance(tokenizer, ByteTokenizer | SubwordTokenizer):
        return [tokenizer.decode_bytes([token]) for token in ordinary]
    return [tokenizer.token_text(token).encode() for token in ordinary]


def _table(
    automaton: Automaton, first: list[bytes], following: list[bytes], V: int, regex: str
) -> tuple[Ints, Ints]:
    """Let every state that tokens lead to read all tokens.

    Args:
        automaton: over bytes.
        first: the tokens' bytes where a text begins or, if `following` differs, a line.
        following: the tokens' bytes elsewhere.
        V: the vocabulary's size, special tokens included.
        regex: to name in errors.

    Returns:
        The table (S, V), and the automaton's state (S,) that each of its rows stands for.
    """
    most = MAX_TABLE // V
    A = automaton.complete.size
    trees = [TokenTree(following)]
    start, opens = 0, np.zeros(V, np.bool_)
    if first is not following:
        # The automaton's state n is node n within a line, and node A + n where one begins.
        trees.append(TokenTree(first))
        start = A
        opens[: len(first)] = [text == _NEWLINE for text in first]
    row_of = np.full(A * len(trees), -1, np.int32)
    row_of[start] = 0
    reached, parts, done = [start], [], 0
    while done < len(reached):
        nodes = np.array(reached[done : done + max(1, _BLOCK // max(trees[0].size, 1))], np.int32)
        targets = np.empty((nodes.size, V), np.int32)
        for number, tree in enumerate(trees):
            rows = np.flatnonzero(nodes // A == number)
            if rows.size:
                targets[rows] = tree.read(automaton.moves, nodes[rows] % A, V)
        targets[(targets >= 0) & opens] += A
        found = np.zeros(row_of.size + 1, np.bool_)
        found[targets] = True  # -1 is the last of them
        new = np.flatnonzero(found[:-1] & (row_of < 0))
        row_of[new] = np.arange(len(reached), len(reached) + new.size)
        reached += new.tolist()
        if len(reached) > most:
            raise _too_wide(regex, V, most)
        parts.append(targets)
        done += nodes.size
    table = np.concatenate(parts)
    parts.clear()
    _renumber(table, row_of)
    return table, np.array(reached, np.int32) % np.int32(A)


def _renumber(table: Ints, number: Ints) -> None:
    """Write to each place of a table the number of the state there; a part at a time."""
    rows = max(1, _BLOCK // table.shape[1])
    for start in range(0, table.shape[0], rows):
        part = table[start : start + rows]
        part[...] = np.where(part >= 0, number[part], np.int32(-1))


def _can_complete(table: Ints, complete: Bools) -> Bools:
    """Whether each state can come to a complete one, found backward from those."""
    sources, targets = _edges(table)
    order = np.argsort(targets, kind="stable")
    sources, starts = sources[order], np.searchsorted(targets[order], np.arange(complete.size + 1))
    alive = complete.copy()
    waiting = np.flatnonzero(alive)
    while waiting.size:
        before = np.concatenate([sources[starts[s] : starts[s + 1]] for s in waiting.tolist()])
        waiting = np.unique(before[~alive[before]])
        alive[waiting] = True
    return alive


def _edges(table: Ints) -> tuple[Ints, Ints]:
    """Each pair of states that some token joins, once."""
    S = table.shape[0]
    sources, targets, rows = [], [], max(1, _BLOCK // S)
    for start in range(0, S, rows):
        part = table[start : start + rows]
        joined = np.zeros((part.shape[0], S + 1), np.bool_)
        joined[np.arange(part.shape[0])[:, None], part] = True  # -1 is the last of them
        source, target = np.nonzero(joined[:, :S])
        sources.append((source + start).astype(np.int32))
        targets.append(target.astype(np.int32))
    return np.concatenate(sources), np.concatenate(targets)


def _take(table: Ints, complete: Bools, alive: Bools) -> tuple[Ints, Bools]:
    """Keep the states that are alive."""
    if alive.all():
        return table, complete
    number = np.where(alive, np.cumsum(alive, dtype=np.int32) - 1, -1).astype(np.int32)
    kept = table[alive]
    _renumber(kept, number)
    return kept, complete[alive]


def _shown(regex: str) -> str:
    return repr(regex) if len(regex) <= 60 else repr(regex[:57]) + "..."


def _too_wide(regex: str, V: int, most: int) -> ConfigError:
    return ConfigError(
        f"regex {_shown(regex)} stands for too large an automaton (more than {most:,} states, with "
        f"the {V:,} tokens of the model): take smaller repeats or smaller classes",
        "regex",
    )


def _unwritable(regex: str, tokenizer: Tokenizer) -> ConfigError:
    lower = ", which is in lower case" if tokenizer.config.lowers else ""
    return ConfigError(
        f"regex {_shown(regex)} cannot be written with the vocabulary of the model{lower}: ask "
        "for text of its tokens only",
        "regex",
    )
