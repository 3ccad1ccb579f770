"""The command `treadle score-stream` scores the lines of a stream as they arrive."""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from treadle.client.cli.connect import connect, request_options
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.notices import print_notice
from treadle.client.cli.display.output_file import write_output
from treadle.client.cli.display.stream_faults import Faults, on_error
from treadle.client.cli.display.stream_rows import Rows, add_up
from treadle.client.cli.input.stream_input import StreamInput, Unit, units
from treadle.client.cli.input.text_input import input_name, open_input, text_source
from treadle.client.cli.options.field_flags import OPTIONS, add_flags
from treadle.client.cli.options.model_options import add_model, check_model
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import (
    add_connection,
    add_encoding,
    add_json,
)
from treadle.client.cli.options.state_options import save_path
from treadle.client.cli.options.stream_options import add_learning, add_rows, check
from treadle.client.errors import DeadlineExceededError, InputError, ServerError

if TYPE_CHECKING:
    from treadle.client.client import Client
    from treadle.client.learn_stream import LearnedPieces, LearnStep
    from treadle.client.streaming import StreamPiece
    from treadle.v1.sequence_pb2 import PieceScore, StreamError

STATE_FIELD = "return_state"

SIGNAL_NAMES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
"""Messages for the signals that end the stream."""

NOTICE_DELAY_S = 2.0
"""Seconds after such a signal until a notice says why the command still runs."""

FINISHING = (
    "the stream has ended; what was read is still scored (a second signal ends that at once)"
)

GRACE_S = 60.0
"""How long a stream may take to end well after its --timeout, in seconds."""

