"""`main` reads a regular expression and writes its automaton over bytes, in a limited process.

A few characters can need an automaton of any size, and the Rust package outlines-core has no limits
of its own. So the automaton is built in a separate process, which the operating system ends when it
takes too much. `regex_automaton` runs this file by its path. It imports nothing of Treadle, so that
it starts within 40 ms.

stdin: the expression in UTF-8. stdout: where the automaton has `count` states, state 0 the start,
`count` and then `count` x 256 next states (-1: none), all int32, then `count` bytes, 1 where the
bytes read so far match as a whole and are followed by END_MARK. Exit status 2: the expression
cannot be read; stderr says why. Exit status 3: the automaton has more states than the first
argument. Exit status 4: it takes more memory than it may. The other arguments are processor
seconds, bytes of memory, how nice to be, and whether to `check` by itself.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from array import array
from typing import Any

CANNOT_READ = 2
TOO_LARGE = 3
OUT_OF_MEMORY = 4
"""Exit statuses."""

BYTES = 256

END_MARK = "\ufdd0"
"""A code point that Unicode reserves for internal use of programs, which no text holds."""


def limit_resources(cpu_s: float, memory: int) -> None:
    """Makes the system end this process after some processor seconds or bytes of memory."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows only the caller's wall time is a limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole_s = math.ceil(cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (whole_s, whole_s))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # its signal ends a process without a handler
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def build(expression: str, check: bool) -> Any:
    """Returns the index of an expression over single bytes, with the end mark after it.

    Without the mark the package would omit texts that continue after a match: it takes the first of
    alternatives, the fewest of lazy repeats, and no text that continues from a match to a text that
    does not match itself. Before the mark nothing has matched yet.

    Args:
        expression: The regular expression.
        check: Whether brackets around it might change it, as with `a)(b`.

    Raises:
        ValueError: The expression cannot be read.
    """
    from outlines_core import Index, Vocabulary

    every_byte = Vocabulary(BYTES, {bytes([byte]): [byte] for byte in range(BYTES)})
    if not check:
        return Index(f"(?:{expression}){END_MARK}", every_byte)
    try:  # by itself first
        Index(expression, Vocabulary(BYTES, {b"\0": [0]}))
    except ValueError as fault:
        if "incompatible" not in str(fault):  # an error of the vocabulary, not of the expression
            raise
    # The line's end is for the comments of verbose mode, and a blank there.
    for wrapped in (f"(?:{expression}){END_MARK}", f"(?:{expression}\n){END_MARK}"):
        try:
            return Index(wrapped, every_byte)
        except ValueError as fault:
            last = fault
    raise last


def main() -> int:
    """Reads the expression, writes the automaton and returns the exit status."""
    max_states = int(sys.argv[1])
    cpu_s = float(sys.argv[2])
    memory = int(sys.argv[3])
    check = sys.argv[5] == "check"
    if hasattr(os, "nice"):
        os.nice(int(sys.argv[4]))
    limit_resources(cpu_s, memory)
    try:
        index = build(sys.stdin.buffer.read().decode(), check)
    except ValueError as fault:
        sys.stderr.write(str(fault))
        return CANNOT_READ
    start = index.get_initial_state()
    final = index.get_final_states()
    transitions = index.get_transitions()
    others = sorted((set(transitions) | set(final)) - {start})
    if len(others) >= max_states:
        return TOO_LARGE
    number = {state: place for place, state in enumerate([start, *others])}
    sys.stdout.buffer.write(array("i", [len(number)]).tobytes())
    for state in number:
        row = array("i", [-1]) * BYTES
        for byte, target in transitions.get(state, {}).items():
            if byte < BYTES:
                row[byte] = number[target]
        sys.stdout.buffer.write(row.tobytes())
    sys.stdout.buffer.write(bytes(state in final for state in number))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    except BaseException as fault:
        if type(fault).__module__ != "pyo3_runtime":
            raise
        # The package panicked; the type of that error cannot be imported.
        sys.stderr.write(str(fault))
        sys.exit(CANNOT_READ)
