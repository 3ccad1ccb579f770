"""`start` times a fresh process until its first token, and until every kernel is ready."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from treadle.benchmarks.figures import Samples
from treadle.benchmarks.processes import python
from treadle.benchmarks.progress import Say
from treadle.benchmarks.race import as_json
from treadle.benchmarks.settings import Settings

_MAKE = """
import sys
from treadle.model import train, warm
warm()
train("a small model to begin with; " * 40, max_steps=1).save(sys.argv[1])
print("saved", flush=True)
"""
_FIRST_TOKEN = """
import sys
from treadle.model import Model
for piece in Model.load(sys.argv[1]).stream("a", max_new_tokens=1):
    if piece.tokens:
        print(piece.tokens[0].id, flush=True)
"""
_WARM = "from treadle.model import warm\nwarm()\nprint('warm', flush=True)"

PATIENCE_S = 600.0


def _seconds(script: str, *arguments: str, cache: str | None = None) -> float:
    """Runs a script in a fresh process; returns how long it took to its first line of output."""
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    command = python("-c", script, *arguments)
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - begin
        if process.wait(PATIENCE_S) or not line:
            raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


def start(settings: Settings, say: Say) -> dict[str, Any]:
    """Times fresh processes; kernels are loaded from the disk cache unless `cold` says otherwise.

    Returns:
        `first_token_s`, `warm_s` and `cold_s`, the last None where it was not asked for.
    """
    say("start")
    cold = None
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "small.safetensors")
        _seconds(_MAKE, path)
        rounds = range(settings.rounds)
        first = Samples(tuple(_seconds(_FIRST_TOKEN, path) for _ in rounds))
        warm = Samples(tuple(_seconds(_WARM) for _ in rounds))
        if settings.cold:
            say("start cold: compiles every kernel")
            cold = Samples((_seconds(_WARM, cache=str(Path(folder) / "kernels")),))
    return {"first_token_s": as_json(first), "warm_s": as_json(warm), "cold_s": as_json(cold)}
