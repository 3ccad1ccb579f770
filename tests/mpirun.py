"""Runs commands on several ranks, in tests."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDERS = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
MPIRUN = os.environ.get("MPIRUN") or shutil.which("mpirun", path=os.pathsep.join(_FOLDERS))
"""The command; the variable of this name chooses another MPI, whose library MPI4PY_LIBMPI names."""

needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpirun or mpi4py is missing: pip install mpi4py mpich",
)

ENVIRONMENT = {
    # Open MPI: in a container everybody is root, and the tests have more ranks than processors.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OPENBLAS_NUM_THREADS": "1",
}


def command(ranks: int, *words: str) -> list[str]:
    """A command that runs Python on several ranks."""
    assert MPIRUN is not None
    return [MPIRUN, "-n", str(ranks), sys.executable, *words]


def on_ranks(ranks: int, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on several ranks to its end."""
    return subprocess.run(
        command(ranks, *words),
        env=os.environ | ENVIRONMENT | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
