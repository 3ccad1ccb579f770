"""`start` runs a script of this folder with kernels compiled for a processor of choice."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

NUMPY_PLAIN = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F AVX512_SKX"
"""What NumPy, which chooses its loops at start, leaves unused; by old and new names."""

TARGET_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "TREADLE_CPU_TARGET")

IS_X86_64 = platform.machine().lower() in ("x86_64", "amd64")


def start(script: str, extra: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a script that prints JSON, with variables in addition to the environment's."""
    path = Path(__file__).with_name(script)
    plain = {name: value for name, value in os.environ.items() if name not in TARGET_VARIABLES}
    # NumPy warns of names that it, or this processor, does not know.
    command = [sys.executable, "-W", "error", "-W", "ignore::ImportWarning", str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=plain | extra, stdout=pipe, stderr=pipe)


def finish(process: subprocess.Popen[bytes]) -> Any:
    """Wait for a script, and return what it printed."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(out)
