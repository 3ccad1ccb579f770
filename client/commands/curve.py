"""`treadle curve`: the losses of a job, drawn."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.client.commands.common import Commands, add_connection, add_job, connect, find_job
from treadle.client.console import Console
from treadle.client.errors import InputError, TreadleError
from treadle.client.output_files import check_output, write_output
from treadle.client.text_input import shown_path

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.curve import Curve
    from treadle.v1.sequence_pb2 import Job, JobEvent

LINES = 20
"""Lines of a drawing in the terminal."""

PICTURE = (960, 540)
"""Pixels of a drawing in a file."""

LEAST, MOST = 160, 8192
"""Pixels that a picture may have either way."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle curve`."""
    parser = commands.add_parser(
        "curve",
        help="draw the losses of a job",
        description="Draw the training and validation loss of a job by its steps, in the "
        "terminal or into a file. A dotted line is the n-gram's loss.",
    )
    add_job(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="write a picture: FILE.svg or FILE.png (the terminal)"
    )
    for way, least in (("width", "columns, or pixels"), ("height", "lines, or pixels")):
        default = {"width": "the terminal's; 960", "height": "20; 540"}[way]
        parser.add_argument(
            f"--{way}", metavar="N", type=int, help=f"{least} with --out ({default})"
        )
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> None:
    """Draws the curve of a job as it is now."""
    suffix = _check(args)
    if args.out is not None:
        check_output(args.out)
    with connect(args) as client:
        job = find_job(client, args.job)
        curve = load(client, job)
    if not curve.points:
        raise TreadleError(f"job {job.id} has no losses yet: there is nothing to draw")
    if args.out is None:
        _print(curve, args, console)
        return
    write_output(args.out, _picture(curve, suffix, args))
    console.line(shown_path(args.out))


def _check(args: argparse.Namespace) -> str:
    """Checks where to draw and how large, before anything is asked of the server.

    Returns:
        The ending of the picture's name; empty for the terminal.

    Raises:
        InputError: The file is of another kind, or the size is out of range.
    """
    suffix = "" if args.out is None else Path(args.out).suffix.lower()
    if args.out is not None and suffix not in (".svg", ".png"):
        raise InputError(f"cannot tell what to write to {args.out!r}: end it in .svg or .png")
    least, most, unit = (LEAST, MOST, "pixels") if suffix else (8, 1000, "characters")
    for way in ("width", "height"):
        value = getattr(args, way)
        if value is not None and not least <= value <= most:
            raise InputError(f"--{way} cannot be {value}: it is {least} to {most} {unit}")
    return suffix


def load(client: Client, job: Job) -> Curve:
    """Reads the losses of a job out of its events, up to its last one now."""
    from treadle.client.curve import gather

    return gather(_events(client, job), f"{job.model}, job {job.id}")


def _events(client: Client, job: Job) -> Iterator[JobEvent]:
    """Yields the events that a job has now, and does not wait for those to come."""
    if not job.last_sequence:
        return
    with client.watch(job.id) as training:
        for event in training:
            yield event
            if event.sequence >= job.last_sequence:
                return


def _print(curve: Curve, args: argparse.Namespace, console: Console) -> None:
    """Draws in the terminal."""
    from treadle.client.curve_text import draw

    width, height = args.width or console.width - 1, args.height or LINES
    for line in draw(curve, width, height, unicode=console.unicode, color=console.color):
        console.line(line)


def _picture(curve: Curve, suffix: str, args: argparse.Namespace) -> bytes:
    """Draws the bytes of a file."""
    width, height = args.width or PICTURE[0], args.height or PICTURE[1]
    if suffix == ".svg":
        from treadle.client.curve_svg import svg

        return svg(curve, width, height).encode()
    from treadle.client.curve_png import png

    return png(curve, width, height)
