"""`describe` names the machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numba
import numpy as np

from treadle.benchmarks.settings import usable_cores
from treadle.kernels.jit import TARGET

CPU_INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Returns the processor's name as it calls itself, or what the system has for it."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Returns processor, software and load."""
    return {
        "processor": processor(),
        "usable_cores": usable_cores(),
        "compiled_for": TARGET.name,
        "vector_floats": TARGET.lanes,
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
