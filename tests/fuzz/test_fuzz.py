"""Damaged files, states, corpora and expressions end in an error that says so, or in nothing bad.

See README.md in this folder for larger counts.
"""

from __future__ import annotations

import os

import pytest

from .campaign import run

COUNTS = {"model_file": 40, "state": 200, "saved_run": 15, "corpus": 60, "expression": 8}
"""Cases of each kind in an ordinary run: a few seconds of each."""


@pytest.mark.jit
@pytest.mark.parametrize("kind", COUNTS)
def test_nothing_bad_comes_of_it(kind: str) -> None:
    count = int(os.environ.get("TREADLE_FUZZ_COUNT", COUNTS[kind]))
    first = int(os.environ.get("TREADLE_FUZZ_SEED", "0"))
    faults = run(kind, count, first)
    assert not faults, "\n\n".join(faults[:20])
