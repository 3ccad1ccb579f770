"""`treadle score-stream`: how surprising each line of a stream is, as the lines come."""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from treadle.client.commands.common import (
    Commands,
    add_connection,
    add_json,
    add_model,
    add_unknown,
    check_model,
    connect,
    open_input,
    weights_of,
)
from treadle.client.commands.states import add_state, save_path, write_state
from treadle.client.commands.stream_input import Input, Unit, json_field, units
from treadle.client.commands.stream_options import add_learning, add_rows, check
from treadle.client.commands.stream_rows import Rows, add_up
from treadle.client.console import Console

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.learn_streams import LearntPieces, Step
    from treadle.client.pieces import Piece
    from treadle.v1.sequence_pb2 import PieceScore

INTERRUPTED = 130
SAVED = "return_state"

Sent: TypeAlias = "queue.SimpleQueue[Unit]"
"""The units whose pieces were sent, in their order."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle score-stream`."""
    parser = commands.add_parser(
        "score-stream",
        help="score lines as they come, and learn from them",
        description="Read lines as they come and print how surprising each of them is, in nats, "
        "before the line. A model of one item a line scores each line as an item; one of running "
        "text scores a line after all those before it. Ends at the end of the input or by Ctrl-C.",
    )
    add_model(parser)
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="the lines; - or none reads standard input"
    )
    add_rows(parser)
    add_learning(parser)
    add_state(parser, SAVED, "the stream")
    add_unknown(parser, "what to do with unknown symbols (the model's)")
    add_json(parser)
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    """Scores until the input ends, and learns if that is asked for.

    Returns:
        The exit code.

    Raises:
        InputError: The options do not go together, or the input cannot be read.
        BrokenPipeError: Nobody reads the output any more; all else is done by then.
    """
    if "job" in vars(args) and args.file is None:
        args.model, args.file = None, args.model  # with --job, the one word is the FILE
    check_model(args)
    check(args)
    source = Input(open_input(args.file or "-"))
    interrupted = threading.Event()
    with connect(args) as client, _interruptible(source, interrupted):
        try:
            _follow(client, args, source, Rows(args, console))
        finally:
            source.stop()
    if interrupted.is_set():
        print("treadle: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def _interruptible(source: Input, interrupted: threading.Event) -> Iterator[None]:
    """Lets the first Ctrl-C end the input, so that states are kept and models are published.

    A second one ends the process, as everywhere.
    """

    def end_input(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        source.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, end_input)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(client: Client, args: argparse.Namespace, source: Input, rows: Rows) -> None:
    """Scores what comes, prints it, and keeps what is to be kept.

    Raises:
        BrokenPipeError: Nobody reads the output any more; all else is done by then.
    """
    from treadle.client.options import LearnStreamOptions, ScoreStreamOptions

    options = weights_of(args, client, LearnStreamOptions if args.learn else ScoreStreamOptions)
    if args.top_g is not None:
        options["ranks"] = True
    options["timeout_s"] = getattr(args, "timeout", None)
    extract = json_field(args.column) if args.format == "jsonl" else None
    found = units(source, args.per, _has_items(client, args, options), extract)
    broken = (_learn if args.learn else _score)(client, args, found, source, rows, options)
    if broken is not None:
        raise broken


def _has_items(client: Client, args: argparse.Namespace, options: dict[str, Any]) -> bool:
    """Asks whether the model's corpus has an item a line."""
    from treadle.v1.sequence_pb2 import CORPUS_FORMAT_CSV, CORPUS_FORMAT_JSONL, CORPUS_LAYOUT_LINES

    if "job" in options:
        job = client.get_job(options["job"])
        data = (job.started if job.HasField("started") else job).spec.data
        records = (CORPUS_FORMAT_JSONL, CORPUS_FORMAT_CSV)
        return data.layout == CORPUS_LAYOUT_LINES or data.format in records
    version = options.get("version", 0)
    return client.get_model(args.model, version=version).model.layout == CORPUS_LAYOUT_LINES


def _score(
    client: Client,
    args: argparse.Namespace,
    found: Iterator[Unit],
    source: Input,
    rows: Rows,
    options: dict[str, Any],
) -> BrokenPipeError | None:
    """Scores the stream; returns what stopped the printing, if anything did."""
    path = save_path(options, SAVED)
    sent: Sent = queue.SimpleQueue()
    with client.score_stream(args.model or "", _pieces(found, sent), **options) as stream:
        broken = _print(stream, sent, source, rows)
        result = stream.result()
    if path is not None:
        write_state(path, result.state)
    if broken is None:
        rows.print_total(result.total, result.item_count)
    return broken


def _learn(
    client: Client,
    args: argparse.Namespace,
    found: Iterator[Unit],
    source: Input,
    rows: Rows,
    options: dict[str, Any],
) -> BrokenPipeError | None:
    """Scores the stream and learns from it; returns what stopped the printing, if anything did."""
    sent: Sent = queue.SimpleQueue()
    with client.learn_stream(args.model, _steps(found, sent, args), **options) as stream:
        return _print(_learnt(stream), sent, source, rows)


def _pieces(found: Iterator[Unit], sent: Sent) -> Iterator[Piece]:
    """Yields what is to be sent, and notes the units that it belongs to."""
    for unit in found:
        sent.put(unit)
        yield from unit.pieces


def _steps(found: Iterator[Unit], sent: Sent, args: argparse.Namespace) -> Iterator[Step]:
    """Yields what is to be learnt, and the publications between and behind it."""
    from treadle.v1.sequence_pb2 import Publish

    publish = Publish(model=args.publish_as or "", alias=args.alias or "")
    count = published = 0
    for count, unit in enumerate(found, 1):
        sent.put(unit)
        yield from unit.pieces
        if args.publish_every and count % args.publish_every == 0:
            published = count
            yield publish
    if (args.publish or args.publish_every) and published < count:
        yield publish


def _learnt(stream: LearntPieces) -> Iterator[PieceScore]:
    """Yields the scores, and tells on standard error of each version that is stored."""
    for response in stream.responses():
        if response.HasField("piece"):
            yield response.piece
        elif response.HasField("published"):
            model = response.published
            print(f"treadle: published {model.name} version {model.version}", file=sys.stderr)


def _print(
    scores: Iterable[PieceScore], sent: Sent, source: Input, rows: Rows
) -> BrokenPipeError | None:
    """Prints a row for each unit that is scored as a whole.

    Where nobody reads them any more, the input ends and the rest is taken in silence.
    """
    from treadle.v1.sequence_pb2 import PieceScore

    broken, left = None, 0
    for score in scores:
        if not left:
            unit, whole = sent.get(), PieceScore()
            left = len(unit.pieces)
        add_up(whole, score)
        left -= 1
        if not left and broken is None:
            try:
                rows.print(unit, whole)
            except BrokenPipeError as error:
                broken = error
                source.stop()
    return broken