Sent: TypeAlias = "queue.SimpleQueue[Unit]"
"""The units whose pieces were sent, in their order."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle score-stream`."""
    parser = commands.add_parser(
        "score-stream",
        description="Read lines as they arrive and print how surprising each of them is, in nats, "
        "before the line. A model of one item per line scores each line as an item; one of running "
        "text scores a line after all those before it. Ends at the end of the input or by Ctrl-C.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the lines and the options."""
    add_model(parser, "score-stream")
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="the lines; - or no FILE reads standard input"
    )
    add_encoding(parser)
    add_rows(parser)
    add_learning(parser)
    add_flags(parser, "score-stream", "state")
    add_flags(parser, "score-stream", OPTIONS)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Scores until the input ends, and learns if requested.

    Whatever ends it, the state is written and what was learned is published first.

    Returns:
        The exit code.

    Raises:
        InputError: The options do not go together, the input cannot be read, or a line that cannot
            be read ended it.
        ServerError: The server failed, or what was learned could not be published.
        OSError: The output has no reader any more, or cannot be written.
    """
    if "job" in vars(args) and args.file is None:
        args.file = args.model  # with --job, the one word is the FILE
        args.model = None
    check_model(args)
    check(args)
    args.on_error = on_error(args)
    path = args.file or "-"
    source = StreamInput(open_input(path), text_source(args, path), console.descriptor)
    stream = _Stream(args, source, console)
    with (
        connect(args) as client,
        _ended_by_signals(source) as signals,
        _ended_by_time(source, getattr(args, "timeout", None)) as late,
    ):
        try:
            stream.follow(client)
        finally:
            source.stop()
    stream.faults.print_count()
    if signals:
        print_notice(SIGNAL_NAMES[signals[0].name])
        return 128 + signals[0]
    if source.error is not None:
        raise InputError(f"cannot read {input_name(path)}: {source.error.strerror}")
    stream.check()
    if late.is_set():
        raise DeadlineExceededError("the stream was ended: it took longer than --timeout allows")
    return 0


@contextlib.contextmanager
def _ended_by_signals(source: StreamInput) -> Iterator[list[signal.Signals]]:
    """Makes the first signal that would end the process end the input.

    A second one ends the process as usual. An ignored signal, as with `nohup`, stays ignored.

    Yields:
        The received signals, none at first.
    """
    received: list[signal.Signals] = []
    waiting = threading.Timer(NOTICE_DELAY_S, print_notice, [FINISHING])
    waiting.daemon = True
    numbers = [getattr(signal, name) for name in SIGNAL_NAMES if hasattr(signal, name)]
    before = {
        number: signal.getsignal(number)
        for number in numbers
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end_input(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        source.stop()
        restore()
        if len(received) == 1:
            waiting.start()

    for number in before:
        signal.signal(number, end_input)
    try:
        yield received
    finally:
        waiting.cancel()
        restore()


@contextlib.contextmanager
def _ended_by_time(source: StreamInput, seconds: float | None) -> Iterator[threading.Event]:
    """Ends the input after some seconds; None never does.

    Yields:
        An event that is set where the time ended the input.
    """
    late = threading.Event()
    if seconds is None:
        yield late
        return

    def end_input() -> None:
        late.set()
        source.stop()

    timer = threading.Timer(seconds, end_input)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


class _Stream:
    """One stream: sends its pieces, prints its rows and collects its errors.

    Args:
        args: The command line.
        source: The input.
        console: The output.
    """

    def __init__(self, args: argparse.Namespace, source: StreamInput, console: Console) -> None:
        self._args = args
        self._source = source
        self._console = console
        self._rows = Rows(args, console)
        self._sent: Sent = queue.SimpleQueue()
        self.faults = Faults(args.on_error == "stop", args.per)
        self._broken: OSError | None = None
        """The error that stopped the printing."""
        self._unpublished: ServerError | None = None
        """Why the newest publication failed."""
        self._publishes: bool = bool(args.publish or args.publish_every)
        self._unstored = False
        """Whether something was learned since the last version was stored."""

    def check(self) -> None:
        """Raises the errors of the stream, the worst first.

        Raises:
            InputError: A line stopped the stream.
            ServerError: What was learned could not be published.
            OSError: The output cannot be written.
        """
        if self._unpublished is not None:
            raise self._unpublished
        if self._broken is not None:
            raise self._broken
        if self._source.reader_left:
            raise BrokenPipeError
        self.faults.check()

    def follow(self, client: Client) -> None:
        """Scores the input, prints rows, and writes the state or publishes."""
        from treadle.client.options import LearnStreamOptions, ScoreStreamOptions

        args = self._args
        options = request_options(
            args, client, LearnStreamOptions if args.learn else ScoreStreamOptions
        )
        if args.top_g is not None:
            options["ranks"] = True
        timeout = getattr(args, "timeout", None)
        options["timeout_s"] = None if timeout is None else timeout + GRACE_S
        field = "text" if args.column is None else args.column
        column = field if args.format == "jsonl" else None
        found = units(self._source, args.per, _has_items(client, args, options), column)
        (self._learn if args.learn else self._score)(client, found, options)

    def _score(self, client: Client, found: Iterator[Unit], options: dict[str, Any]) -> None:
        """Scores the stream."""
        path = save_path(options, STATE_FIELD)
        pieces = self._pieces(found)
        with client.score_stream(self._args.model or "", pieces, **options) as stream:
            self._print(stream)
            result = stream.result()
        if result.HasField("error"):
            self.faults.add(0, self._error_text(result.error))
        if path is not None:
            write_output(path, result.state)
        if self._broken is None:
            self._show(lambda: self._rows.print_total(result, self.faults.count))

    def _learn(self, client: Client, found: Iterator[Unit], options: dict[str, Any]) -> None:
        """Scores the stream and learns from it."""
        with client.learn_stream(self._args.model, self._steps(found), **options) as stream:
            try:
                self._print(self._learned(stream))
            except ServerError:
                if self._unstored and self._publishes:
                    print_notice(
                        "what was learned and not yet published is lost; --publish-every "
                        "publishes more often"
                    )
                raise

    def _pieces(self, found: Iterator[Unit]) -> Iterator[StreamPiece]:
        """Yields the pieces to send."""
        for unit in self._readable(found):
            yield from unit.pieces

    def _steps(self, found: Iterator[Unit]) -> Iterator[LearnStep]:
        """Yields the pieces to learn from, with publications between and after them."""
        from treadle.v1.sequence_pb2 import Publish

        args = self._args
        names: dict[str, Any] = {"model": args.publish_as or "", "alias": args.alias or ""}
        if self._publishes:
            yield Publish(
                validate_only=True, **names
            )  # reports wrong names before anything is learned
        count = 0
        published = 0
        for unit in self._readable(found):
            yield from unit.pieces
            count += not unit.fault
            if args.publish_every and count % args.publish_every == 0 and published < count:
                published = count
                yield Publish(**names)
        if self._publishes and published < count:
            yield Publish(**names)

    def _readable(self, found: Iterator[Unit]) -> Iterator[Unit]:
        """Yields units up to the one that ends the stream, and records them as sent."""
        for unit in found:
            self._sent.put(unit)
            yield unit
            if unit.fault and self.faults.stops:
                return

    def _learned(self, stream: LearnedPieces) -> Iterator[PieceScore]:
        """Yields the scores, and writes each stored version to standard error.

        Raises:
            ServerError: The names to publish under are wrong; nothing was learned yet.
        """
        from treadle.client.streaming import stream_error

        begun = False
        for response in stream.responses():
            if response.HasField("piece"):
                begun = True
                self._unstored |= not response.piece.HasField("error")
                yield response.piece
            elif response.HasField("error"):
                self._unpublished = stream_error(response.error)
                if not begun:
                    raise self._unpublished
                print_notice(
                    f"what was learned is not published: {self._error_text(response.error)}"
                )
            elif response.published.version:
                self._unpublished = None
                self._unstored = False
                model = response.published
                print_notice(f"published {model.name} version {model.version}")

    def _print(self, scores: Iterable[PieceScore]) -> None:
        """Prints a row for each unit that is scored as a whole.

        Where the output has no reader any more, the input ends and the rest is not printed.
        """
        from treadle.v1.sequence_pb2 import PieceScore

        left = 0
        for score in scores:
            if not left:
                unit = self._sent.get()
                whole = PieceScore()
                left = len(unit.pieces)
            add_up(whole, score)
            left -= 1
            if not left and not self.faults.is_over:
                self._print_unit(unit, whole)

    def _print_unit(self, unit: Unit, whole: PieceScore) -> None:
        """Prints the row of a unit, or the error in its place."""
        fault = unit.fault or (self._error_text(whole.error) if whole.HasField("error") else "")
        if not fault:
            self._show(lambda: self._rows.print(unit, whole))
            return
        self.faults.add(unit.number, fault)
        self._show(lambda: self._rows.print_fault(unit, fault))
        if self.faults.is_over:
            self._source.stop()

    def _error_text(self, error: StreamError) -> str:
        """Returns the sentence of an error with the flags of the command line."""
        from treadle.client.streaming import stream_error

        return stream_error(error).in_names_of(self._console.argument_names())

    def _show(self, printing: Any) -> None:
        """Prints, unless that has failed before."""
        if self._broken is not None:
            return
        try:
            printing()
        except OSError as error:
            self._broken = error
            self._source.stop()


def _has_items(client: Client, args: argparse.Namespace, options: dict[str, Any]) -> bool:
    """Returns whether the model's corpus has one item per line."""
    from treadle.v1.sequence_pb2 import CORPUS_FORMAT_CSV, CORPUS_FORMAT_JSONL, CORPUS_LAYOUT_LINES

    if "job" in options:
        job = client.get_job(options["job"])
        data = (job.started if job.HasField("started") else job).spec.data
        records = (CORPUS_FORMAT_JSONL, CORPUS_FORMAT_CSV)
        return data.layout == CORPUS_LAYOUT_LINES or data.format in records
    version = options.get("version", 0)
    return client.get_model(args.model, version=version).model.layout == CORPUS_LAYOUT_LINES
