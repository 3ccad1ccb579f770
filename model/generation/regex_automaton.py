"""`compile_automaton` turns a regular expression into an automaton over bytes, within limits.

The syntax is that of Rust's crate `regex`. Its automata, with Unicode's classes unfolded to UTF-8,
come through the package outlines-core (Willard and Louf, "Efficient guided generation for large
language models", 2023).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError, EffortError
from treadle.model.generation.regex_worker import (
    BYTES,
    CANNOT_READ,
    END_MARK,
    OUT_OF_MEMORY,
    TOO_LARGE,
)
from treadle.model.tokenizers.surrogates import SURROGATE

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

MAX_STATES = 1 << 15
"""States of an automaton over bytes; each place where a text may end takes two of them."""

_MAX_ESTIMATE = 1 << 15
"""Estimated states from which an expression is refused without a process. One that passes may
still prove too large."""

_MAX_SHOWN = 60
"""Characters of an expression that an error shows."""


@dataclass(frozen=True)
class Effort:
    """The limits of the work on one expression."""

    cpu_s: float
    """Seconds of processor time."""
    wait_s: float
    """Seconds of wall time."""
    memory: int
    """Bytes."""
    nice: int = 0
    """The niceness that is added to its process."""


GLANCE = Effort(0.06, 3.0, 1 << 28)
"""Enough for the expressions that people write."""

QUICK = Effort(0.3, 5.0, 1 << 28, nice=4)
"""Enough for nearly all expressions."""

THOROUGH = Effort(3.0, 20.0, 1 << 30, nice=8)
"""The most for any expression."""

_LOOK_AROUND = re.compile(r"\\[bBAzG<>]|[\^$]|\(\?<?[=!]")
_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_ATOM = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\(\?<?[=!]|.", re.DOTALL)
"""One symbol of an expression, or the first of a class."""

_UNICODE_CLASS = re.compile(r"\\[wWpPDS]")
_UNICODE_STATES = 310
r"""States that \w and classes like it take in UTF-8."""
_CLASS_STATES = 8
"""States that `.` and other classes take."""
_MAX_DIGITS = 9
"""Digits of a repeat that are read as a number; one with more is larger than any limit."""


@dataclass(frozen=True)
class Automaton:
    """An automaton that reads a text byte by byte."""

    moves: Ints
    """(S, 256), the state after a byte, -1 where none leads to a match; row 0 is the start."""
    complete: Bools
    """(S,), whether the bytes read so far match as a whole."""


def compile_automaton(expression: str, effort: Effort = THOROUGH) -> Automaton:
    """Returns the automaton of a regular expression.

    Args:
        expression: In the syntax of Rust's crate `regex`, without look-around. The whole text has
            to match, so a `^` at the beginning and a `$` at the end are allowed and ignored.
        effort: The limits of the work.

    Raises:
        EffortError: It takes more than `effort`; more of it may be enough.
        ConfigError: The expression is malformed, has look-around or needs too large an automaton;
            its field is `regex`.
    """
    bare = _without_anchors(expression)
    if SURROGATE.search(bare):
        raise _unreadable(expression, "is malformed")
    if any(_LOOK_AROUND.fullmatch(symbol) for symbol in _symbols(bare)):
        raise _unreadable(
            expression, "has look-around, anchors within it or word boundaries: remove them"
        )
    if estimated_states(bare) > _MAX_ESTIMATE:
        raise _too_large(expression)
    done = _run(bare, effort)
    if done is None or done.returncode < 0 or done.returncode == OUT_OF_MEMORY:
        raise EffortError(str(_too_large(expression)), "regex")
    if done.returncode == TOO_LARGE:
        raise _too_large(expression)
    if done.returncode == CANNOT_READ:
        raise _unreadable(expression, "is malformed")
    if done.returncode:
        raise RuntimeError(f"the worker failed: {done.stderr.decode(errors='replace')}")
    return _without_end_mark(done.stdout)


def shown(expression: str) -> str:
    """Returns an expression as errors show it."""
    if len(expression) <= _MAX_SHOWN:
        return repr(expression)
    return repr(expression[: _MAX_SHOWN - 3]) + "..."


def _without_end_mark(data: bytes) -> Automaton:
    """Reads the output of the worker: a state is complete where the mark leads to a match."""
    count = int(np.frombuffer(data, np.int32, 1)[0])
    moves = np.frombuffer(data, np.int32, count * BYTES, offset=4).reshape(count, BYTES).copy()
    marked = np.frombuffer(data, np.bool_, count, offset=4 + moves.nbytes)
    after = np.arange(count)
    for byte in END_MARK.encode():
        after = np.where(after >= 0, moves[after, byte], -1)
    complete = (after >= 0) & marked[after]
    # Only the mark leads to a match; the states within the mark lead nowhere.
    moves[(moves >= 0) & marked[moves]] = -1
    return Automaton(moves, complete)


def _run(expression: str, effort: Effort) -> subprocess.CompletedProcess[bytes] | None:
    """Runs the worker; returns None where it took too long."""
    if importlib.util.find_spec("outlines_core") is None:
        raise ConfigError(
            "regex needs the package outlines-core: pip install '.[server]' in a checkout of "
            "Treadle",
            "regex",
        )
    worker = Path(__file__).with_name("regex_worker.py")
    # -P: modules of this folder must not hide those of the standard library.
    limits = [str(MAX_STATES), str(effort.cpu_s), str(effort.memory), str(effort.nice)]
    check = "trust" if _stays_whole(expression) else "check"
    command = [sys.executable, "-P", str(worker), *limits, check]
    try:
        return subprocess.run(
            command, input=expression.encode(), capture_output=True, timeout=effort.wait_s
        )
    except subprocess.TimeoutExpired:
        return None


def _without_anchors(expression: str) -> str:
    """Returns the expression without anchors at its beginning and its end."""
    bare = re.sub(r"\A(?:\^|\\A)", "", expression)
    end = re.search(r"(?<!\\)((?:\\\\)*)(?:\$|\\z)\Z", bare)
    return bare if end is None else bare[: end.end(1)]


def _class_end(expression: str, start: int) -> int:
    """Returns the end of the class that begins at `start`; the expression's where it has none."""
    depth = 0
    at = start
    while at < len(expression):
        if expression[at] == "\\":
            at += 1
        elif expression[at] == "[":
            depth += 1
            # A bracket right after the opening one, or after its ^, stands for itself.
            at += len(re.match(r"\^?\]?", expression[at + 1 :]).group())  # type: ignore[union-attr]
        elif expression[at] == "]":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return len(expression)


