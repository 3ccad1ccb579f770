"""`main` prints what many machines cost: what breaks first, at how many machines, and what then.

    python benchmarks/scale_model.py
    python benchmarks/scale_model.py --sessions 1e5 --cores 4 --no-simulation
    python benchmarks/scale_model.py --measure --seconds 3

Formulas begin with constants that were measured (benchmarks/scale_constants.json) and with what is
assumed of callers and jobs. A simulation of leases, queue and autoscaling checks them. --measure
measures the constants on this machine, one minute with --seconds 3, and writes them; it starts a
server, PostgreSQL, rclone's object store and two ranks of MPI, and leaves out what is not
installed: pip install '.[bench,mpi,objectstore,postgresql]' in a checkout of Treadle, and apt-get
install postgresql.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from treadle.benchmarks.machine import describe
from treadle.benchmarks.scale import (
    measure_blobs,
    measure_collectives,
    measure_database,
    measure_kernels,
    measure_server,
)
from treadle.benchmarks.scale.constants import Constants, Measured
from treadle.benchmarks.scale.postgresql_server import MissingError
from treadle.benchmarks.scale.report import comparison_text, report
from treadle.benchmarks.scale.workload import Workload

CONSTANTS = Path(__file__).with_name("scale_constants.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, or measures.

    Args:
        arguments: Of the command line; None: those of this process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure and write the constants")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--constants", type=Path, default=CONSTANTS, help="their file")
    parser.add_argument("--sessions", type=float, default=Workload.sessions)
    parser.add_argument("--cores", type=float, default=Workload.cores, help="of a machine")
    parser.add_argument("--jobs-per-machine", type=float, default=Workload.jobs_per_machine)
    parser.add_argument(
        "--no-simulation", dest="simulation", action="store_false", help="formulas alone"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the simulation's length")
    options = parser.parse_args(arguments)
    for name in ("seconds", "sessions", "cores", "jobs_per_machine", "scale"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if options.measure:
        measure(options.seconds).save(options.constants)
        return 0
    try:
        measured = Measured.load(options.constants)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    workload = Workload(
        sessions=options.sessions,
        cores=options.cores,
        jobs_per_machine=options.jobs_per_machine,
    )
    print(report(measured, workload), flush=True)
    if options.simulation:
        return simulate(options.scale)
    return 0


def simulate(scale: float) -> int:
    """Plays, and prints how the formulas fare; returns the exit code."""
    try:
        from treadle.benchmarks.scale.simulated_days import compare  # needs simpy
    except ImportError:
        print(
            "simpy is not installed: pip install '.[bench]' in a checkout of Treadle",
            file=sys.stderr,
        )
        return 1
    print(f"\n{comparison_text(compare(scale))}")
    return 0


def measure(seconds: float) -> Measured:
    """Measures all that can be measured here; says what cannot.

    Args:
        seconds: For each measurement.

    Returns:
        The constants, with NaN for what was left out.
    """
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "kernels": lambda: measure_kernels.measure(seconds),
        "server": lambda: measure_server.measure(seconds),
        "SQLite": lambda: measure_database.measure_sqlite(seconds),
        "PostgreSQL": lambda: measure_database.measure_postgresql(seconds),
        "directory": lambda: measure_blobs.measure_directory(seconds),
        "object store": lambda: measure_blobs.measure_store(seconds),
        "MPI": measure_collectives.measure,
    }
    values: dict[str, float] = {}
    for name, part in parts.items():
        try:
            values |= part()
            print(f"{name}: measured", flush=True)
        except MissingError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Measured(Constants(**values), describe(), today)


if __name__ == "__main__":
    sys.exit(main())
