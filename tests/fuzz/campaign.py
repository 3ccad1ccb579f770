"""Runs many cases in a child process and watches it: `run`, and a command line for large counts.

    PYTHONPATH=tests python -m fuzz.campaign                     # all kinds
    PYTHONPATH=tests python -m fuzz.campaign model_file 20000

A child that a signal ends, or that does nothing for PATIENCE_S, has failed in the case that it was
in; another one continues behind that.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

COUNTS = {
    "model_file": 20_000,
    "state": 20_000,
    "saved_run": 2_000,
    "corpus": 20_000,
    "expression": 300,
}
"""Cases of each kind that the command line tries."""

TESTS = Path(__file__).parents[1]

PATIENCE_S = 300.0
"""Seconds for one case. The slowest take a few tenths of one, on an idle machine."""

START_S = 1800.0
"""Seconds until the first case: kernels may have to be compiled."""


def run(kind: str, count: int, first: int = 0, report_s: float = 0) -> list[str]:
    """Tries cases.

    Args:
        kind: A key of `cases.CASES`.
        count: How many.
        first: The first seed.
        report_s: Seconds between lines on stderr that say how far it has come; 0: none.

    Returns:
        What is wrong, a text a case; empty where nothing is.
    """
    faults = list[str]()
    place = first
    last = time.monotonic()
    while place < first + count:
        seed = place
        for line, ended in _lines(kind, place, first + count - place):
            if ended:
                faults.append(f"{kind} {seed}: {line}")
                place = seed + 1
                break
            value = json.loads(line)
            if value is None:
                place = first + count
            elif isinstance(value, int):
                seed = value
            else:
                faults.append(f"{kind} {seed}: {value}")
            if report_s and time.monotonic() - last > report_s:
                last = time.monotonic()
                print(f"{kind}: {seed - first} of {count}, {len(faults)} faults", file=sys.stderr)
    return faults


def _lines(kind: str, first: int, count: int) -> Iterator[tuple[str, bool]]:
    """Yields what a child prints, and how it ended where it did not say that it is done."""
    command = [sys.executable, "-m", "fuzz.worker", kind, str(first), str(count)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "RUST_BACKTRACE": "0"}
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    assert child.stdout is not None
    try:
        patience = START_S
        held = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(patience):
                    yield f"it did not end within {patience:g} s", True
                    return
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    break
                patience = PATIENCE_S
                *lines, held = (held + data).split(b"\n")
                for line in lines:
                    yield line.decode(), False
                    if line == b"null":
                        return
        yield f"the process ended with status {child.wait()}", True
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=COUNTS, help="all where it is left out")
    parser.add_argument("count", nargs="?", type=int, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    found = 0
    for kind, usual in COUNTS.items():
        if arguments.kind in (None, kind):
            count = arguments.count or usual
            faults = run(kind, count, arguments.first, report_s=30)
            print("\n\n".join([*faults, f"{count} cases of {kind}, {len(faults)} faults"]))
            found += len(faults)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
