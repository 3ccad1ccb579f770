"""`follow` shows the events of a run for `treadle train` and `treadle watch`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from treadle.client.cli.display.console import Console
from treadle.client.cli.options.flag_names import in_training_flags
from treadle.client.errors import UnavailableError

if TYPE_CHECKING:
    from treadle.client.cli.display.reports import Report
    from treadle.client.cli.display.transfer_progress import TransferProgress
    from treadle.client.training_run import TrainingRun


def follow(
    training: TrainingRun,
    args: argparse.Namespace,
    console: Console,
    upload: TransferProgress | None = None,
    report: Report | None = None,
) -> None:
    """Shows each event as it arrives, up to the end of the job.

    Args:
        training: The run.
        args: The command line.
        console: The output.
        upload: The progress of the upload, which is over at the first event.
        report: How to show the events; by default as the options say.

    Raises:
        ServerError: The job failed, was paused or cancelled, or is out of reach.
    """
    report = report or make_report(args, console)
    console.interruption = partial(interruption, training)
    training.on_break = report.show_break
    try:
        first = next(training, None)
        if upload is not None:
            upload.close()
        with report:
            if first is not None:
                report.show(first)
            for event in training:
                report.show(event)
        training.result()
    except UnavailableError as error:
        if not training.job:
            raise
        # The user needs the id to watch the job again.
        back = f"once the server is back, watch the job with `treadle watch {training.job}`"
        raise UnavailableError(
            f"{error.in_names_of(console.argument_names())}; {back}",
            code=error.code,
            broken=True,
        ) from error


def interruption(training: TrainingRun) -> str:
    """Returns the message after a Ctrl-C."""
    if training.model is not None:
        return "interrupted"
    if training.job:
        back = f"`treadle watch {training.job}` shows it again"
        return f"interrupted; the job continues at the server: {back}"
    if training.sent:
        return (
            "interrupted; if the whole corpus has arrived, the server continues to train: "
            "`treadle jobs` shows it"
        )
    return "interrupted"


def make_report(args: argparse.Namespace, console: Console) -> Report:
    """Returns the report for the output and the options."""
    from treadle.client.cli.display.reports import JsonReport, LiveReport, PlainReport, QuietReport

    if getattr(args, "json", False) or not console.is_terminal:
        return JsonReport(console, only_completed=args.quiet)
    if args.quiet:
        return QuietReport(console)
    if console.has_rich:
        from treadle.client.cli.display.terminal.rich_report import RichReport

        return RichReport(console, in_training_flags)
    report = LiveReport if console.can_overwrite else PlainReport
    return report(console, in_training_flags)
