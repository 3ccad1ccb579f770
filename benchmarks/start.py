"""`start` times a fresh process until its first token, and until every kernel is ready."""

from __future__ import annotations

import os
import resource
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

_CORPUS = "a small text to begin with; " * 40

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


def _first_start(folder: Path) -> dict[str, float]:
    """Starts a server without compiled kernels, and trains a tiny model with it.

    Args:
        folder: For its data and its kernels.

    Returns:
        Seconds until it serves, and until it has trained.
    """
    address = f"unix:{folder}/socket"
    corpus = folder / "corpus.txt"
    corpus.write_text(_CORPUS, "utf-8")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "first")}
    flags = ["--address", address, "--data-dir", str(folder / "data")]
    client = python("-m", "treadle.client", "--server", address)
    begin = time.perf_counter()
    with subprocess.Popen(
        python("-m", "treadle.server", *flags), env=environment, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _call([*client, "health", "--wait", f"{PATIENCE_S:g}s"])
            serving = time.perf_counter() - begin
            _call([*client, "train", str(corpus), "--model", "small", "--max-steps", "1"])
            trained = time.perf_counter() - begin
        finally:
            server.terminate()
    return {"serving_s": serving, "trained_s": trained}


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)


def _children_cpu_s() -> float:
    """Returns the seconds of processor time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(settings: Settings, say: Say) -> dict[str, Any]:
    """Times fresh processes; kernels are loaded from the disk cache unless `cold` says otherwise.

    Returns:
        `first_token_s` and `warm_s`; and where it was asked for, else None: `cold_s`, all kernels
        compiled by one process, `cold_cpu_s`, its processor time, and of a server without compiled
        kernels `serving_s` and `trained_s`.
    """
    say("start")
    cold: dict[str, Any] = dict.fromkeys(("cold_s", "cold_cpu_s", "serving_s", "trained_s"))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "small.safetensors")
        _seconds(_MAKE, path)
        rounds = range(settings.rounds)
        first = Samples(tuple(_seconds(_FIRST_TOKEN, path) for _ in rounds))
        warm = Samples(tuple(_seconds(_WARM) for _ in rounds))
        if settings.cold:
            say("start cold: compiles every kernel")
            before = _children_cpu_s()
            cold["cold_s"] = _seconds(_WARM, cache=str(Path(folder) / "kernels"))
            cold["cold_cpu_s"] = _children_cpu_s() - before
            say("start cold: a server without compiled kernels")
            cold |= _first_start(Path(folder))
    samples = {name: Samples((s,)) if s is not None else None for name, s in cold.items()}
    return {
        "first_token_s": as_json(first),
        "warm_s": as_json(warm),
        **{name: as_json(each) for name, each in samples.items()},
    }
