"""Odd requests, damaged files, states, corpora and the like end in an error that says so, or well.

See README.md in this folder for larger counts.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .campaign import run
from .connections import odd_connection
from .kept import kept_calls, kept_files
from .request_campaign import make_calls
from .request_server import FuzzedServer
from .requests import draw_call

COUNTS = {
    "model_file": 40,
    "state": 200,
    "sealed_state": 200,
    "saved_run": 15,
    "corpus": 60,
    "expression": 8,
    "data_dir": 15,
    "database": 15,
    "callers_file": 300,
    "key_set": 100,
    "web_token": 300,
}
"""Cases of each kind in an ordinary run: a few seconds of each."""

CALLS = 150
"""Calls of each kind."""


@pytest.mark.jit
@pytest.mark.parametrize("kind", COUNTS)
def test_nothing_bad_comes_of_it(kind: str) -> None:
    count = int(os.environ.get("TREADLE_FUZZ_COUNT", COUNTS[kind]))
    first = int(os.environ.get("TREADLE_FUZZ_SEED", "0"))
    faults = run(kind, count, first)
    assert not faults, "\n\n".join(faults[:20])


@pytest.mark.jit
def test_nothing_bad_comes_of_what_was_kept() -> None:
    faults = run("kept", len(kept_files()))
    assert not faults, "\n\n".join(faults[:20])


@pytest.mark.jit
def test_no_call_harms_a_server(tmp_path: Path) -> None:
    first = int(os.environ.get("TREADLE_FUZZ_SEED", "0"))
    server = FuzzedServer(tmp_path, credentials=True)
    try:
        for seed in range(first, first + 20):
            odd_connection(seed, server.address)
        seeds = range(first, first + CALLS)
        drawn = [draw_call(seed, server.known, raw) for seed in seeds for raw in (False, True)]
        calls = [(f"seed {call.seed}", call) for call in drawn if call.method != "Train"]
        faults = make_calls(server, [*kept_calls(), *calls])
    finally:
        ended = server.close()
    faults += ended
    assert not faults, "\n\n".join(faults[:20])
