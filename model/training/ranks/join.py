"""`join` finds the other processes of a run that mpirun has started; `Ranks` connects them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from treadle.kernels import network, optimizers
from treadle.kernels.source_digests import source_digest
from treadle.model.errors import PackageError
from treadle.model.network.ranks.ranks import Ranks

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables that say to a process of mpirun how many there are: of Open MPI, MPICH and Slurm."""

INSTALL = "pip install '.[mpi]' in a checkout of Treadle"


def started_by_mpirun(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether mpirun has started this process, together with others.

    Args:
        environment: The variables of the process.
    """
    counts = [environment.get(name, "") for name in _SIZES]
    return any(count.isdigit() and int(count) > 1 for count in counts)


def join() -> Ranks | None:
    """Connects the processes of this run.

    Returns:
        What connects them; None if there is only this one.

    Raises:
        PackageError: mpirun has started several processes, but mpi4py is not installed, or belongs
            to another MPI, or Treadle differs between the machines.
    """
    if not started_by_mpirun():
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter: there is no MPI library
        raise PackageError(
            "mpirun has started several processes, and they cannot find each other without "
            f"mpi4py ({error}): install treadle with its extra `mpi` ({INSTALL}) on every machine"
        ) from error
    if MPI.COMM_WORLD.Get_size() == 1:
        raise PackageError(
            "mpirun has started several processes, but mpi4py sees one: it uses "
            f"{MPI.Get_library_version().split(',')[0].strip()!r}; start them with the mpirun of "
            "that library"
        )
    ranks = Ranks(MPI.COMM_WORLD)
    # The same numbers everywhere, whatever the processor: that is up to the code alone.
    code = [source_digest(Path(module.__file__ or "")) for module in (network, optimizers)]
    ours = (version("treadle"), code, platform.python_version_tuple()[:2], sys.byteorder)
    known = ranks.exchange_objects((ranks.host, ours))
    ranks.on_this_host = sum(host == ranks.host for host, _ in known)
    odd = sorted({host for host, theirs in known if theirs != known[0][1]})
    if odd:
        raise PackageError(
            f"Treadle or Python on {', '.join(odd)} is not the same as on {known[0][0]}: install "
            "the same versions on every machine"
        )
    return ranks
