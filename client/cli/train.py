"""The command `treadle train` sends a corpus and shows the progress of the training."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Literal

from treadle.client.cli.connect import connect
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.transfer_progress import TransferProgress
from treadle.client.cli.follow import follow, interruption
from treadle.client.cli.input.text_input import input_name, open_input
from treadle.client.cli.options.option import given_options
from treadle.client.cli.options.parser import Commands
from treadle.client.cli.options.shared import (
    add_connection,
)
from treadle.client.cli.options.train_options import add_train_options
from treadle.client.errors import InputError

if TYPE_CHECKING:
    from treadle.client.files.corpus import Corpora, CorpusFile
    from treadle.client.training_run import TrainingRun

Role = Literal["train", "valid", "test"]

_INTERRUPTION_S = 0.1
"""How long after the end of a pipe the Ctrl-C may arrive that ended the program feeding it."""


def add_parsers(commands: Commands) -> None:
    """Adds `treadle train`."""
    parser = commands.add_parser(
        "train",
        description="Train a model on a file, or on several. A terminal shows a live progress "
        "bar; piped, or with --json, each event is one JSON object per line.",
        fill=_add_options,
    )
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the files and the options."""
    add_train_options(parser)
    add_connection(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Trains and shows each event as it arrives, or only starts the job."""
    from treadle.client.options import TrainOptions

    choose_format(args)
    typed = "-" in args.file + args.valid + args.test and sys.stdin and sys.stdin.isatty()
    upload = TransferProgress(console, "uploading", quiet=args.quiet or bool(typed))
    with (
        connect(args) as client,
        ExitStack() as files,
        upload,
        client.train(
            open_corpora(args, files, upload),
            model=args.model,
            timeout_s=getattr(args, "timeout", None),
            reconnect_s=args.reconnect_s,
            **given_options(args, TrainOptions),
        ) as training,
    ):
        if args.detach:
            _detach(training, args, console, upload)
        else:
            follow(training, args, console, upload)


def _detach(
    training: TrainingRun, args: argparse.Namespace, console: Console, upload: TransferProgress
) -> None:
    """Leaves the job as soon as it is accepted, and prints its id."""
    from treadle.client.cli.display.json_lines import to_line

    console.interruption = partial(interruption, training)
    first = next(training, None)
    upload.close()
    job = training.detach()
    if getattr(args, "json", False) and first is not None:
        console.line(to_line(first))
    else:
        console.line(job)


def choose_format(args: argparse.Namespace) -> None:
    """Chooses the files' format by their names, where it is not given, and says so.

    Raises:
        InputError: The names differ, or are those of files that are not text; or an option is
            for another format.
    """
    from treadle.client.files.format_detection import check_readable, format_of

    names = [*args.file, *args.valid, *args.test]
    if "format" not in args:
        found = format_of(names, "--format")
        if found is not None:
            args.format = found
            subject = f"{names[0]} is" if len(names) == 1 else "the files are"
            print(
                f"treadle: {subject} read as {found}, by the name; --format plain reads plain text",
                file=sys.stderr,
            )
        if getattr(args, "tokenizer", "") != "bytes":
            check_readable(names, "--format plain")
    if getattr(args, "format", "plain") == "plain":
        for name in ("column", "missing"):
            if name in args:
                raise InputError(f"--{name} needs --format jsonl or csv")


def open_corpora(
    args: argparse.Namespace, files: ExitStack, upload: TransferProgress | None = None
) -> Corpora:
    """Opens the files of the corpus; one plain file is a plain corpus.

    Args:
        args: The command line.
        files: Closes the files.
        upload: Counts their bytes as they are read.

    Returns:
        What `Client.train` takes as the corpus.

    Raises:
        InputError: One cannot be opened, or a weight is for none of them.
    """
    roles: list[tuple[Role, Sequence[str]]] = [
        ("train", args.file),
        ("valid", args.valid),
        ("test", args.test),
    ]
    weights = dict(args.weights)
    for path in weights:
        if path not in args.file:
            raise InputError(f"--weight names {path!r}, which is not a FILE of the training part")
    if sum(paths.count("-") for _, paths in roles) > 1:
        raise InputError("standard input can be read only once: give - for one FILE")
    advance = _ignore if upload is None else upload.advance
    opened = [
        _corpus_file(path, role, weights.get(path, 1.0) if role == "train" else 1.0, files, advance)
        for role, paths in roles
        for path in paths
    ]
    if upload is not None:
        upload.total_bytes = _total_bytes(args.file + args.valid + args.test)
    return opened[0].data if len(opened) == 1 and not weights else opened


def _total_bytes(paths: Sequence[str]) -> int | None:
    """Returns the size of files; None where one is a pipe, whose end is unknown."""
    total = 0
    for path in paths:
        found = os.stat(path) if path != "-" else os.fstat(sys.stdin.fileno())
        if not stat.S_ISREG(found.st_mode):
            return None
        total += found.st_size
    return total


def _ignore(count: int) -> None:
    """Counts nothing: the default of `CorpusInput`."""


def _corpus_file(
    path: str, role: Role, weight: float, files: ExitStack, advance: Callable[[int], None]
) -> CorpusFile:
    """Opens one file of the corpus."""
    from treadle.client.files.corpus import CorpusFile

    data: Any = CorpusInput(files.enter_context(open_input(path)), advance)
    return CorpusFile(data, name=input_name(path), role=role, weight=weight)


class CorpusInput:
    """A corpus file that waits a moment before it reports its end.

    Ctrl-C in a shell ends the program that feeds a pipe as well as this one, and the pipe may
    end first. The server must not take half a corpus for a whole one then.

    Args:
        file: The open file.
        advance: Called with the size of each piece that was read.
    """

    def __init__(self, file: IO[bytes], advance: Callable[[int], None] = _ignore) -> None:
        self._file = file
        self._advance = advance

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes; nothing at the end."""
        data = self._file.read(size)
        if not data and stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode):
            time.sleep(_INTERRUPTION_S)
        self._advance(len(data))
        return data
