"""The command `treadle watch` shows the events of a job."""

from __future__ import annotations

import argparse

from treadle.client.cli.connect import connect, find_job
from treadle.client.cli.display.console import Console
from treadle.client.cli.follow import follow
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_follow, add_job, add_json


def add_parsers(commands: Commands) -> None:
    """Adds `treadle watch`."""
    parser = commands.add_parser(
        "watch",
        description="Show the events of a job from its first one on, and those to come, as "
        "`treadle train` does. Leaving does not stop the job.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the job and the options."""
    add_job(parser)
    add_flags(parser, "watch", OPTIONS)
    add_json(parser)
    add_follow(parser)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Shows each event as it arrives."""
    with connect(args) as client:
        job = find_job(client, args.job)
        with client.watch(
            job.id,
            args.after,
            reconnect_s=args.reconnect_s,
            timeout_s=getattr(args, "timeout", None),
        ) as training:
            follow(training, args, console)
