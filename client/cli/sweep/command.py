"""The command `treadle sweep` trains a model with many settings and ranks the results."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from treadle.client.argument_names import ArgumentNames
from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_json
from treadle.client.cli.options.values import duration

if TYPE_CHECKING:
    from treadle.client.cli.sweep.report import SweepReport
    from treadle.client.sweep.sweep import Sweep


def add_parsers(commands: Commands) -> None:
    """Adds `treadle sweep`."""
    parser = commands.add_parser(
        "sweep",
        description="Train a model with many settings, a job for each, as SPEC says; stop the "
        "hopeless ones, rank the others, and give the best one an alias. Nothing is kept here: "
        "after an interruption the same command continues, also on another machine.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the file and the options."""
    parser.add_argument("spec", metavar="SPEC", help="what to do, in TOML; see docs/sweep.md")
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="",
        help="write the ranked trials to FILE, as CSV (default: no file)",
    )
    parser.add_argument(
        "--cancel",
        action="store_true",
        help="cancel the jobs of the sweep that have not ended, and leave",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print only the ranked trials at the end"
    )
    parser.add_argument(
        "--reconnect",
        dest="reconnect_s",
        metavar="TIME",
        type=duration,
        default=60.0,
        help="how long to try to reconnect where the connection breaks, 0 never (0 or more; "
        "default: 60s)",
    )
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the sweep, or cancels its jobs; returns the exit code."""
    from treadle.client.cli.display.output_file import check_output
    from treadle.client.sweep.spec_reader import load_spec

    console.argument_names = _argument_names
    spec = load_spec(args.spec)
    if args.out:
        check_output(args.out)
    is_json = getattr(args, "json", False)
    with connect(args) as client, client.sweep(spec, reconnect_s=args.reconnect_s) as sweep:
        report = make_report(sweep, console, is_json=is_json, is_quiet=args.quiet)
        if args.cancel:
            report.show_cancelled(sweep.cancel(), _again(args.spec))
            return 0
        console.interruption = lambda: (
            f"interrupted; the jobs of sweep {spec.name!r} continue at the server: "
            f"`{_again(args.spec)}` continues the sweep, `{_again(args.spec)} --cancel` stops them"
        )
        return follow(sweep, report, args.out)


def _argument_names() -> ArgumentNames:
    """Returns the names of settings as the file has them, and the flags of the connection."""
    from treadle.client.cli.options.flag_names import COMMON_NAMES, flag_names

    parser = argparse.ArgumentParser()
    add_connection(parser)
    return ArgumentNames(COMMON_NAMES | flag_names(parser), connects_by_flags=True)


def follow(sweep: Sweep, report: SweepReport, out: str) -> int:
    """Shows the sweep while it runs, then its results.

    Args:
        sweep: The sweep.
        report: How to show it.
        out: The file for the results as CSV; empty: none.

    Returns:
        The exit code: 1 where no trial has made a model.

    Raises:
        InputError: The sweep of this name has other settings, or a file cannot be used.
        ServerError: A call failed.
    """
    with report:
        for event in sweep:
            if event.kind == "finished":
                report.close()
                report.show_results()
                _write(sweep, out)
            else:
                report.show(event)
    if sweep.best() is None:
        report.show_none()
        return 1
    return 0


def _write(sweep: Sweep, out: str) -> None:
    """Writes the results to a file, if one is named."""
    from treadle.client.cli.display.output_file import write_output
    from treadle.client.sweep.results_csv import results_csv

    if out:
        write_output(out, results_csv(sweep.ranked(), sweep.spec).encode())


def _again(spec: str) -> str:
    """Returns the command that continues a sweep."""
    return f"treadle sweep {shlex.quote(spec)}"


def make_report(sweep: Sweep, console: Console, *, is_json: bool, is_quiet: bool) -> SweepReport:
    """Returns the report for the output and the options."""
    from treadle.client.cli.sweep.report import JsonReport, QuietReport, SweepReport

    if is_json:
        return JsonReport(sweep, console, is_quiet=is_quiet)
    if is_quiet:
        return QuietReport(sweep, console)
    if console.has_rich:
        from treadle.client.cli.sweep.terminal.live_report import LiveReport

        return LiveReport(sweep, console)
    return SweepReport(sweep, console)
