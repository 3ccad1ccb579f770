"""`measure` returns what an exchange of gradients between two ranks of MPI takes.

    mpirun -n 2 python -m treadle.benchmarks.scale.measure_collectives

is what it starts: an all-to-all of slices, a sum in the order of ranks, and an all-gather.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

from treadle.benchmarks.scale import programs
from treadle.benchmarks.scale.postgresql_server import MissingError

SIZES = (1 << 10, 1 << 21)
"""Floats of a gradient: a small one and a large one."""
_ROUNDS = 30
_PATIENCE_S = 120.0


def measure(ranks: int = 2) -> dict[str, float]:
    """Returns constants by their names.

    Args:
        ranks: Processes.

    Raises:
        MissingError: MPI or mpi4py is not installed.
        RuntimeError: It failed.
    """
    mpirun = programs.find("mpirun", "mpiexec")
    if mpirun is None or importlib.util.find_spec("mpi4py") is None:
        raise MissingError(
            "MPI is not installed: pip install '.[mpi]' in a checkout of Treadle, and mpich"
        )
    command = [mpirun, "-n", f"{ranks}", sys.executable, "-m", __spec__.name]
    # Open MPI lets root start it, and more ranks than processors, only where these say so.
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    allowed |= {"OMPI_MCA_rmaps_base_oversubscribe": "1"}
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **allowed},
        timeout=_PATIENCE_S,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    [small, large] = json.loads(done.stdout)
    [few, many] = SIZES
    each = max(0.0, large - small) / (4 * (many - few))
    return {"exchange_s": small - each * 4 * few, "exchange_byte_s": each}


def exchange_times() -> list[float]:
    """Returns the median seconds of an exchange for each size, in a process of MPI."""
    mpi = importlib.import_module("mpi4py.MPI")
    world = mpi.COMM_WORLD
    ranks = world.Get_size()
    found = []
    for size in SIZES:
        gradient = np.ones(size, np.float32)
        slices = np.empty((ranks, size // ranks), np.float32)
        times = []
        for _ in range(_ROUNDS):
            world.Barrier()
            began = time.perf_counter()
            world.Alltoall(gradient, slices)
            total = slices[0].copy()
            for others in slices[1:]:
                total += others
            world.Allgather(total, gradient)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times))
    return found


if __name__ == "__main__":
    times = exchange_times()
    if importlib.import_module("mpi4py.MPI").COMM_WORLD.Get_rank() == 0:
        print(json.dumps(times))
