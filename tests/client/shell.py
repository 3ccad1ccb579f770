"""Runs the `treadle` command as a shell does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

PATIENCE_S = 120.0


def environment(**changes: str) -> dict[str, str]:
    """This process' environment, without what steers the command."""
    steers = ("NO_COLOR", "COLUMNS", "LINES")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in steers and not name.startswith("TREADLE_")
    }
    return kept | {"XDG_CONFIG_HOME": os.devnull} | changes


def command(address: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "treadle.client", "--server", address, *words]


def bare_command(address: str, *words: str) -> list[str]:
    """The command of the bare client, which has no rich."""
    code = (
        "import sys; sys.modules['rich'] = None; from treadle.client.__main__ import main; main()"
    )
    return [sys.executable, "-c", code, "--server", address, *words]


def run(
    address: str, *words: str, data: bytes = b"", **changes: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end, its output piped."""
    return subprocess.run(
        command(address, *words),
        input=data,
        capture_output=True,
        env=environment(**changes),
        timeout=PATIENCE_S,
        check=False,
    )


def out(address: str, *words: str, data: bytes = b"") -> str:
    """Runs a command that must do well, and returns what it printed."""
    done = run(address, *words, data=data)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def objects(text: str) -> list[Any]:
    """Reads JSON, an object per line."""
    return [json.loads(line) for line in text.splitlines()]


def complaint(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """Returns the one sentence that a command failed with."""
    assert done.returncode == code, done
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, done
    assert lines[0].startswith("treadle: ")
    return lines[0]
