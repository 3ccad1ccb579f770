"""`main` attacks a server and reports its memory, time, event loop, disk and stored data.

    python benchmarks/abuse.py [SCENARIO ...] [--ordinary 64] [--json FILE] [--quick] [--list]
    python benchmarks/abuse.py --compare BEFORE.json AFTER.json

Every scenario gets a server of its own on 127.0.0.1, with a copy of a data directory that is made
once. It sends legal requests that cost a server much, or puts damage where a server will read it,
and prints a line a figure: what is measured, the figure, its bound, and whether it is within or
beyond; then one for what all have in common, in which BEYOND marks a figure over its bound. Next to
each scenario a process of its own asks for health every 10 ms; with --ordinary, so many ordinary
callers stream log lines and short texts, and none of them may fail. Where control groups can be
made, the server has a container's memory (--memory), and dies where it takes more.

`--server-command` measures another version with the same scenarios, for figures before a change.
Exit code 1 where a figure is beyond its bound. Latencies count only on a machine without other
work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from treadle.benchmarks.scenarios import (
    disk_attacks,
    file_attacks,
    loop_attacks,
    memory_attacks,
    stored_attacks,
    template,
    time_attacks,
    together,
)
from treadle.benchmarks.scenarios.container import Container, ContainerError
from treadle.benchmarks.scenarios.memory_use import MIB
from treadle.benchmarks.scenarios.report import (
    Figure,
    as_json,
    beyond,
    common_line,
    comparison,
    line,
)
from treadle.benchmarks.scenarios.server import ServerProcess, StartError
from treadle.benchmarks.scenarios.target import SCENARIOS, Scenario, Target
from treadle.benchmarks.scenarios.watchers import Watcher
from treadle.benchmarks.script import input_file

MODULES = (
    memory_attacks,
    time_attacks,
    loop_attacks,
    disk_attacks,
    stored_attacks,
    file_attacks,
    together,
)
"""Where the scenarios are, in the order in which they run."""


def ordered() -> list[Scenario]:
    """Returns all scenarios, those of a kind together."""
    kinds = [module.__name__.rpartition(".")[2] for module in MODULES]
    return sorted(SCENARIOS.values(), key=lambda item: kinds.index(item.kind))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scenarios and prints their figures; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        for item in ordered():
            print(f"{item.name:<26}{item.about}")
        return 0
    if options.compare:
        before, after = (json.loads(file.read_text()) for file in options.compare)
        print(comparison(before, after))
        return 0
    names = options.scenarios or [item.name for item in ordered()]
    if unknown := [name for name in names if name not in SCENARIOS]:
        print(f"abuse.py: no scenario is called {unknown[0]}; --list names all", file=sys.stderr)
        return 2
    command = shlex.split(options.server_command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of everything that closes
    results: dict[str, list[Figure]] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="treadle-abuse-") as folder:
        made = options.data or Path(folder) / "template"
        if not (made / "data").exists():
            made.mkdir(parents=True, exist_ok=True)
            template.make(command, made)
        for name in names:
            results[name] = []
            for figure in attack(SCENARIOS[name], command, made, Path(folder), options):
                results[name].append(figure)
                if not figure.is_common:
                    print(line(name, figure), flush=True)
            shared = [figure for figure in results[name] if figure.is_common]
            print(common_line(name, shared), flush=True)
            if options.json:
                options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    bad = beyond(results)
    print(
        f"{len(results) - len(bad)} of {len(results)} scenarios within their bounds, "
        f"{time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f}"
    )
    if bad:
        print("beyond: " + ", ".join(bad))
    return int(bool(bad))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all")
    parser.add_argument("--list", action="store_true", help="name the scenarios and exit")
    parser.add_argument(
        "--server-command",
        default=shlex.join([sys.executable, "-P", "-m", "treadle.server"]),
        help="what runs the server, without flags",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="keep the models that all scenarios begin with here, or take them from here",
    )
    parser.add_argument(
        "--ordinary", type=int, default=0, metavar="N", help="ordinary streams next to each"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=4096,
        metavar="MIB",
        help="memory of the server's container; 0: no container",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--compare",
        type=input_file,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="print a table of two such files instead",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, to see it run")
    return parser


def attack(
    item: Scenario, command: list[str], made: Path, folder: Path, options: argparse.Namespace
) -> Iterator[Figure]:
    """Runs one scenario against a server of its own; yields its figures."""
    place = folder / item.name
    place.mkdir()
    data_dir = place / "data"
    template.copy(made, data_dir)
    container = _container(options.memory)
    try:
        if item.prepare is not None:
            item.prepare(made, data_dir)
        flags = list(item.flags)
        if container is None and options.memory and _knows(command, "--memory-budget"):
            flags += ["--memory-budget", str(options.memory * MIB * 6 // 10)]
        prefix = container.prefix if container else []
        try:
            server = ServerProcess(command, data_dir, flags, prefix)
        except StartError as error:
            yield Figure("server started", None, "", 1.0, str(error).splitlines()[-1])
            return
        yield from _run(item, server, data_dir, made, command, options)
        if container is not None:
            peak = container.peak_bytes / MIB
            yield Figure("container", peak, "MiB", is_common=True)
            kills = float(container.kills)
            yield Figure("killed for want of memory", kills, "", 0.0, is_common=True)
    finally:
        if container is not None:
            container.close()
        if os.path.ismount(data_dir):
            subprocess.run(["umount", str(data_dir)], check=False)
        shutil.rmtree(place, ignore_errors=True)


def _run(
    item: Scenario,
    server: ServerProcess,
    data_dir: Path,
    made: Path,
    command: list[str],
    options: argparse.Namespace,
) -> Iterator[Figure]:
    watchers: dict[str, Watcher] = {}
    if options.ordinary:
        watchers["ordinary"] = Watcher("ordinary", server.address, options.ordinary)
    watchers["health"] = Watcher("health", server.address)
    target = Target(server, data_dir, made, command, options.quick, watchers)
    try:
        try:
            yield from item.run(target)
        except Exception as error:  # the server may have gone: what is left is still measured
            yield Figure("carried through", None, "", 1.0, " ".join(str(error).split())[:120])
        target.collect()
        yield from target.watched_figures(item.stall_ms)
        yield from target.memory_figures(options.memory * 0.75 or math.inf)
    finally:
        target.close()


def _container(memory_mib: int) -> Container | None:
    if not memory_mib:
        return None
    with suppress(ContainerError):
        return Container(memory_mib * MIB)
    return None


def _knows(command: list[str], flag: str) -> bool:
    """Returns whether a server of this version has a flag."""
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    return flag in done.stdout


if __name__ == "__main__":
    sys.exit(main())
