"""What `treadle train` and `treadle watch` share: showing a run, and leaving it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.errors import UnavailableError

if TYPE_CHECKING:
    from treadle.client.cli.display.reports import Report
    from treadle.client.training_run import TrainingRun


def follow(training: TrainingRun, args: argparse.Namespace, console: Console) -> None:
    """Shows each event as it comes, up to the end of the job.

    Raises:
        ServerError: The job failed, was paused or cancelled, or is out of reach.
    """
    report = make_report(args, console)
    console.interruption = lambda: interruption(training)
    training.on_break = report.show_break
    try:
        with report:
            for event in training:
                report.show(event)
        training.result()
    except UnavailableError as error:
        if not training.job:
            raise
        # Whoever watched needs the id to come back.
        back = f"once it is back, `treadle watch {training.job}` continues to watch it"
        raise UnavailableError(
            f"{error.in_names_of(console.argument_names())}; {back}",
            code=error.code,
            broken=True,
        ) from error


def interruption(training: TrainingRun) -> str:
    """What to say of a run that Ctrl-C left."""
    if training.model is not None:
        return "interrupted"
    if training.job:
        back = f"`treadle watch {training.job}` comes back to it"
        return f"interrupted; the job continues at the server: {back}"
    if training.sent:
        return (
            "interrupted; if the whole corpus has arrived, the server continues to train: "
            "`treadle jobs` tells"
        )
    return "interrupted"


def make_report(args: argparse.Namespace, console: Console) -> Report:
    """Chooses how to show the run."""
    from treadle.client.cli.display.reports import JsonReport, LiveReport, PlainReport, QuietReport

    if getattr(args, "json", False) or not console.is_terminal:
        return JsonReport(console, only_completed=args.quiet)
    if args.quiet:
        return QuietReport(console)
    return LiveReport(console) if console.moves else PlainReport(console)
