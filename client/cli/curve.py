"""The command `treadle curve` draws the losses of a job."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.client.cli.connect import connect, find_job
from treadle.client.cli.display.console import Console, one_line
from treadle.client.cli.display.output_file import check_output, write_output
from treadle.client.cli.follow import follow
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import add_connection, add_job
from treadle.client.errors import InputError, TreadleError
from treadle.client.files.paths import display_path

if TYPE_CHECKING:
    from treadle.client.cli.display.curves.curve import Curve
    from treadle.client.client import Client
    from treadle.v1.sequence_pb2 import Job, JobEvent

LINES = 20
"""Lines of a drawing in the terminal."""

PICTURE_WIDTH = 960
PICTURE_HEIGHT = 540
"""Pixels of a picture."""

PICTURE_SIZES = (160, 8192, "pixels")
"""The range of a picture's width and height."""

TERMINAL_SIZES = (8, 1000, "characters")
"""The range of the width and height of a drawing in the terminal."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle curve`."""
    parser = commands.add_parser(
        "curve",
        description="Draw the training and validation loss of a job by its steps, in the "
        "terminal or into a file. A dotted line is the n-gram's loss.",
    )
    add_job(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the drawing to FILE.svg (default: draw in the terminal)",
    )
    parser.add_argument(
        "--width",
        metavar="N",
        type=int,
        help="columns of the terminal (8 to 1000; default: all), or pixels of --out (160 to 8192; "
        f"default: {PICTURE_WIDTH})",
    )
    parser.add_argument(
        "--height",
        metavar="N",
        type=int,
        help=f"lines of the terminal (8 to 1000; default: {LINES}), or pixels of --out "
        f"(160 to 8192; default: {PICTURE_HEIGHT})",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="draw again and again until the job ends; needs a terminal and the extra [cli]",
    )
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Draws the curve of a job as it is now, or until the job has ended."""
    _check(args)
    if args.live:
        _check_live(args, console)
    if args.out is not None:
        check_output(args.out)
    with connect(args) as client:
        job = find_job(client, args.job)
        if args.live:
            _watch(args, client, job, console)
            job = client.get_job(job.id)
        curve = load(client, job)
    if not curve.points:
        raise TreadleError(f"job {job.id} has no losses yet: there is nothing to draw")
    if args.out is None:
        _print(curve, args, console)
        return
    from treadle.client.cli.display.curves.curve_svg import svg

    picture = svg(curve, args.width or PICTURE_WIDTH, args.height or PICTURE_HEIGHT)
    write_output(args.out, picture.encode())
    console.line(display_path(args.out))


def _check(args: argparse.Namespace) -> None:
    """Checks the file and the size, before the server is called.

    Raises:
        InputError: The file is not an SVG, or the size is out of range.
    """
    if args.out is not None and Path(args.out).suffix.lower() != ".svg":
        raise InputError(f"--out must end in .svg, not {args.out!r}")
    low, high, unit = TERMINAL_SIZES if args.out is None else PICTURE_SIZES
    for option in ("width", "height"):
        value = getattr(args, option)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{option} cannot be {value}: it is {low} to {high} {unit}")


def _check_live(args: argparse.Namespace, console: Console) -> None:
    """Checks that a curve can be drawn again and again.

    Raises:
        InputError: It cannot.
    """
    if args.out is not None:
        raise InputError("--live draws in the terminal: leave --out out")
    if not console.has_rich:
        raise InputError(
            "--live needs a terminal with color and the extra [cli] (pip install '.[cli]' in a "
            "checkout of Treadle); `treadle watch` shows the losses as lines"
        )


def _watch(args: argparse.Namespace, client: Client, job: Job, console: Console) -> None:
    """Draws the curve of a job until the job ends."""
    from treadle.client.cli.display.terminal.rich_report import RichReport

    with client.watch(job.id) as training:
        follow(training, args, console, report=RichReport(console, only_curve=True))


def load(client: Client, job: Job) -> Curve:
    """Returns the losses of a job, from its events so far."""
    from treadle.client.cli.display.curves.job_curve import gather

    return gather(_events(client, job), f"{job.model}, job {job.id}")


def _events(client: Client, job: Job) -> Iterator[JobEvent]:
    """Yields the events of a job so far, without waiting for more."""
    if not job.last_sequence:
        return
    with client.watch(job.id) as training:
        for event in training:
            yield event
            if event.sequence >= job.last_sequence:
                return


def _print(curve: Curve, args: argparse.Namespace, console: Console) -> None:
    """Draws in the terminal."""
    from treadle.client.cli.display.curves.curve_text import draw

    width = args.width or console.width - 1
    height = args.height or LINES
    curve = replace(curve, title=one_line(curve.title))
    for line in draw(curve, width, height, unicode=console.unicode, color=console.color):
        console.drawn_line(line)