def _symbols(expression: str) -> Iterator[str]:
    """Yields the characters, escapes, classes and repeats of an expression."""
    at = 0
    while at < len(expression):
        found = _REPEAT.match(expression, at) or _ATOM.match(expression, at)
        assert found is not None
        end = _class_end(expression, at) if found[0] == "[" else found.end()
        yield expression[at:end]
        at = end


def _stays_whole(expression: str) -> bool:
    """Returns whether brackets around an expression certainly do not change it."""
    depth = 0
    for symbol in _symbols(expression):
        depth += (symbol == "(") - (symbol == ")")
        # A comment of verbose mode may hold anything, and a last backslash escapes the bracket.
        if depth < 0 or symbol in "#\\":
            return False
    return depth == 0


def estimated_states(expression: str) -> int:
    """Returns about how many states an expression needs, as if repeats only multiplied.

    It costs microseconds, and so decides which expressions get a process first, and which get none.
    Some that it finds small prove large: `[ab]*a[ab]{20}` needs 2^20 states.

    Args:
        expression: In the syntax of `compile_automaton`; it may be malformed.
    """
    sums = [0]
    last = 0
    for symbol in _symbols(expression):
        repeat = _REPEAT.fullmatch(symbol)
        if repeat is not None:
            factor = max(_number(repeat[1]), _number(repeat[2] or "0"), 1)
            sums[-1] += last * (factor - 1)
            last *= factor
        elif symbol == "(":
            sums.append(0)
        elif symbol == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif symbol not in "|*+?)":
            last = _symbol_states(symbol)
            sums[-1] += last
    return sum(sums)


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def _symbol_states(symbol: str) -> int:
    if _UNICODE_CLASS.search(symbol):
        return _UNICODE_STATES
    return _CLASS_STATES if symbol[0] in ".[" else len(symbol.encode())


def _too_large(expression: str) -> ConfigError:
    return ConfigError(
        f"regex {shown(expression)} needs too large an automaton (more than "
        f"{MAX_STATES:,} states, or more than {THOROUGH.cpu_s:g} s of work): use smaller "
        "repeats, or [0-9A-Za-z_] for \\w",
        "regex",
    )


def _unreadable(expression: str, fault: str) -> ConfigError:
    return ConfigError(
        f"regex {shown(expression)} {fault}; its syntax is that of Rust's crate regex, without "
        "look-around",
        "regex",
    )
