"""Runs many cases in a child process and watches it: `run`, and a command line for large counts.

    PYTHONPATH=tests python -m fuzz.campaign                     # all kinds
    PYTHONPATH=tests python -m fuzz.campaign model_file 20000
    PYTHONPATH=tests python -m fuzz.campaign --minutes 10        # all kinds, for a while

A child that a signal ends, or that does nothing for PATIENCE_S, has failed in the case that it was
in; another one continues behind that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .request_campaign import KINDS, run_requests

COUNTS = {
    "request": 50_000,
    "request_bytes": 50_000,
    "connection": 2_000,
    "model_file": 20_000,
    "state": 20_000,
    "sealed_state": 20_000,
    "saved_run": 2_000,
    "corpus": 20_000,
    "expression": 300,
    "data_dir": 2_000,
    "database": 2_000,
    "callers_file": 20_000,
    "key_set": 5_000,
    "web_token": 20_000,
}
"""Cases of each kind that the command line tries."""

TESTS = Path(__file__).parents[1]

PATIENCE_S = 120.0
"""Seconds for one case. The slowest take a few tenths of one, on an idle machine."""

START_S = 1800.0
"""Seconds until the first case: kernels may have to be compiled."""


@dataclass
class Outcome:
    """What came of the cases of one kind."""

    kind: str
    count: int
    first: int
    faults: list[str]
    more: str = ""
    """What else there is to say."""

    def __str__(self) -> str:
        seeds = f"seeds {self.first} to {self.first + self.count - 1}"
        line = f"{self.kind}: {self.count:,} cases, {seeds}, {len(self.faults)} faults"
        return "\n\n".join([*self.faults, f"{line}; {self.more}" if self.more else line])


def run_kind(
    kind: str, count: int, first: int, until_s: float = math.inf, report: bool = False
) -> Outcome:
    """Tries cases of any kind, those of calls to a server included.

    Args:
        kind: A key of `COUNTS`.
        count: How many.
        first: The first seed.
        until_s: The time, as of `time.monotonic`, after which no more begin.
        report: Whether to print on stderr how far it has come.
    """
    if kind not in KINDS:
        tried: list[int] = []
        faults = run(kind, count, first, 30 if report else 0, until_s, tried)
        return Outcome(kind, len(tried), first, faults)
    # One half without credentials, one half with: that is two servers.
    half = count // 2
    now = time.monotonic()
    middle_s = now + (until_s - now) / 2
    results = [
        run_requests(kind, half, first, until_s=middle_s, report=report),
        run_requests(
            kind, count - half, first + half, until_s=until_s, report=report, credentials=True
        ),
    ]
    faults = [fault for result in results for fault in result.faults]
    said = "; ".join(map(str, results))
    return Outcome(kind, sum(result.count for result in results), first, faults, said)


def run(
    kind: str,
    count: int,
    first: int = 0,
    report_s: float = 0,
    until_s: float = math.inf,
    tried: list[int] | None = None,
) -> list[str]:
    """Tries cases.

    Args:
        kind: A key of `cases.CASES`.
        count: How many.
        first: The first seed.
        report_s: Seconds between lines on stderr that say how far it has come; 0: none.
        until_s: The time, as of `time.monotonic`, after which no more begin.
        tried: Gets the seeds that were tried.

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
                if (
                    value > first and time.monotonic() > until_s
                ):  # the case has just begun, and does not count
                    return faults
                seed = value
                if tried is not None:
                    tried.append(seed)
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
    parser.add_argument("--first", type=int, help="the first seed")
    parser.add_argument("--minutes", type=float, help="as many as there is time for")
    arguments = parser.parse_args()
    kinds = [kind for kind in COUNTS if arguments.kind in (None, kind)]
    first = arguments.first
    if first is None:  # other seeds each time where the time decides how many there are
        first = secrets.randbelow(10**9) if arguments.minutes else 0
    ends_s = time.monotonic() + 60 * arguments.minutes if arguments.minutes else math.inf
    outcomes = []
    for place, kind in enumerate(kinds):
        now = time.monotonic()
        until_s = now + (ends_s - now) / (len(kinds) - place)
        count = arguments.count or (10**9 if arguments.minutes else COUNTS[kind])
        outcomes.append(run_kind(kind, count, first, until_s, report=not arguments.minutes))
        print(outcomes[-1], flush=True)
    return any(outcome.faults for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
