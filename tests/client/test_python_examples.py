"""The Python examples, run as their docstrings say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .shell import environment

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def example(address: str, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *words],
        env=environment(TREADLE_SERVER=address),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_names(real_server: str) -> None:
    done = example(real_server, "names.py")
    assert (done.returncode, done.stderr) == (0, "")
    progress, made_up, given = done.stdout.split("\n\n")
    assert "validation loss" in progress
    assert len(made_up.splitlines()) == 11
    nats = {row.split()[1]: float(row.split()[0]) for row in given.splitlines()[1:]}
    assert nats["maria"] > nats["airam"] > nats["qqqqq"]


def test_surprise(real_server: str) -> None:
    done = example(real_server, "surprise.py")
    assert (done.returncode, done.stderr) == (0, "")
    surprising = done.stdout[done.stdout.index("bits per character") : done.stdout.index("...\n")]
    for odd in ("no space left on device", "certificate", "/etc/passwd"):
        assert odd in surprising


def test_completion(real_server: str, tmp_path: Path) -> None:
    done = example(real_server, "completion.py", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if "remember it" in line]
    assert [line.split()[0] for line in lines] == ["anna", "ben", "anna"]
    sizes = {line.split(";")[1] for line in lines}
    assert len(sizes) == 1, "a memory does not grow with what it remembers"
    states = [(tmp_path / f"{user}.state").read_bytes() for user in ("anna", "ben")]
    assert states[0] != states[1]
    assert done.stdout.count("    ... ") == 9


def test_watch_log(real_server: str) -> None:
    done = example(real_server, "watch_log.py")
    assert (done.returncode, done.stderr) == (0, "")
    flagged = re.findall(r"s\d{4}", done.stdout)
    assert {"s0412", "s0441", "s0457"} <= set(flagged)  # 425 surprises by its length, not by rank
    assert len(flagged) < 12
    assert "stored as sessions version 2" in done.stdout


def test_forecast() -> None:
    done = example("127.0.0.1:1", "forecast.py", "150")  # asks no server
    assert (done.returncode, done.stderr) == (0, "")
    errors = {
        line[:11].strip(): float(line[11:].split()[0])
        for line in done.stdout.partition("\n\n")[2].splitlines()
    }
    assert errors["noise alone"] < errors["test error"] < errors["last value"] / 4


@pytest.mark.parametrize("name", ["names.py", "surprise.py", "completion.py", "watch_log.py"])
def test_trouble_is_one_sentence(name: str) -> None:
    done = example("127.0.0.1:1", name)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: nothing listens at 127.0.0.1:1: start treadle-server")
    assert len(done.stderr.splitlines()) == 1
