"""`main` is the `treadle-bench` command: flags, output and exit codes.

Tables or the JSON object go to standard output, progress to standard error. Exit codes: 0 after a
whole run, also where peers are missing; 1 where a check failed or the server extra is missing; 2
for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treadle.benchmarks.settings import SECTIONS, Settings, usable_cores

DESCRIPTION = """\
Checks Treadle's compiled kernels on this machine, then measures them: against the plain NumPy
reference, against this processor's peak, and against PyTorch, JAX and ONNX Runtime where these are
installed next to Treadle (pip install torch jax onnx onnxruntime); none of them is needed.
Everything that is compared runs in turn, A B A B, in one run; a figure is the median of its
rounds, a ratio is one of medians, and 2.00x means twice the rival's speed.
"""

EPILOG = """\
sections for --only:
  check     gradients by finite differences; kernels = reference; the same bits with 1, 2 and 3
            threads and compiled for haswell
  train     a training step against PyTorch's best of 8 settings
  bf16      the same with bfloat16 products, against PyTorch's autocast
  peak      useful multiply-adds of a step, of this processor's measured peak
  numpy     a training step against the NumPy reference
  decode    one session, one thread, against PyTorch's and JAX's best
  sessions  64 sessions decoded together against one
  score     a batch scored, against ONNX Runtime
  int8      one session, 64 sessions and a batch scored with int8 weights, against float32, JAX,
            and int8 in PyTorch and ONNX Runtime
  busy      training while another program takes one processor
  start     a fresh process to its first token

examples:
  treadle-bench                              everything, in about a quarter of an hour
  treadle-bench --quick --only check,train   a minute, to see that it runs
  treadle-bench --json --plot ratios.svg > report.json
"""


def _section_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"no section {', '.join(unknown) or 'named'}; there are {', '.join(SECTIONS)}"
        )
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and at most 60 seconds")
    return seconds


def _interpreter(text: str) -> str:
    if not os.access(text, os.X_OK) or os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no program: give the path of a python")
    return text


def _chart_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".svg":
        raise argparse.ArgumentTypeError(f"the file must end in .svg, not {text!r}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def build_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        "treadle-bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", type=_section_names, default=SECTIONS, metavar="SECTIONS", help="see below")
    add("--quick", action="store_true", help="small cases, 3 rounds of 0.1 s: figures mean little")
    threads = min(2, usable_cores())
    words = "of training and scoring, ours and the peers' (default: %(default)s)"
    add("--threads", type=_count, default=threads, metavar="N", help=words)
    add("--rounds", type=_count, metavar="N", help="samples of a figure (default: 5)")
    add("--seconds", type=_seconds, metavar="S", help="of one sample (default: 0.5)")
    words = "python of an environment with an earlier Treadle, to be measured next to this one"
    add("--earlier", type=_interpreter, metavar="PYTHON", help=words)
    add("--cold", action="store_true", help="section start: also compile every kernel again")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--plot", type=_chart_file, metavar="FILE.svg", help="write a chart of the ratios")
    return parser


def read_settings(flags: argparse.Namespace) -> Settings:
    """Returns what the flags say; --quick only changes defaults."""
    rounds, seconds = (3, 0.1) if flags.quick else (Settings.rounds, Settings.seconds)
    return Settings(
        threads=flags.threads,
        rounds=flags.rounds or rounds,
        seconds=flags.seconds or seconds,
        quick=flags.quick,
        cold=flags.cold,
        sections=flags.only,
        earlier=flags.earlier or "",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: the command line; `sys.argv` where None.

    Returns:
        The exit code.

    Raises:
        ModuleNotFoundError: A module of Treadle itself is missing.
    """
    flags = build_parser().parse_args(arguments)
    # Ended from outside, the bench ends its children as Ctrl-C does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return _run(flags)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:  # the bare install is the client alone
        if error.name is None or error.name.startswith("treadle"):
            raise
        print(
            f"treadle-bench: {error.name} is not installed; install treadle with its extra "
            "`server`: pip install '.[server]' in a checkout of Treadle",
            file=sys.stderr,
        )
        return 1


def _run(flags: argparse.Namespace) -> int:
    from treadle.benchmarks import bench, chart, tables
    from treadle.benchmarks.checks import CheckError
    from treadle.benchmarks.progress import progress_since_now

    def show(name: str, section: Any) -> None:
        if not flags.json:
            print(f"\n{tables.section_text(name, section)}", flush=True)

    try:
        report = bench.run(read_settings(flags), progress_since_now(), show)
    except CheckError as error:
        print(f"treadle-bench: {error}", file=sys.stderr)
        return 1
    if flags.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        texts = tables.losses_text(report["losses"]), tables.summary_text(report["summary"])
        print("".join(f"\n{text}\n" for text in texts if text), end="")
    if flags.plot is not None:
        try:
            chart.write(report, flags.plot)
        except OSError as error:
            print(f"treadle-bench: cannot write the chart: {error}", file=sys.stderr)
            return 1
    return 0
