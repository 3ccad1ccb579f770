"""A regular expression as an automaton over bytes, made within limits of time and memory.

The syntax is that of Rust's crate `regex`, whose automata (Unicode's classes unfolded to UTF-8)
come through the package outlines-core (Willard and Louf, "Efficient guided generation for large
language models", 2023).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError
from treadle.model.regex_worker import BYTES, CANNOT_READ, TOO_LARGE
from treadle.model.tokenizer_base import SURROGATE

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

MAX_STATES = 1 << 14
"""States of an automaton over bytes."""

_MAX_SIZE = 1 << 15
"""States that a glance at the expression may expect; what passes may still prove too large."""
_CPU_S, _WAIT_S, _MEMORY = 3, 20.0, 1 << 30

_ONE_AT_A_TIME = threading.Lock()
"""So that many large expressions at once take one processor from the others, not all."""

_LOOK_AROUND = re.compile(r"\(\?<?[=!]|\\[bBAz<>]|[\^$]")
_ESCAPED = re.compile(r"\\[^bBAz<>]|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
"""What only looks like an anchor: characters escaped, and those in classes."""
_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_ATOM = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|.", re.DOTALL)

_UNICODE_CLASS = re.compile(r"\\[wWpPDS]")
_UNICODE_SIZE, _CLASS_SIZE = 310, 8
"""States that \\w (and its like), and `.` or other classes, take in UTF-8."""


@dataclass(frozen=True)
class Automaton:
    """What reads a text byte by byte and tells whether it matches as a whole."""

    moves: Ints
    """(S, 256), the state after a byte, -1 where none leads to a match; row 0 is the start."""
    complete: Bools
    """(S,), whether the bytes read so far match as a whole."""


def compile_automaton(expression: str) -> Automaton:
    """Make the automaton of a regular expression.

    Args:
        expression: in the syntax of Rust's crate `regex`, without look-around. All of a text has
            to match, so `^` before everything and `$` after it say nothing and are legal.

    Raises:
        ConfigError: it is malformed, has look-around or stands for too large an automaton; its
            field is `regex`.
    """
    bare = _without_anchors(expression)
    if SURROGATE.search(bare):
        raise _unreadable(expression, bare, "")
    if _expected_size(bare) > _MAX_SIZE:
        raise _too_large(expression)
    done = _run(bare)
    if done is None or done.returncode < 0 or done.returncode == TOO_LARGE:
        raise _too_large(expression)
    if done.returncode == CANNOT_READ:
        raise _unreadable(expression, bare, done.stderr.decode(errors="replace"))
    if done.returncode:
        raise RuntimeError(f"the worker failed: {done.stderr.decode(errors='replace')}")
    count = int(np.frombuffer(done.stdout, np.int32, 1)[0])
    moves = np.frombuffer(done.stdout, np.int32, count * BYTES, offset=4).reshape(count, BYTES)
    complete = np.frombuffer(done.stdout, np.bool_, count, offset=4 + moves.nbytes)
    return Automaton(moves, complete)


def _run(expression: str) -> subprocess.CompletedProcess[bytes] | None:
    """Run the worker; None where it took too long."""
    if importlib.util.find_spec("outlines_core") is None:
        raise ConfigError(
            "regex needs the package outlines-core: pip install outlines-core", "regex"
        )
    worker = Path(__file__).with_name("regex_worker.py")
    # -P: this room's modules are not to stand in for Python's own.
    command = [sys.executable, "-P", str(worker), str(MAX_STATES), str(_CPU_S), str(_MEMORY)]
    with _ONE_AT_A_TIME:
        try:
            return subprocess.run(
                command, input=expression.encode(), capture_output=True, timeout=_WAIT_S
            )
        except subprocess.TimeoutExpired:
            return None


def _without_anchors(expression: str) -> str:
    """The expression less what only says that it begins and ends where the text does."""
    bare = re.sub(r"\A(?:\^|\\A)", "", expression)
    end = re.search(r"(?<!\\)((?:\\\\)*)(?:\$|\\z)\Z", bare)
    return bare if end is None else bare[: end.end(1)]


def _class_end(expression: str, start: int) -> int:
    """Where the class that begins at `start` ends; the expression's end where it does not."""
    depth, at = 0, start
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


def _expected_size(expression: str) -> int:
    """About how many states an expression stands for, where repeats only multiply."""
    sums, last, at = [0], 0, 0
    while at < len(expression):
        repeat = _REPEAT.match(expression, at)
        if repeat is not None:
            factor = max(int(repeat[1]), int(repeat[2] or 0), 1)
            sums[-1] += last * (factor - 1)
            last, at = last * factor, repeat.end()
            continue
        begins, atom = at, _ATOM.match(expression, at)
        assert atom is not None
        at = _class_end(expression, at) if atom[0] == "[" else atom.end()
        if atom[0] == "(":
            sums.append(0)
        elif atom[0] not in "|*+?)":
            last = _atom_size(expression[begins:at])
            sums[-1] += last
        elif atom[0] == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
    return sum(sums)


def _atom_size(atom: str) -> int:
    if _UNICODE_CLASS.search(atom):
        return _UNICODE_SIZE
    return _CLASS_SIZE if atom[0] in ".[" else len(atom.encode())


def _shown(expression: str) -> str:
    return repr(expression) if len(expression) <= 60 else repr(expression[:57]) + "..."


def _too_large(expression: str) -> ConfigError:
    return ConfigError(
        f"regex {_shown(expression)} stands for too large an automaton (more than "
        f"{MAX_STATES:,} states, or more than {_CPU_S} s of work): take smaller repeats, or "
        "[0-9A-Za-z_] for \\w",
        "regex",
    )


def _unreadable(expression: str, bare: str, reason: str) -> ConfigError:
    # What the package says of the first kind is no more than "error building NFA".
    if _LOOK_AROUND.search(_ESCAPED.sub("", bare)) or "look" in reason or "boundar" in reason:
        fault = "has look-around, anchors within it or word boundaries, which are not supported"
    else:
        fault = "is malformed"
    return ConfigError(
        f"regex {_shown(expression)} {fault}: write it in the syntax of Rust's crate regex, "
        "without look-around",
        "regex",
    )
